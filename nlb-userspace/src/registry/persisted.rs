//! Persisted state: what operators set, which outlives the daemon. Modules register again by themselves.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::model::{MAX_WEIGHT, RateLimit, Routes};
use crate::policy::promotion::Stage;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

use super::{Split, State};
use crate::registry::InstanceOverrides;

/// Its serialization is its form on disk; see `store`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PersistedState {
    pub operator_routes: Routes,
    pub operator_routes_since: OrdMap<String, SystemTime>,
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
    pub version_weights: BTreeMap<String, u32>,
    pub split_since: Option<SystemTime>,
    pub former_splits: Vec<Split>,
    pub promotion: Option<Stage>,
    pub last_promotion: Option<String>,
    /// By instance id.
    #[serde(rename = "steering")]
    pub overrides: OrdMap<String, InstanceOverrides>,
    pub scaling: Vec<GroupPolicy>,
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
        self.promotion.iter().try_for_each(Stage::check)?;
        self.scaling.iter().try_for_each(|persisted| persisted.policy.check())?;
        let split = |weights: &BTreeMap<String, u32>| weights.clone().into_iter().collect::<Vec<_>>();
        let splits = self.former_splits.iter().map(|split| &split.weights).chain([&self.version_weights]);
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
        PersistedState {
            operator_routes: state.operator_routes.clone(),
            operator_routes_since: state.operator_routes_since.clone(),
            rate_limits: state.rate_limits.clone(),
            version_weights: state.version_weights.clone(),
            split_since: state.split_since,
            former_splits: state.former_splits.clone(),
            promotion: state.promotion.as_ref().map(|promotion| promotion.stage().clone()),
            last_promotion: state.last_promotion.clone(),
            overrides: state.overrides.clone(),
            scaling: policies.collect(),
        }
    }
}
