//! Scaling: how many instances a group should have, and which instance is asked to start or stop them.
//!
//! A group is the instances of one type and one version: what one program on one release serves. The NLB
//! starts and ends no process itself. It watches the load of groups, and sends ModuleService.Scale to one
//! instance of a group to request another number. [`autoscaler`] decides when, [`policy`] how many, [`group`]
//! which instance; this file keeps the groups and gives them heartbeats and the data path's counters. `grpc`
//! makes the calls.

mod autoscaler;
mod group;
mod load;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use crate::model::Health;
use crate::model::traffic::Traffic;
use crate::policy::lease::LeaseState;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;
use crate::registry::{Record, State};

use group::Group;
pub(crate) use group::ScaleOrder;

/// The instances that count: those with a valid lease that are not stopping.
fn members<'a>(key: &GroupKey, state: &'a State) -> Vec<&'a Record> {
    let alive = |record: &&Record| {
        record.lease_state == LeaseState::Valid
            && record.health() != Health::Stopping
            && key.has(&record.registration.module)
    };
    state.modules.values().map(Arc::as_ref).filter(alive).collect()
}

/// The operator's policy, else that of the first instance that has one.
fn policy<'a>(key: &GroupKey, state: &'a State, members: &[&'a Record]) -> Option<&'a Policy> {
    let of_members = || members.iter().find_map(|record| record.registration.scaling.as_ref());
    state.scaling.get(key).or_else(of_members)
}

/// The policy of a group, if it has one.
pub(crate) fn policy_of(key: &GroupKey, state: &State) -> Option<Policy> {
    policy(key, state, &members(key, state)).cloned()
}

/// A size request: what an operator asks for a group.
#[derive(Clone, Debug, PartialEq)]
pub struct SizeRequest {
    pub number: Number,
    /// Replaces the group's policy, for as long as the group has instances.
    pub policy: Option<Policy>,
    /// The instance to send the Scale request to; without it, the NLB chooses.
    pub instance_id: Option<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// The current number.
    Same,
    /// One more, or up to this number.
    More(Option<u32>),
    /// One fewer, or down to this number.
    Fewer(Option<u32>),
    Exactly(u32),
}

/// Why a size request is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unscalable {
    #[error("the group has no instance with a valid lease to send the request to; start one first")]
    Empty,
    #[error("{wanted} instances would be below min_instances, which is {min}; lower it in config")]
    BelowMin { wanted: u32, min: u32 },
    #[error("{wanted} instances would be above max_instances, which is {max}; raise it in config")]
    AboveMax { wanted: u32, max: u32 },
    #[error("{wanted} instances are not more than the {current} there are; use scale_down or set")]
    NotMore { wanted: u32, current: u32 },
    #[error("{wanted} instances are not fewer than the {current} there are; use scale_up or set")]
    NotFewer { wanted: u32, current: u32 },
}

/// The decision about a size request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub current: u32,
    pub wanted: u32,
    /// `None` if the group has the wanted size.
    pub order: Option<ScaleOrder>,
}

/// The effects of a heartbeat.
#[derive(Debug, Default, PartialEq)]
pub struct HeartbeatOutcome {
    /// The number of instances that was requested of this instance since its last heartbeat.
    pub asked_for: Option<u32>,
    pub order: Option<ScaleOrder>,
}

/// The groups with a policy or a size request. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Scaling {
    groups: Arc<Mutex<BTreeMap<GroupKey, Group>>>,
}

impl Scaling {
    /// Records a heartbeat. The first in each round of the group's heartbeats is a sample of its load.
    pub fn record_heartbeat(
        &self,
        instance_id: &str,
        state: &State,
        traffic: &Traffic,
        now: Instant,
    ) -> HeartbeatOutcome {
        let Ok(record) = state.record(instance_id) else { return HeartbeatOutcome::default() };
        let key = GroupKey::of(&record.registration.module);
        let mut groups = self.lock();
        if record.registration.scaling.is_some() || state.scaling.contains_key(&key) {
            groups.entry(key.clone()).or_default();
        }
        let Some(group) = groups.get_mut(&key) else { return HeartbeatOutcome::default() };
        let asked_for = group.take_scale_notice(instance_id);
        let order = match group.begins_round(instance_id) {
            true => sample(&key, group, state, traffic, now),
            false => None,
        };
        HeartbeatOutcome { asked_for, order }
    }

    /// Samples the groups without recent samples, and removes those without instances.
    pub fn evaluate(&self, state: &State, traffic: &Traffic, now: Instant) -> Vec<ScaleOrder> {
        let mut groups = self.lock();
        groups.retain(|key, group| !group.is_due(now) || state.has_group(key));
        let due = groups.iter_mut().filter(|(_, group)| group.is_due(now));
        due.filter_map(|(key, group)| sample(key, group, state, traffic, now)).collect()
    }

    /// The groups without instances, whose policies can be removed.
    pub fn gone(&self, state: &State) -> BTreeSet<GroupKey> {
        // After a start, instances have yet to register again.
        if state.awaited.is_some() {
            return BTreeSet::new();
        }
        let groups = self.lock();
        let gone = state.scaling.keys().filter(|key| !groups.contains_key(key));
        gone.filter(|key| !state.has_group(key)).cloned().collect()
    }

    /// Applies an operator's size request if the policy allows it: during a cooldown, too, and another
    /// cooldown begins.
    pub fn request_size(
        &self,
        key: &GroupKey,
        request: &SizeRequest,
        state: &State,
        now: Instant,
    ) -> Result<Decision, Unscalable> {
        let mut groups = self.lock();
        let members = members(key, state);
        let current = u32::try_from(members.len()).unwrap_or(u32::MAX);
        let group = groups.entry(key.clone()).or_default();
        let policy =
            request.policy.clone().or_else(|| policy(key, state, &members).cloned()).unwrap_or_default();
        let wanted = request.number.of(current)?;
        if wanted < current.min(policy.min) {
            return Err(Unscalable::BelowMin { wanted, min: policy.min });
        }
        if wanted > current.max(policy.max) {
            return Err(Unscalable::AboveMax { wanted, max: policy.max });
        }
        if wanted == current {
            return Ok(Decision { current, wanted, order: None });
        }
        let order = group.order(key, &members, request.instance_id.as_deref(), wanted, policy, now);
        Ok(Decision { current, wanted, order: Some(order.ok_or(Unscalable::Empty)?) })
    }

    /// Records the outcome of a Scale request.
    pub fn conclude(&self, order: &ScaleOrder, outcome: Result<String, String>) {
        if let Some(group) = self.lock().get_mut(&order.group) {
            group.conclude(order, outcome);
        }
    }

    /// The state of an instance's group, in words for operators.
    pub fn details(&self, record: &Record, state: &State, now: Instant) -> BTreeMap<String, String> {
        let key = GroupKey::of(&record.registration.module);
        let groups = self.lock();
        let members = members(&key, state);
        let policy = policy(&key, state, &members);
        groups.get(&key).map(|group| group.details(&members, policy, now)).unwrap_or_default()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<GroupKey, Group>> {
        self.groups.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn sample(
    key: &GroupKey,
    group: &mut Group,
    state: &State,
    traffic: &Traffic,
    now: Instant,
) -> Option<ScaleOrder> {
    let members = members(key, state);
    let policy = policy(key, state, &members).filter(|policy| policy.automatic).cloned();
    group.sampled(now);
    let policy = policy?;
    let wanted = group.autoscaler.sample(&policy, &load::of(&members, traffic), now)?;
    group.order(key, &members, None, wanted, policy, now)
}

impl Number {
    fn of(self, current: u32) -> Result<u32, Unscalable> {
        match self {
            Number::Same => Ok(current),
            Number::More(None) => Ok(current.saturating_add(1)),
            Number::Fewer(None) => Ok(current.saturating_sub(1)),
            Number::More(Some(wanted)) if wanted <= current => Err(Unscalable::NotMore { wanted, current }),
            Number::Fewer(Some(wanted)) if wanted >= current => Err(Unscalable::NotFewer { wanted, current }),
            Number::More(Some(wanted)) | Number::Fewer(Some(wanted)) | Number::Exactly(wanted) => Ok(wanted),
        }
    }
}
