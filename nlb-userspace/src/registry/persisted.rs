//! Persisted state: what operators set, which outlives the daemon. Modules register again by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::model::{Deployment, MAX_WEIGHT, RateLimit, Routes, VersionWeights};
use crate::policy::promotion::Stage;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

use super::{Rollout, Split, State};
use crate::registry::InstanceOverrides;

/// Its serialization is its form on disk; see `store`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistedState {
    pub operator_routes: Routes,
    pub operator_routes_since: OrdMap<String, SystemTime>,
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
    /// Of deployments that have had a change of their own.
    pub rollouts: BTreeMap<Deployment, PersistedRollout>,
    /// Of all others together.
    pub fleet_rollout: PersistedRollout,
    /// By instance id.
    #[serde(rename = "steering")]
    pub overrides: OrdMap<String, InstanceOverrides>,
    pub scaling: Vec<GroupPolicy>,
}

/// A [`Rollout`].
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistedRollout {
    pub version_weights: VersionWeights,
    pub split_since: Option<SystemTime>,
    pub former_splits: Vec<Split>,
    pub promotion: Option<Stage>,
    pub last_promotion: Option<String>,
    #[serde(default)]
    pub requested: bool,
}

/// An operator's scaling policy for a group.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPolicy {
    pub group: GroupKey,
    pub policy: Policy,
}

/// The newest persisted state. The number grows with every change of it.
#[derive(Clone, Debug, Default)]
pub struct PersistedRevision {
    pub number: u64,
    pub state: Arc<PersistedState>,
}

impl PersistedState {
    /// Whether the state is one that operators could have set; if not, why.
    pub fn check(&self) -> Result<(), String> {
        let rollouts = || self.rollouts.values().chain([&self.fleet_rollout]);
        rollouts().filter_map(|rollout| rollout.promotion.as_ref()).try_for_each(Stage::check)?;
        self.scaling.iter().try_for_each(|persisted| persisted.policy.check())?;
        let split = |weights: &VersionWeights| weights.clone().into_iter().collect::<Vec<_>>();
        let splits = rollouts().flat_map(|rollout| {
            rollout.former_splits.iter().map(|split| &split.weights).chain([&rollout.version_weights])
        });
        let of_instances =
            self.overrides.iter().filter_map(|(id, overrides)| Some((id.clone(), overrides.weight?)));
        match splits.flat_map(split).chain(of_instances).find(|(_, weight)| *weight > MAX_WEIGHT) {
            None => Ok(()),
            Some((name, weight)) => {
                Err(format!("{name:?} has the weight {weight}, and {MAX_WEIGHT} is the greatest"))
            }
        }
    }

    /// Clones share large parts.
    pub(super) fn of(state: &State) -> Self {
        let policies = state.scaling.iter();
        let policies =
            policies.map(|(group, policy)| GroupPolicy { group: group.clone(), policy: policy.clone() });
        let rollouts = state.rollouts.own.iter();
        PersistedState {
            operator_routes: state.operator_routes.clone(),
            operator_routes_since: state.operator_routes_since.clone(),
            rate_limits: state.rate_limits.clone(),
            rollouts: rollouts.map(|(deployment, rollout)| (deployment.clone(), rollout.into())).collect(),
            fleet_rollout: (&state.rollouts.fleet).into(),
            overrides: state.overrides.clone(),
            scaling: policies.collect(),
        }
    }
}

impl From<&Rollout> for PersistedRollout {
    fn from(rollout: &Rollout) -> Self {
        PersistedRollout {
            version_weights: rollout.version_weights.clone(),
            split_since: rollout.split_since,
            former_splits: rollout.former_splits.clone(),
            promotion: rollout.promotion.as_ref().map(|promotion| promotion.stage().clone()),
            last_promotion: rollout.last_promotion.clone(),
            requested: rollout.requested,
        }
    }
}
