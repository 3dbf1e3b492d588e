//! What operators have set: the part of the state that outlives the daemon. Modules register again by themselves.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::info;

use crate::model::{MAX_WEIGHT, RateLimit, Routes};
use crate::promotion::{Promotion, Stage};
use crate::scaling::{GroupKey, Policy};

use super::{Commit, Now, Refusal, Registry, Settings, Split, State};

/// Its form on disk is that of its serialization; see `store`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kept {
    pub operator_routes: Routes,
    pub operator_routes_since: OrdMap<String, SystemTime>,
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
    pub version_weights: BTreeMap<String, u32>,
    pub split_since: Option<SystemTime>,
    pub former_splits: Vec<Split>,
    pub promotion: Option<Stage>,
    pub last_promotion: Option<String>,
    /// By instance id.
    pub steering: OrdMap<String, Steering>,
    pub scaling: Vec<GroupPolicy>,
}

/// What operators have set for one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Steering {
    /// In place of the one that it registers with.
    pub weight: Option<u32>,
    /// It is drained, and stays so.
    pub maintenance: bool,
}

/// How operators want a group to scale.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupPolicy {
    pub group: GroupKey,
    pub policy: Policy,
}

/// The newest of what is to be kept. The number grows with every change of it.
#[derive(Clone, Debug, Default)]
pub struct Keep {
    pub number: u64,
    pub kept: Arc<Kept>,
}

/// Whom the NLB waits for after its start.
#[derive(Clone, Debug, PartialEq)]
pub struct Awaited {
    pub since: Instant,
    /// Instances that were steered before the start and have not been heard of since. A registration of theirs says nothing
    /// new, also if it comes twice: it is the NLB that forgot them.
    pub instances: BTreeSet<String>,
}

impl Registry {
    /// Begins with what was kept, if it fits the settings.
    pub fn restore(settings: Settings, kept: Kept, now: Now) -> Result<Self, Refusal> {
        let mut registry = Registry::new(settings);
        registry.change(Commit::Apply, |state| {
            state.take_over(kept, now);
            state.check_vips()
        })?;
        let kept = Arc::new(Kept::of(&registry.snapshot()));
        registry.kept = watch::Sender::new(Keep { number: 0, kept });
        Ok(registry)
    }

    /// What has to be kept; the receiver wakes with every change of it.
    pub fn kept(&self) -> watch::Receiver<Keep> {
        self.kept.subscribe()
    }

    /// Puts an operator's policy in force, for as long as the group has instances.
    pub fn set_scaling(&self, group: &GroupKey, policy: Policy) -> Result<u64, Refusal> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            state.scaling.insert(group.clone(), policy);
            Ok(())
        })?;
        info!(module_type = ?group.module_type, version = group.version, "scaling policy set");
        Ok(revision)
    }

    /// Forgets the policies of groups that nobody belongs to any more.
    pub fn forget_scaling(&self, gone: &BTreeSet<GroupKey>) {
        let mut state = self.lock();
        let changed = Arc::make_mut(&mut state);
        let modules = &changed.modules;
        changed.scaling.retain(|group, _| !gone.contains(group) || group.is_left(modules.values()));
        self.publish(&state);
    }

    /// Called under the lock, with the state that is about to be the current one.
    pub(super) fn keep(&self, state: &State) {
        let kept = Kept::of(state);
        self.kept.send_if_modified(|last| {
            let news = *last.kept != kept;
            if news {
                *last = Keep { number: last.number + 1, kept: Arc::new(kept) };
            }
            news
        });
    }
}

impl Kept {
    /// Whether it could have been set; if not, why.
    pub fn check(&self) -> Result<(), String> {
        self.promotion.iter().try_for_each(Stage::check)?;
        self.scaling.iter().try_for_each(|kept| kept.policy.check())?;
        let split = |weights: &BTreeMap<String, u32>| weights.clone().into_iter().collect::<Vec<_>>();
        let splits = self.former_splits.iter().map(|split| &split.weights).chain([&self.version_weights]);
        let of_instances =
            self.steering.iter().filter_map(|(id, steering)| Some((id.clone(), steering.weight?)));
        match splits.flat_map(split).chain(of_instances).find(|(_, weight)| *weight > MAX_WEIGHT) {
            None => Ok(()),
            Some((name, weight)) => {
                Err(format!("{name:?} has the weight {weight}, and {MAX_WEIGHT} is the greatest"))
            }
        }
    }

    /// Clones share what is large.
    fn of(state: &State) -> Self {
        let policies = state.scaling.iter();
        let policies =
            policies.map(|(group, policy)| GroupPolicy { group: group.clone(), policy: policy.clone() });
        Kept {
            operator_routes: state.operator_routes.clone(),
            operator_routes_since: state.operator_routes_since.clone(),
            rate_limits: state.rate_limits.clone(),
            version_weights: state.version_weights.clone(),
            split_since: state.split_since,
            former_splits: state.former_splits.clone(),
            promotion: state.promotion.as_ref().map(|promotion| promotion.stage().clone()),
            last_promotion: state.last_promotion.clone(),
            steering: state.steering.clone(),
            scaling: policies.collect(),
        }
    }
}

impl State {
    fn take_over(&mut self, kept: Kept, now: Now) {
        let terms = self.settings.promotion;
        self.operator_routes = kept.operator_routes;
        self.operator_routes_since = kept.operator_routes_since;
        self.rate_limits = kept.rate_limits;
        self.version_weights = kept.version_weights;
        self.split_since = kept.split_since;
        self.former_splits = kept.former_splits;
        self.promotion = kept.promotion.map(|stage| Promotion::resume(stage, &terms, now));
        self.last_promotion = kept.last_promotion;
        self.scaling = kept.scaling.into_iter().map(|kept| (kept.group, kept.policy)).collect();
        let instances: BTreeSet<String> = kept.steering.keys().cloned().collect();
        let waits = !instances.is_empty() || !self.scaling.is_empty();
        self.awaited = waits.then_some(Awaited { since: now.at, instances });
        self.steering = kept.steering;
    }

    /// Notes what an operator has set for an instance.
    pub(super) fn steer(&mut self, instance_id: &str, set: impl FnOnce(&mut Steering)) {
        let mut steering = self.steering.get(instance_id).copied().unwrap_or_default();
        set(&mut steering);
        if steering == Steering::default() {
            self.forget_steering(instance_id);
        } else {
            self.steering.insert(instance_id.to_owned(), steering);
        }
    }

    /// What a registration says counts, unless it only follows a restart of the NLB.
    pub(super) fn steering_of_newcomer(&mut self, instance_id: &str) -> Steering {
        if !self.awaits(instance_id) {
            self.forget_steering(instance_id);
        }
        self.steering.get(instance_id).copied().unwrap_or_default()
    }

    pub(super) fn forget_steering(&mut self, instance_id: &str) {
        if self.steering.contains_key(instance_id) {
            self.steering.remove(instance_id);
        }
    }

    pub(super) fn awaits(&self, instance_id: &str) -> bool {
        self.awaited.as_ref().is_some_and(|awaited| awaited.instances.contains(instance_id))
    }

    pub(super) fn await_no_more(&mut self, instance_id: &str) {
        if let Some(awaited) = &mut self.awaited {
            awaited.instances.remove(instance_id);
        }
    }

    /// Whoever is not there by now is as one who left.
    pub(super) fn end_waiting(&mut self) {
        self.awaited = None;
        let gone: Vec<String> =
            self.steering.keys().filter(|id| !self.modules.contains_key(*id)).cloned().collect();
        for instance_id in gone {
            self.forget_steering(&instance_id);
        }
    }
}
