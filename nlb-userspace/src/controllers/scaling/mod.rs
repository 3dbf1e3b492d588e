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
pub(crate) use group::{Pending, ScaleOrder, ScaleOutcome};

/// The instances that count: those with a valid lease that are not stopping.
fn members<'a>(key: &GroupKey, state: &'a State) -> Vec<&'a Record> {
    let alive = |record: &&Record| {
        record.lease_state == LeaseState::Valid
            && record.health() != Health::Stopping
            && key.has(&record.registration.module)
    };
    state.modules.values().map(Arc::as_ref).filter(alive).collect()
}

fn number(members: &[&Record]) -> u32 {
    members.len().try_into().unwrap_or(u32::MAX)
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
    /// The current number, or the one that is pending.
    Same,
    /// One more than there are or than are pending, or up to this number.
    More(Option<u32>),
    /// One fewer than there are or than are pending, or down to this number.
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
    #[error(
        "{wanted} instances are not more than the {current} that there are or were requested; use scale_down or set"
    )]
    NotMore { wanted: u32, current: u32 },
    #[error(
        "{wanted} instances are not fewer than the {current} that there are or were requested; use scale_up or set"
    )]
    NotFewer { wanted: u32, current: u32 },
}

/// The decision about a size request.
#[derive(Clone, Debug, PartialEq)]
pub struct Decision {
    pub current: u32,
    pub wanted: u32,
    /// What was requested before, and is pending.
    pub pending: Option<Pending>,
    /// `None` if the group has the wanted size, and no other is pending.
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
        for (key, group) in groups.iter_mut().filter(|(_, group)| group.has_pending()) {
            // A number that the group has had is no longer pending, even if an instance leaves again.
            group.pending(number(&members(key, state)), state);
        }
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
    /// cooldown begins. A request that is pending is what steps start from, and is replaced.
    pub fn request_size(
        &self,
        key: &GroupKey,
        request: &SizeRequest,
        state: &State,
        now: Instant,
    ) -> Result<Decision, Unscalable> {
        let mut groups = self.lock();
        let members = members(key, state);
        let current = number(&members);
        let group = groups.entry(key.clone()).or_default();
        let policy =
            request.policy.clone().or_else(|| policy(key, state, &members).cloned()).unwrap_or_default();
        let pending = group.pending(current, state).cloned();
        let wanted = match request.number {
            Number::Same => current,
            number => number.of(pending.as_ref().map_or(current, |pending| pending.wanted))?,
        };
        if wanted < current.min(policy.min) {
            return Err(Unscalable::BelowMin { wanted, min: policy.min });
        }
        if wanted > current.max(policy.max) {
            return Err(Unscalable::AboveMax { wanted, max: policy.max });
        }
        if request.number == Number::Same || (wanted == current && pending.is_none()) {
            return Ok(Decision { current, wanted, pending, order: None });
        }
        let order = group.order(key, &members, request.instance_id.as_deref(), wanted, policy, now);
        Ok(Decision { current, wanted, pending, order: Some(order.ok_or(Unscalable::Empty)?) })
    }

    /// Records the outcome of a Scale request.
    pub fn conclude(&self, order: &ScaleOrder, outcome: ScaleOutcome) {
        if let Some(group) = self.lock().get_mut(&order.group) {
            group.conclude(order, outcome);
        }
    }

    /// The state of an instance's group, in words for operators.
    pub fn details(&self, record: &Record, state: &State, now: Instant) -> BTreeMap<String, String> {
        let key = GroupKey::of(&record.registration.module);
        let mut groups = self.lock();
        let members = members(&key, state);
        let policy = policy(&key, state, &members);
        let Some(group) = groups.get_mut(&key) else { return BTreeMap::new() };
        let mut details = group.details(&members, policy, now);
        let pending = group.pending(number(&members), state);
        details.extend(pending.map(|pending| ("scaling.pending".to_owned(), pending.to_string())));
        details
    }

    /// The groups with a pending request, and how many instances each has.
    pub fn pending(&self, state: &State) -> Vec<(GroupKey, Pending, u32)> {
        let mut groups = self.lock();
        let groups = groups.iter_mut().filter(|(_, group)| group.has_pending()).filter_map(|(key, group)| {
            let current = number(&members(key, state));
            Some((key.clone(), group.pending(current, state)?.clone(), current))
        });
        groups.collect()
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
    /// `current` is how many there are, or were requested last.
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
