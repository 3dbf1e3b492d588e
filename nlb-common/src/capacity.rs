//! The capacity of an instance: the most flows that it has at a time (`max_connections`).
//!
//! A flow counts from before it is recorded until its connection closes, its idle time ends, or another flow
//! gets its entry. Whoever clears `phase::COUNTED` in the flow's entry, by exchanging the entry's word, takes
//! it off the count; so each flow is taken off once.

use crate::atomic::Word;
use crate::flow::{Entry, State};

/// The count and its limit: a cache line of its own, because all CPUs change it.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Capacity {
    /// [`Count`].
    count: Word,
    limit: Word,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Capacity>() == 64);

/// Flows that count now, in the low half; and how many were added since the count began, modulo 2^32, in the
/// high half: from both follows how many were taken off, too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count(u64);

/// Attempts to change the count while other CPUs do. After these, a CPU gives up: a flow that it should have
/// added is refused, and one that it should have taken off counts until user space compares the count with
/// the table.
const ATTEMPTS: u32 = 32;

impl Count {
    #[inline(always)]
    pub const fn flows(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    pub const fn added(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// How many flows were added since an earlier reading, and how many taken off.
    pub const fn changes_since(self, earlier: Count) -> (u32, u32) {
        let added = self.added().wrapping_sub(earlier.added());
        (added, added.wrapping_add(earlier.flows()).wrapping_sub(self.flows()))
    }

    #[inline(always)]
    const fn with_one_more(self) -> Self {
        let added = self.added().wrapping_add(1);
        Count((added as u64) << 32 | self.flows().wrapping_add(1) as u64)
    }

    #[inline(always)]
    const fn with_one_less(self) -> Self {
        Count(self.0 - 1)
    }
}

/// A limit that no table reaches.
pub const UNLIMITED: u32 = u32::MAX;

impl Capacity {
    pub fn limit(&self) -> u32 {
        self.limit.load() as u32
    }

    pub fn set_limit(&self, limit: u32) {
        self.limit.store(limit as u64);
    }

    /// Starts to count anew.
    pub fn restart(&self) {
        self.count.store(0);
    }

    #[inline(always)]
    pub fn count(&self) -> Count {
        Count(self.count.load())
    }

    #[inline(always)]
    pub fn is_full(&self) -> bool {
        self.count().flows() as u64 >= self.limit.load()
    }

    /// Adds a flow. `false` if there are as many as the limit allows.
    #[inline(always)]
    pub fn add(&self) -> bool {
        self.change(|count| ((count.flows() as u64) < self.limit.load()).then_some(count.with_one_more()))
    }

    /// Adds a flow that exists, whatever the limit is.
    #[inline(always)]
    pub fn add_existing(&self) -> bool {
        self.change(|count| Some(count.with_one_more()))
    }

    /// Marks a recorded flow that was added as counted, and returns its new state. If another CPU changes its
    /// entry, the flow is taken off again.
    #[inline(always)]
    pub fn mark(&self, entry: &Entry, state: State) -> Option<State> {
        let counted = state.with_counted(true);
        if entry.replace(state, counted) {
            return Some(counted);
        }
        self.remove();
        None
    }

    /// Takes a flow off.
    #[inline(always)]
    pub fn remove(&self) -> bool {
        self.change(|count| (count.flows() > 0).then(|| count.with_one_less()))
    }

    /// Corrects the number of flows, by comparison with the flow table.
    pub fn correct(&self, difference: i64) -> bool {
        self.change(|Count(word)| {
            let flows = (word as u32 as i64 + difference).clamp(0, u32::MAX as i64);
            Some(Count(word & !0xffff_ffff | flows as u64))
        })
    }

    /// `false` if `next` gives nothing, or other CPUs were faster each time.
    #[inline(always)]
    fn change(&self, next: impl Fn(Count) -> Option<Count>) -> bool {
        let mut attempts = 0;
        while attempts < ATTEMPTS {
            let count = self.count();
            let Some(next) = next(count) else { return false };
            if self.count.exchange(count.0, next.0) {
                return true;
            }
            attempts += 1;
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_instance_takes_no_flow_and_existing_ones_count_beyond_the_limit() {
        let capacity = Capacity::default();
        capacity.set_limit(2);
        let start = capacity.count();
        assert_eq!([capacity.add(), capacity.add(), capacity.add()], [true, true, false]);
        assert!(capacity.add_existing() && capacity.count().flows() == 3);
        assert!(capacity.remove() && !capacity.add());
        assert!(capacity.remove() && capacity.add());
        assert_eq!(capacity.count().changes_since(start), (4, 2));
        capacity.correct(-5);
        assert!(capacity.count().flows() == 0 && !capacity.remove());
        capacity.correct(1);
        assert!(capacity.add() && !capacity.add());
        assert_eq!(capacity.count().added(), 5, "corrections are no changes of flows");
        capacity.set_limit(UNLIMITED);
        assert!(capacity.add());
    }
}
