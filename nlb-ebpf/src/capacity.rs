//! The capacity of instances (`max_connections`): a new flow counts before it is recorded, so that no
//! instance ever has more than its limit. Out of line for the reasons that `record` gives.

use nlb_common::abi::Backend;
use nlb_common::flow::State;
use nlb_common::hash;
use nlb_common::maglev;
use nlb_common::verdict::{DropReason, FULL_COUNTER, Verdict};

use crate::{clock, maps};

/// The backend of a new flow, and the capacity that it counts against; 0 means none.
pub struct Room {
    pub backend: u16,
    pub capacity: u16,
}

/// The backend that gets a new flow, which counts there: the selected one if its instance has room; else
/// another of the pool, or of its fallback. A flow whose packet names its backend has no pool. `own` is the
/// state word of the entry that the flow will replace, or 0: the room that it has there is its own.
#[inline(always)]
pub fn add_flow(pool: u16, selected: u16, hash: u64, own: u64) -> Result<Room, Verdict> {
    let room = nlb_backend_with_room(pool as u32, selected as u32, (hash >> 32) as u32, own);
    if room == 0 {
        return Err(Verdict::Drop(DropReason::Full));
    }
    Ok(Room { backend: room as u16, capacity: (room >> 16) as u16 })
}

/// Takes a flow that was not recorded off its count.
#[inline(always)]
pub fn remove_flow(capacity: u16) {
    nlb_remove_flow(capacity as u32);
}

/// Takes a flow off its count that this packet has closed, and that had this state before.
#[inline(always)]
pub fn remove_closed(state: State) {
    nlb_remove_closed(state.word());
}

/// The state of a recorded flow that goes on. One that does not count, because its idle time was over, is
/// added first; `None` if its instance has no room any more.
#[inline(always)]
pub fn counted(backend: &Backend, state: State, place: u32) -> Option<State> {
    if backend.capacity == 0 || state.is_counted() {
        return Some(state);
    }
    match nlb_count_again(place, state.owner()) {
        0 => None,
        word => Some(State::from_word(word)),
    }
}

/// Whether a UDP flow goes to another backend: the Maglev table has another one with room in its slot; or its
/// own one drains, and there is no other.
#[inline(always)]
pub fn leads_elsewhere(pool: u16, hash: u64, own: u16, backend: &Backend) -> bool {
    let draining = backend.has(Backend::DRAINING) as u32;
    nlb_leads_elsewhere(pool as u32, (hash >> 32) as u32, own as u32, draining) != 0
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_leads_elsewhere(pool: u32, hash: u32, own: u32, draining: u32) -> u32 {
    let selected = maps::maglev(pool as u16, maglev::slot((hash as u64) << 32));
    let Some(backend) = maps::backend(selected) else { return draining };
    if selected as u32 == own || draining == 0 && !backend.has(Backend::RESOLVED) {
        return 0;
    }
    (backend.capacity == 0 || maps::capacity(backend.capacity).is_some_and(|capacity| !capacity.is_full()))
        as u32
}

/// The word of the flow's state, which counts now unless its connection has closed; 0 if there is no room, or
/// the entry has another owner.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_count_again(place: u32, owner: u32) -> u64 {
    let Some(entry) = maps::flow_at(place) else { return 0 };
    let Some((_, state)) = entry.snapshot() else { return 0 };
    if state.owner() != owner {
        return 0;
    }
    if state.is_counted() || state.is_finished() {
        return state.word();
    }
    let Some(count) = maps::capacity(maps::capacity_of_backend(state.backend(), state.generation())) else {
        return state.word();
    };
    if !count.add() {
        return 0;
    }
    // If another CPU was faster, the next packet decides.
    count.mark(entry, state).unwrap_or(state).word()
}

/// The backend in the low half, and its capacity in the high half; 0 if all are full.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_backend_with_room(pool: u32, selected: u32, hash: u32, own: u64) -> u32 {
    let own = capacity_of(State::from_word(own));
    let room = nlb_add_flow(0, selected, own);
    if room != 0 {
        return room;
    }
    let mut pool = pool;
    let mut pools = 0;
    while pools < maglev::POOLS && pool != 0 {
        let room = nlb_member_with_room(pool, hash, own);
        if room != 0 {
            return room;
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

/// A backend of the pool with room, to which the flow was added, as above; 0 if there is none. All members
/// are tried, but not again for about a millisecond on this CPU: a flood of new flows must not take all of
/// its time.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_member_with_room(pool: u32, hash: u32, own: u32) -> u32 {
    const IN_USE: u64 = 1 << 61;
    let mut random = hash as u64;
    let mut tried = 0;
    while tried < maglev::SLOTS_TRIED {
        random = hash::word(random);
        let room = nlb_add_flow(pool, maglev::slot(random), own);
        if room != 0 {
            return room;
        }
        tried += 1;
    }
    let full = IN_USE | (pool as u64) << 32 | (clock::nanoseconds() >> 20) as u32 as u64;
    let Some(noted) = maps::full_bucket(pool) else { return 0 };
    if *noted == full {
        return 0;
    }
    let members = maps::maglev(pool as u16, maglev::MEMBER_COUNT) as u32;
    let first = hash & 0xffff;
    tried = 0;
    while tried < maglev::MEMBERS && tried < members {
        // No branch: the verifier would follow each one of each step.
        let member = (first + tried).checked_rem(members).unwrap_or(0);
        let room = nlb_add_flow(pool, maglev::FIRST_MEMBER + member, own);
        if room != 0 {
            return room;
        }
        tried += 1;
    }
    *noted = full;
    0
}

/// The backend, as above, if its instance has room for one more flow, which then counts; else 0. It is the
/// one at a place of the pool's table; without a pool, the one with that id. A flow with room of its `own` is
/// taken off there when it is recorded anew.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_add_flow(pool: u32, place: u32, own: u32) -> u32 {
    let id = if pool != 0 { maps::maglev(pool as u16, place) } else { place as u16 };
    let Some(backend) = maps::backend(id) else { return 0 };
    let capacity = backend.capacity as u32;
    if capacity == 0 {
        return id as u32;
    }
    let Some(count) = maps::capacity(backend.capacity) else { return 0 };
    let added = if capacity == own { count.add_existing() } else { count.add() };
    if added { capacity << 16 | id as u32 } else { 0 }
}

#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_remove_flow(capacity: u32) -> u32 {
    maps::capacity(capacity as u16).is_some_and(|capacity| capacity.remove()) as u32
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_remove_closed(state: u64) -> u32 {
    // It counted before, whatever this CPU saw.
    nlb_remove_flow(capacity_of(State::from_word(state).with_counted(true)))
}

/// The id of the capacity that the flow of an entry counts against; 0 if it does not.
#[inline(always)]
pub fn capacity_of(state: State) -> u32 {
    if state.is_counted() { maps::capacity_of_backend(state.backend(), state.generation()) as u32 } else { 0 }
}
