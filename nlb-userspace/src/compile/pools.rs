//! Who takes which share of a pool: version by weight, then instance within it.

use std::collections::BTreeMap;
use std::sync::Arc;

use nlb_common::maglev::SLOTS;

use super::ability;
use super::classifier::Candidate;
use super::maglev::{self, Member};
use crate::model::{Backend, DEFAULT_WEIGHT, Desired, Health, Module};

/// The members of a pool and their shares: all that its Maglev table depends on. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pool {
    /// Backend id, slots and the backend itself; told apart by the first, mostly.
    members: Arc<[(u16, u32, Arc<Backend>)]>,
}

impl Pool {
    pub fn new(winners: &[&Candidate], desired: &Desired, id: impl Fn(&Backend) -> u16) -> Self {
        let is_split = is_split(winners, desired);
        let has_share =
            |candidate: &Candidate| !is_split || version_weight(&candidate.module.version, desired) > 0;
        let candidates = ability::ablest(winners, has_share);
        let mut usable: Vec<&Candidate> =
            candidates.iter().copied().filter(|o| o.module.health.takes_new_flows()).collect();
        if usable.is_empty() && desired.fail_open {
            usable = candidates.iter().copied().filter(|o| o.module.health == Health::Unhealthy).collect();
        }
        let slots = match is_split {
            true => split(&usable, desired),
            false => maglev::divide(SLOTS, &weights(&usable)),
        };
        let members = usable
            .iter()
            .zip(slots)
            .map(|(candidate, slots)| (id(&candidate.backend), slots, candidate.backend.clone()))
            .collect();
        Pool { members }
    }

    /// What the layout of its table depends on.
    pub fn shape(&self) -> Vec<Member<'_>> {
        let members = self.members.iter();
        members
            .map(|(_, slots, backend)| Member { instance_id: &backend.instance_id, slots: *slots })
            .collect()
    }

    /// A backend id for each slot; 0 throughout if nobody takes new flows.
    pub fn table(&self, layout: &[u16]) -> Arc<[u16]> {
        let ids: Vec<u16> = [0].into_iter().chain(self.members.iter().map(|(id, _, _)| *id)).collect();
        layout.iter().map(|number| ids[usize::from(*number)]).collect()
    }

    /// Every backend that could get new flows, and its slots of the table.
    pub fn members(&self) -> impl Iterator<Item = (&Backend, u32)> {
        self.members.iter().map(|(_, slots, backend)| (backend.as_ref(), *slots))
    }

    /// The ids of the backends that get new flows.
    pub fn members_in_use(&self) -> impl Iterator<Item = u16> + '_ {
        self.members.iter().filter(|(_, slots, _)| *slots > 0).map(|(id, _, _)| *id)
    }
}

/// Twice an instance's weight in new flows, so that half of it is whole.
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

/// Whether versions' weights are about this pool. They are not where they give all new flows to versions that it has no
/// instance of, well or not: a version that one type of module is promoted to must not take the flows of other types,
/// which never had it.
fn is_split(winners: &[&Candidate], desired: &Desired) -> bool {
    let elsewhere = desired.version_weights.values().any(|weight| *weight > 0);
    let here = || winners.iter().any(|candidate| version_weight(&candidate.module.version, desired) > 0);
    !desired.version_weights.is_empty() && (!elsewhere || here())
}

/// The slots of each offer, by version first.
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
