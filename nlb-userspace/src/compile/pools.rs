//! The shares of a pool: divided among versions by weight, and within a version among instances.

use std::collections::BTreeMap;
use std::sync::Arc;

use nlb_common::maglev::SLOTS;

use super::ability;
use super::classifier::{Candidate, FallbackOrder};
use super::maglev::{self, Member};
use crate::model::{Backend, DEFAULT_WEIGHT, Desired, Health, Module};

/// The members of a pool and their shares, on which alone its Maglev table depends. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pool {
    /// Backend id, number of slots, and backend; the id alone identifies a member.
    members: Arc<[(u16, u32, Arc<Backend>)]>,
}

impl Pool {
    /// The pool of the first candidates in the order that take new flows. If there are none, the pool fails
    /// open to the last ones that are unhealthy.
    pub(super) fn new(order: &FallbackOrder, desired: &Desired, id: impl Fn(&Backend) -> u16) -> Self {
        let healthy = |winners| shares(winners, desired, Health::takes_new_flows);
        let unhealthy = |winners| shares(winners, desired, |health| health == Health::Unhealthy);
        let serves = |shares: &Shares| shares.iter().any(|(_, slots)| *slots > 0);
        // Where healthy instances have the weight 0, that is what the operator wants.
        let fails_open = || {
            let without = order.iter().rev().filter(|winners| healthy(winners).is_empty());
            without.map(unhealthy).find(|shares| desired.fail_open && serves(shares))
        };
        // Instances of weight 0 are members, too, and serve nobody.
        let idle = || order.iter().map(healthy).find(|shares| !shares.is_empty());
        let chosen =
            order.iter().map(healthy).find(serves).or_else(fails_open).or_else(idle).unwrap_or_default();
        let members = chosen
            .into_iter()
            .map(|(candidate, slots)| (id(&candidate.backend), slots, candidate.backend.clone()))
            .collect();
        Pool { members }
    }

    /// The input of the Maglev layout.
    pub(super) fn shape(&self) -> Vec<Member<'_>> {
        let members = self.members.iter();
        members
            .map(|(_, slots, backend)| Member { instance_id: &backend.instance_id, slots: *slots })
            .collect()
    }

    /// The backend id of each slot; all 0 if no backend takes new flows.
    pub(super) fn table(&self, layout: &[u16]) -> Arc<[u16]> {
        let ids: Vec<u16> = [0].into_iter().chain(self.members.iter().map(|(id, _, _)| *id)).collect();
        layout.iter().map(|number| ids[usize::from(*number)]).collect()
    }

    /// The backends that could get new flows, and their numbers of slots.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Backend, u32)> {
        self.members.iter().map(|(_, slots, backend)| (backend.as_ref(), *slots))
    }

    /// The ids of the backends that get new flows.
    pub(super) fn members_in_use(&self) -> impl Iterator<Item = u16> + '_ {
        self.members.iter().filter(|(_, slots, _)| *slots > 0).map(|(id, _, _)| *id)
    }
}

/// Candidates and their numbers of slots.
type Shares<'a> = Vec<(&'a Candidate<'a>, u32)>;

/// The shares of those winners whose health is taken.
fn shares<'a>(
    winners: &'a Vec<&'a Candidate<'a>>,
    desired: &Desired,
    takes: impl Fn(Health) -> bool,
) -> Shares<'a> {
    let is_split = is_split(winners, desired);
    let has_share =
        |candidate: &Candidate| !is_split || version_weight(&candidate.module.version, desired) > 0;
    let mut usable = ability::highest_priority(winners, has_share);
    usable.retain(|candidate| takes(candidate.module.health));
    let slots = match is_split {
        true => split(&usable, desired),
        false => maglev::divide(SLOTS, &weights(&usable)),
    };
    usable.into_iter().zip(slots).collect()
}

/// Twice an instance's weight for new flows, so that half of it is a whole number.
fn weight(module: &Module) -> u64 {
    match module.health {
        Health::Degraded => module.weight as u64,
        _ => 2 * module.weight as u64,
    }
}

fn weights(candidates: &[&Candidate]) -> Vec<u64> {
    candidates.iter().map(|o| weight(o.module)).collect()
}

fn version_weight(version: &str, desired: &Desired) -> u32 {
    desired.version_weights.get(version).copied().unwrap_or(DEFAULT_WEIGHT)
}

/// Whether the weights of versions apply to this pool. They do not if they give all new flows to versions
/// without an instance in it, healthy or not: a version of one module type that is promoted must not take the
/// flows of other types, which never had that version.
fn is_split(winners: &[&Candidate], desired: &Desired) -> bool {
    let elsewhere = desired.version_weights.values().any(|weight| *weight > 0);
    let here = || winners.iter().any(|candidate| version_weight(&candidate.module.version, desired) > 0);
    !desired.version_weights.is_empty() && (!elsewhere || here())
}

/// The slots of each candidate, divided by version first.
fn split(candidates: &[&Candidate], desired: &Desired) -> Vec<u32> {
    let weights = weights(candidates);
    let mut versions: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
    for (i, candidate) in candidates.iter().enumerate() {
        if weights[i] > 0 {
            versions.entry(&candidate.module.version).or_default().push(i);
        }
    }
    let version_weights: Vec<u64> =
        versions.keys().map(|version| version_weight(version, desired).into()).collect();
    let mut slots = vec![0; candidates.len()];
    for (members, share) in versions.values().zip(maglev::divide(SLOTS, &version_weights)) {
        let within: Vec<u64> = members.iter().map(|i| weights[*i]).collect();
        for (i, share) in members.iter().zip(maglev::divide(share, &within)) {
            slots[*i] = share;
        }
    }
    slots
}
