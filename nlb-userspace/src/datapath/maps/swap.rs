//! Tables that are replaced as a whole, while packets read them.
//!
//! A new table is written where no packet reads, and one store of a word makes it current. The place of the
//! old one is retired: it may be written again only after a grace period of the kernel's RCU, when every
//! packet that was in progress at that store has left the programs. A grace period takes some milliseconds,
//! so there are more places than tables, and grace periods pass in the background while other places are
//! written. Each frees all places that were retired before it began.

use std::collections::BTreeMap;

use aya::Pod;
use nlb_common::abi::{EMPTY_TABLE, SLAB_TABLES, TABLE_COPIES};
use nlb_common::maglev::{LINES, Line};

use super::grace::{Epoch, GracePeriods, Kernel};
use super::memory::{Elements, Words};

/// Places that are free, or will be after a grace period.
#[derive(Debug, Default)]
struct Retired {
    free: Vec<u32>,
    /// Places that are free at the end of this grace period.
    waiting: Option<(Epoch, Vec<u32>)>,
    /// Places that were retired since it began.
    retired: Vec<u32>,
}

impl Retired {
    /// A free place, if there is one now.
    fn take<K: Kernel>(&mut self, grace_periods: &mut GracePeriods<K>) -> Result<Option<u32>, K::Error> {
        if let Some((period, _)) = self.waiting
            && let Some(outcome) = grace_periods.ended(period)
        {
            self.end(outcome)?;
        }
        self.begin(grace_periods);
        Ok(self.free.pop())
    }

    /// Waits until a place is free; `None` if no place is retired.
    fn wait<K: Kernel>(&mut self, grace_periods: &mut GracePeriods<K>) -> Result<Option<u32>, K::Error> {
        while self.free.is_empty() {
            self.begin(grace_periods);
            let Some((period, _)) = self.waiting else { return Ok(None) };
            let outcome = grace_periods.wait(period);
            self.end(outcome)?;
        }
        self.begin(grace_periods);
        Ok(self.free.pop())
    }

    /// Retires a place: only packets in progress still read it.
    fn retire(&mut self, place: u32) {
        self.retired.push(place);
    }

    fn retired_count(&self) -> usize {
        self.retired.len() + self.waiting.as_ref().map_or(0, |(_, places)| places.len())
    }

    fn begin<K: Kernel>(&mut self, grace_periods: &mut GracePeriods<K>) {
        if self.waiting.is_none() && !self.retired.is_empty() {
            self.waiting = Some((grace_periods.begin(), std::mem::take(&mut self.retired)));
        }
    }

    fn end<E>(&mut self, outcome: Result<(), E>) -> Result<(), E> {
        let places = self.waiting.take().map(|(_, places)| places).unwrap_or_default();
        match &outcome {
            Ok(()) => self.free.extend(places),
            Err(_) => self.retired.extend(places),
        }
        outcome
    }
}

/// A table in several copies, side by side.
pub(crate) struct VersionedTable<B> {
    memory: Elements<B>,
    buckets: u32,
    current: u32,
    others: Retired,
}

impl<B: Pod> VersionedTable<B> {
    pub(crate) fn new(memory: Elements<B>, buckets: u32) -> Self {
        let others = Retired { free: (1..TABLE_COPIES).rev().collect(), ..Retired::default() };
        VersionedTable { memory, buckets, current: 0, others }
    }

    /// Writes another copy, and makes it current by storing its first bucket.
    pub(crate) fn write<K: Kernel>(
        &mut self,
        table: &[B],
        grace_periods: &mut GracePeriods<K>,
        store: impl FnOnce(u32),
    ) -> Result<(), K::Error> {
        let copy = match self.others.take(grace_periods)? {
            None => self.others.wait(grace_periods)?,
            copy => copy,
        };
        let copy = copy.expect("all copies but one are retired sooner or later");
        let first = copy * self.buckets;
        self.memory.fill(first, table);
        store(first);
        self.others.retire(std::mem::replace(&mut self.current, copy));
        Ok(())
    }
}

/// Places for Maglev tables, in slabs that are created before they are needed.
pub(crate) struct SlotPool {
    slabs: Vec<Elements<Line>>,
    /// Whether the next slab is being created.
    ordered: bool,
    /// The largest number of slabs.
    most: usize,
    others: Retired,
    /// The place of each pool's table.
    of_pools: BTreeMap<u16, u32>,
    words: Words,
}

/// The largest number of slabs for this many pools.
pub(crate) fn slabs(pools: u32) -> u32 {
    (pools + 1 + SPARE_SLOTS).div_ceil(SLAB_TABLES)
}

/// Places beyond one for each pool, so that not every swap has to wait.
const SPARE_SLOTS: u32 = 64;

impl SlotPool {
    pub(crate) fn new<K>(
        pools: u32,
        words: Words,
        grace_periods: &mut GracePeriods<K>,
    ) -> Result<Self, K::Error>
    where
        K: Kernel<Slab = Elements<Line>>,
    {
        let mut places = SlotPool {
            slabs: Vec::new(),
            ordered: false,
            most: slabs(pools) as usize,
            others: Retired::default(),
            of_pools: BTreeMap::new(),
            words,
        };
        places.order(grace_periods);
        places.grow(grace_periods)?;
        places.others.free.retain(|place| *place != EMPTY_TABLE);
        places.order(grace_periods);
        Ok(places)
    }

    pub(crate) fn set<K>(
        &mut self,
        pool: u16,
        table: &[Line],
        grace_periods: &mut GracePeriods<K>,
    ) -> Result<(), K::Error>
    where
        K: Kernel<Slab = Elements<Line>>,
    {
        let place = self.take(grace_periods)?;
        let slab = &mut self.slabs[(place / SLAB_TABLES) as usize];
        slab.fill(place % SLAB_TABLES * LINES, table);
        self.words.store(pool.into(), place);
        if let Some(old) = self.of_pools.insert(pool, place) {
            self.others.retire(old);
        }
        Ok(())
    }

    pub(crate) fn clear(&mut self, pool: u16) {
        self.words.store(pool.into(), EMPTY_TABLE);
        if let Some(old) = self.of_pools.remove(&pool) {
            self.others.retire(old);
        }
    }

    fn take<K>(&mut self, grace_periods: &mut GracePeriods<K>) -> Result<u32, K::Error>
    where
        K: Kernel<Slab = Elements<Line>>,
    {
        // The last request for a slab may have failed.
        self.order(grace_periods);
        let place = match self.others.take(grace_periods)? {
            None if self.ordered && self.others.retired_count() < SPARE_SLOTS as usize => {
                self.grow(grace_periods)?;
                self.others.free.pop()
            }
            None => self.others.wait(grace_periods)?,
            place => place,
        };
        self.order(grace_periods);
        Ok(place.expect("there are more places than pools"))
    }

    /// Requests a slab before the free places run out.
    fn order<K: Kernel>(&mut self, grace_periods: &mut GracePeriods<K>) {
        if !self.ordered && self.slabs.len() < self.most {
            self.ordered = true;
            grace_periods.order_slab(self.slabs.len() as u32);
        }
    }

    fn grow<K>(&mut self, grace_periods: &mut GracePeriods<K>) -> Result<(), K::Error>
    where
        K: Kernel<Slab = Elements<Line>>,
    {
        self.ordered = false;
        let number = self.slabs.len() as u32;
        self.slabs.push(grace_periods.wait_for_slab()?);
        self.others.free.extend((number * SLAB_TABLES..(number + 1) * SLAB_TABLES).rev());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd as _;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering::SeqCst};

    use proptest::prelude::*;

    use super::*;
    use crate::datapath::maps::memory::tests::memory;

    fn elements<T: Pod>(count: u32) -> Elements<T> {
        Elements::new(memory(count as usize * size_of::<T>()).as_fd(), count).expect("shared memory")
    }

    /// Grace periods that take a while, and sometimes fail.
    #[derive(Clone, Default)]
    struct Counting {
        begun: Arc<AtomicU32>,
        ended: Arc<AtomicU32>,
        slabs: Arc<AtomicU32>,
        failing: bool,
    }

    impl Kernel for Counting {
        type Slab = Elements<Line>;
        type Error = ();

        fn grace(&mut self) -> Result<(), ()> {
            let number = self.begun.fetch_add(1, SeqCst) + 1;
            std::thread::yield_now();
            if self.failing && number.is_multiple_of(3) {
                return Err(());
            }
            self.ended.store(number, SeqCst);
            Ok(())
        }

        fn add_slab(&mut self, number: u32) -> Result<Elements<Line>, ()> {
            assert_eq!(number, self.slabs.fetch_add(1, SeqCst));
            Ok(elements(SLAB_TABLES * LINES))
        }
    }

    /// When each place was retired, as the number of grace periods that had begun by then.
    #[derive(Default)]
    struct Retirements(BTreeMap<u32, u32>);

    impl Retirements {
        fn add(&mut self, place: u32, kernel: &Counting) {
            self.0.insert(place, kernel.begun.load(SeqCst));
        }

        /// Whether a grace period that began after the place was retired has ended.
        fn has_rested(&mut self, place: u32, kernel: &Counting) -> bool {
            self.0.remove(&place).is_none_or(|begun| kernel.ended.load(SeqCst) > begun)
        }
    }

    fn grace_periods(kernel: &Counting) -> GracePeriods<Counting> {
        GracePeriods::new(kernel.clone()).expect("a thread")
    }

    #[test]
    fn a_copy_rests_for_a_grace_period_before_it_is_written_again() {
        for failing in [false, true] {
            let kernel = Counting { failing, ..Counting::default() };
            let mut grace_periods = grace_periods(&kernel);
            let mut copies = VersionedTable::new(elements::<u64>(TABLE_COPIES * 2), 2);
            let mut retirements = Retirements::default();
            let mut current = 0;
            for n in 0..10 * u64::from(TABLE_COPIES) {
                let written = copies.write(&[n, n], &mut grace_periods, |first| {
                    assert!(retirements.has_rested(first, &kernel), "copy at {first} was written too early");
                    retirements.add(std::mem::replace(&mut current, first), &kernel);
                });
                assert!(failing || written.is_ok());
            }
            assert!(
                kernel.begun.load(SeqCst) >= 10,
                "{TABLE_COPIES} copies are not enough without grace periods"
            );
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// For any sequence of changes of pools, no place is written that a packet may still read, and a
        /// place is always found.
        #[test]
        fn no_place_is_written_while_a_packet_may_look_at_it(
            steps in prop::collection::vec((1_u16..40, any::<bool>()), 1..400),
            failing in any::<bool>(),
        ) {
            let kernel = Counting { failing, ..Counting::default() };
            let mut grace_periods = grace_periods(&kernel);
            let words = Words::new(memory(41 * 8).as_fd(), 41).expect("shared memory");
            let mut places = SlotPool::new(40, words, &mut grace_periods).expect("the first slab");
            let table = vec![Line::default(); LINES as usize];
            let mut retirements = Retirements::default();
            for (pool, set) in steps {
                let before = places.of_pools.get(&pool).copied();
                if set {
                    if places.set(pool, &table, &mut grace_periods).is_err() {
                        prop_assert!(failing);
                        prop_assert_eq!(places.of_pools.get(&pool).copied(), before);
                        continue;
                    }
                    let place = places.of_pools[&pool];
                    prop_assert!(place != EMPTY_TABLE);
                    prop_assert!(retirements.has_rested(place, &kernel), "place {place}");
                } else {
                    places.clear(pool);
                }
                if let Some(before) = before {
                    retirements.add(before, &kernel);
                }
                let used: std::collections::BTreeSet<u32> = places.of_pools.values().copied().collect();
                prop_assert_eq!(used.len(), places.of_pools.len(), "two pools in one place");
            }
        }
    }
}
