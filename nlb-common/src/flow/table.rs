//! Buckets of entries that several CPUs read and write at once.
//!
//! An entry is three key words and one state word. A writer claims an entry by exchanging its state word for
//! [`LOCKED`], which only one writer can do, writes the key, and publishes the entry by storing the new state
//! word. A reader loads the state word, compares the key, and loads the state word again: if the owner
//! changed in between, the key may have been a mixture of two, and the reader reports a miss. One case
//! remains: within these few instructions, another flow with the same backend and SNAT port replaces the
//! entry. Then the reader takes a mixture of two keys for its flow, and the backend is that of one of the two
//! flows. A change to a published entry exchanges the whole state word, so it never changes an entry of
//! another owner.

use super::key::Key;
use super::state::{IdleTimes, MIN_TICKS, State, phase, without_count_if_closed};
use crate::atomic::{Word, fence};

pub const WAYS: usize = 4;

/// Buckets are aligned to two cache lines, which the CPU's adjacent-line prefetch fetches together.
#[repr(C, align(128))]
#[derive(Default)]
pub struct Bucket {
    pub entries: [Entry; WAYS],
}

#[repr(C)]
#[derive(Default)]
pub struct Entry {
    key: [Word; 3],
    state: Word,
}

// Words of loom are larger.
#[cfg(not(loom))]
const _: () = assert!(size_of::<Entry>() == 32 && size_of::<Bucket>() == 128);

/// An entry that a writer has claimed. Its phase has no `LIVE`, so readers skip it.
const LOCKED: u64 = u32::MAX as u64;
const FREE: u64 = 0;

impl Bucket {
    /// The entry of a flow, and its state.
    #[inline(always)]
    pub fn find(&self, key: &Key) -> Option<(usize, State)> {
        let mut way = 0;
        while way < WAYS {
            if let Some(state) = self.entries[way].matches(key) {
                return Some((way, state));
            }
            way += 1;
        }
        None
    }

    /// Records a flow in the entry with the highest eviction rank: a free one; else one that has expired, is
    /// closed or `is_stale`; else a flow that is not established and has been idle for two ticks, about a
    /// second. Only if `must` is set (a NAT flow needs an entry), other flows are evicted too: first those
    /// that are not established, then the one that is idle longest.
    ///
    /// Returns the index of the entry, and the state of the flow that had it. `None` if no entry can be
    /// evicted, or another CPU was faster.
    #[inline(always)]
    pub fn insert(
        &self,
        key: &Key,
        state: State,
        now: u16,
        idle: &IdleTimes,
        must: bool,
        is_stale: impl Fn(&Key, State) -> bool,
    ) -> Option<(usize, State)> {
        let mut best = 0;
        let mut best_rank = 0;
        let mut way = 0;
        while way < WAYS {
            let rank = self.entries[way].eviction_rank(now, idle, must, &is_stale);
            if rank > best_rank {
                best_rank = rank;
                best = way;
            }
            way += 1;
        }
        if best_rank == 0 {
            return None;
        }
        // A constant index for each way shows the bounds to the verifier.
        match best {
            0 => self.entries[0].claim(key, state),
            1 => self.entries[1].claim(key, state),
            2 => self.entries[2].claim(key, state),
            _ => self.entries[3].claim(key, state),
        }
        .map(|evicted| (best, evicted))
    }
}

impl Entry {
    /// The state of this entry if it has this key.
    #[inline(always)]
    pub fn matches(&self, key: &Key) -> Option<State> {
        let state = State(self.state.load());
        fence();
        if self.key[2].load() != key.0[2]
            || self.key[1].load() != key.0[1]
            || self.key[0].load() != key.0[0]
            || !state.is_live()
        {
            return None;
        }
        fence();
        let again = State(self.state.load());
        (again.is_live() && again.owner() == state.owner()).then_some(again)
    }

    /// The key and the state, for readers that walk the table; `None` if the entry is free or changes.
    #[inline(always)]
    pub fn snapshot(&self) -> Option<(Key, State)> {
        let state = State(self.state.load());
        if !state.is_live() {
            return None;
        }
        fence();
        let key = Key([self.key[0].load(), self.key[1].load(), self.key[2].load()]);
        fence();
        let again = State(self.state.load());
        (again.is_live() && again.owner() == state.owner()).then_some((key, again))
    }

    /// Records that a packet was seen, if that changes the state. Returns whether the flow has ceased to
    /// count against the capacity of its instance.
    #[inline(always)]
    pub fn touch(&self, state: State, phase: u8, now: u16) -> bool {
        let next = state.at(phase, now);
        if next == state {
            return false;
        }
        let removed = state.phase() & !phase & phase::COUNTED;
        if self.state.exchange(state.0, next.0) {
            return removed != 0;
        }
        // Another CPU changed the word first. Its time is as recent as this one, but its phase may lack a bit
        // that this packet adds, and a FIN comes only once. Who counts flows decides on `COUNTED`.
        let other = State(self.state.load());
        let added = phase & !other.phase() & !phase::COUNTED;
        if !other.is_live() || other.owner() != state.owner() || added == 0 {
            return false;
        }
        let merged = other.at(without_count_if_closed((other.phase() | added) & !removed), other.seen());
        self.state.exchange(other.0, merged.0) && other.phase() & !merged.phase() & phase::COUNTED != 0
    }

    /// Removes the flow. `false` if another CPU was faster: the flow had a packet, or the entry has another
    /// owner.
    #[inline(always)]
    pub fn remove(&self, state: State) -> bool {
        self.state.exchange(state.0, FREE)
    }

    /// Replaces the state of the entry's own flow. `false` if another CPU was faster.
    #[inline(always)]
    pub fn replace(&self, state: State, next: State) -> bool {
        self.state.exchange(state.0, next.0)
    }

    /// Claims the entry for another flow, and returns the state of the former one. `None` if another CPU was
    /// faster.
    #[inline(always)]
    fn claim(&self, key: &Key, state: State) -> Option<State> {
        let old = self.state.load();
        if old == LOCKED || !self.state.exchange(old, LOCKED) {
            return None;
        }
        fence();
        self.key[0].store(key.0[0]);
        self.key[1].store(key.0[1]);
        self.key[2].store(key.0[2]);
        fence();
        self.state.store(state.0);
        Some(State(old))
    }

    /// The eviction rank of the entry; 0 means that it cannot be evicted.
    #[inline(always)]
    fn eviction_rank(
        &self,
        now: u16,
        idle: &IdleTimes,
        must: bool,
        is_stale: &impl Fn(&Key, State) -> bool,
    ) -> u32 {
        const FREE_RANK: u32 = u32::MAX;
        const DEAD_RANK: u32 = u32::MAX - 1;
        // Above the age of any established flow, with room for an age.
        const FRESH_RANK: u32 = 1 << 17;
        const OPENING_RANK: u32 = 1 << 18;

        let word = self.state.load();
        if word == FREE {
            return FREE_RANK;
        }
        if word == LOCKED {
            return 0;
        }
        let state = State(word);
        let age = state.age(now);
        // The next packet of a live flow clears a forged reset, so a closed flow must also have been silent.
        if state.is_expired(now, idle) || state.is_closed() && age >= MIN_TICKS {
            return DEAD_RANK;
        }
        let key = Key([0, 0, self.key[2].load()]);
        if is_stale(&key, state) {
            return DEAD_RANK;
        }
        let opening = state.phase() & phase::ESTABLISHED == 0;
        if opening && age >= MIN_TICKS {
            return OPENING_RANK + age as u32;
        }
        match (must, opening) {
            (false, _) => 0,
            (true, true) => FRESH_RANK + age as u32,
            (true, false) => 1 + age as u32,
        }
    }
}
