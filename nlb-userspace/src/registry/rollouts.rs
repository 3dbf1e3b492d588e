//! What is set for the versions of each deployment: the split of its new flows, its promotion, and what a
//! rollback can restore.
//!
//! Earlier releases kept one for the whole fleet. What they persisted still counts for the deployments that
//! have had no change of their own since, so that an upgrade moves no traffic: the first change of a
//! deployment starts from a copy of it.

use std::collections::BTreeMap;
use std::fmt;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::model::{Deployment, VersionWeights};
use crate::policy::promotion::Promotion;

/// The rollouts that are kept before those of deployments without an instance are forgotten, those that
/// modules asked for first: modules name their deployments themselves, and new names must not fill the
/// memory.
pub(super) const MAX_ROLLOUTS: usize = 256;

/// The versions with a weight that a deployment has before those without an instance are forgotten.
pub(super) const MAX_VERSIONS: usize = 256;

/// The split of new flows among the versions of a deployment, and how it came about.
#[derive(Clone, Debug, Default)]
pub struct Rollout {
    /// As operators set them; [`super::State::version_shares`] interprets them.
    pub version_weights: VersionWeights,
    /// When the first version weight was set, or the last promotion began.
    pub split_since: Option<SystemTime>,
    /// Oldest first.
    pub former_splits: Vec<Split>,
    pub promotion: Option<Promotion>,
    /// How the last promotion ended, in words for operators.
    pub last_promotion: Option<String>,
    /// Only weight requests of modules made it; operators have changed nothing since.
    pub requested: bool,
}

/// Who changes a rollout.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Author {
    Operator,
    /// A module by its weight request.
    Module,
}

/// The weights of versions as they were set, so that a rollback can restore them.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    pub weights: VersionWeights,
    pub since: Option<SystemTime>,
}

/// The rollouts of all deployments.
#[derive(Clone, Debug, Default)]
pub struct Rollouts {
    /// Of deployments that have had a change of their own.
    pub own: BTreeMap<Deployment, Rollout>,
    /// Of all others together: what an earlier release kept for the whole fleet.
    pub fleet: Rollout,
}

/// Whose rollout one is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Holder<'a> {
    One(&'a Deployment),
    /// The deployments without a rollout of their own.
    Others,
}

impl fmt::Display for Holder<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Holder::One(deployment) => deployment.fmt(f),
            Holder::Others => f.write_str("all without a split of their own"),
        }
    }
}

impl Rollout {
    /// Whether nothing was set, or all of it was rolled back.
    pub(super) fn is_empty(&self) -> bool {
        let Rollout { version_weights, split_since, former_splits, promotion, last_promotion, requested: _ } =
            self;
        let weighed = !version_weights.is_empty() || split_since.is_some() || !former_splits.is_empty();
        !weighed && promotion.is_none() && last_promotion.is_none()
    }
}

impl Rollouts {
    /// The rollout that applies to a deployment.
    pub fn of(&self, deployment: &Deployment) -> &Rollout {
        self.own.get(deployment).unwrap_or(&self.fleet)
    }

    pub(super) fn held_by(&self, holder: Holder) -> &Rollout {
        match holder {
            Holder::One(deployment) => self.of(deployment),
            Holder::Others => &self.fleet,
        }
    }

    /// The deployments whose own promotions run, and `None` if that of all others does.
    pub(super) fn promoting(&self) -> Vec<Option<Deployment>> {
        let own = self.own.iter().filter(|(_, rollout)| rollout.promotion.is_some());
        let others = self.fleet.promotion.is_some().then_some(None);
        own.map(|(deployment, _)| Some(deployment.clone())).chain(others).collect()
    }

    /// The weights of versions by deployment, as the data path needs them: those of deployments that
    /// [`Rollouts::fleet`] does not describe as well.
    pub(super) fn splits(&self) -> BTreeMap<Deployment, VersionWeights> {
        let differs =
            |rollout: &Rollout| !rollout.version_weights.is_empty() || !self.fleet.version_weights.is_empty();
        let own = self.own.iter().filter(|(_, rollout)| differs(rollout));
        own.map(|(deployment, rollout)| (deployment.clone(), rollout.version_weights.clone())).collect()
    }
}
