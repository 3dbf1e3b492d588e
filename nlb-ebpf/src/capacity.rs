//! The capacity of instances (`max_connections`): a new flow counts before it is recorded, so that no
//! instance ever has more than its limit. Out of line for the reasons that `record` gives.

use nlb_common::flow::State;
use nlb_common::maglev;
use nlb_common::verdict::{DropReason, FULL_COUNTER, Verdict};

use crate::maps;

/// Slots of a pool that are tried for a backend with room, which follow its weights, before the members are
/// tried in turn.
const SLOTS: u32 = 8;

/// The backend that gets a new flow, which counts there: the selected one if its instance has room; else
/// another of the pool, or of its fallback. A flow whose packet names its backend has no pool.
#[inline(always)]
pub fn add_flow(pool: u16, selected: u16, hash: u64) -> Result<u16, Verdict> {
    match nlb_backend_with_room(pool as u32, selected as u32, hash) {
        0 => Err(Verdict::Drop(DropReason::Full)),
        backend => Ok(backend as u16),
    }
}

/// Whether the Maglev table has another backend in the slot of a flow, and that one has room.
#[inline(always)]
pub fn leads_elsewhere(pool: u16, hash: u64, backend: u16) -> bool {
    nlb_leads_elsewhere(pool as u32, (hash >> 32) as u32, backend as u32) != 0
}

/// Takes a flow that was not recorded, or has closed, off the count of this id.
#[inline(always)]
pub fn remove_flow(capacity: u16) {
    nlb_remove_flow(capacity as u32);
}

/// Takes a flow off its count that this packet has closed, and that had this state before.
#[inline(always)]
pub fn remove_closed(state: State) {
    nlb_remove_closed(state.word());
}

/// Takes a recorded flow off its count, unless another CPU does.
#[inline(always)]
pub fn end_flow(place: u32) {
    nlb_end_flow(place);
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_leads_elsewhere(pool: u32, hash: u32, backend: u32) -> u32 {
    let selected = maps::maglev(pool as u16, maglev::slot((hash as u64) << 32));
    let Some(other) = maps::backend(selected) else { return 0 };
    let has_room =
        other.capacity == 0 || maps::capacity(other.capacity).is_some_and(|capacity| !capacity.is_full());
    (selected as u32 != backend && has_room) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_backend_with_room(pool: u32, selected: u32, hash: u64) -> u32 {
    let hash = (hash >> 32) as u32;
    if nlb_add_flow(selected) != 0 {
        return selected;
    }
    let mut pool = pool;
    let mut pools = 0;
    while pools < maglev::POOLS && pool != 0 {
        let backend = nlb_member_with_room(pool, hash);
        if backend != 0 {
            return backend;
        }
        if pools == 0 {
            maps::count(FULL_COUNTER);
        }
        pool = maps::maglev(pool as u16, maglev::FALLBACK) as u32;
        pools += 1;
    }
    if pools == 0 {
        maps::count(FULL_COUNTER);
    }
    0
}

/// A backend of the pool with room, to which the flow was added; 0 if there is none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_member_with_room(pool: u32, hash: u32) -> u32 {
    let mut random = hash as u64;
    let mut tried = 0;
    while tried < SLOTS {
        random = nlb_common::hash::word(random);
        let backend = nlb_add_flow_to(pool, maglev::slot(random));
        if backend != 0 {
            return backend;
        }
        tried += 1;
    }
    let members = maps::maglev(pool as u16, maglev::MEMBER_COUNT) as u32;
    let first = hash & 0xffff;
    tried = 0;
    while tried < maglev::MEMBERS && tried < members {
        // No branch: the verifier would follow each one of each step.
        let member = (first + tried).checked_rem(members).unwrap_or(0);
        let backend = nlb_add_flow_to(pool, maglev::FIRST_MEMBER + member);
        if backend != 0 {
            return backend;
        }
        tried += 1;
    }
    0
}

/// The backend at a place of the pool's table, if the flow was added to it; else 0.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_add_flow_to(pool: u32, place: u32) -> u32 {
    let backend = maps::maglev(pool as u16, place) as u32;
    if backend != 0 && nlb_add_flow(backend) != 0 { backend } else { 0 }
}

/// 1 if the backend's instance has room for one more flow, which then counts.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_add_flow(backend: u32) -> u32 {
    let Some(backend) = maps::backend(backend as u16) else { return 0 };
    if backend.capacity == 0 {
        return 1;
    }
    maps::capacity(backend.capacity).is_some_and(|capacity| capacity.add()) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_remove_flow(capacity: u32) -> u32 {
    maps::capacity(capacity as u16).is_some_and(|capacity| capacity.remove()) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_remove_closed(state: u64) -> u32 {
    nlb_remove_flow(capacity_of(State::from_word(state)))
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_end_flow(place: u32) -> u32 {
    let Some(entry) = maps::flow_at(place) else { return 0 };
    let Some((_, state)) = entry.snapshot() else { return 0 };
    if !state.is_counted() || !entry.replace(state, state.with_counted(false)) {
        return 0;
    }
    nlb_remove_flow(capacity_of(state))
}

/// The id of the capacity that the flow of an entry counts against; 0 if it does not.
#[inline(always)]
pub fn capacity_of(state: State) -> u32 {
    if state.is_counted() { maps::capacity_of_backend(state.backend(), state.generation()) as u32 } else { 0 }
}
