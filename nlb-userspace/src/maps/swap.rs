//! Tables that are replaced as a whole, while packets look into them.
//!
//! A new table is written where no packet looks, and one store of a word makes packets look there. The place of the old
//! one may be written again only when every packet that was on its way at the time of that store has gone: after a grace
//! period of the kernel's RCU. That takes some milliseconds, so there are more places than tables, and one grace period
//! frees all that were given up before it.

use std::collections::BTreeMap;

use aya::Pod;
use nlb_common::abi::{EMPTY_TABLE, SLAB_TABLES, TABLE_COPIES};
use nlb_common::maglev::{LINES, Line};

use super::memory::{Elements, Words};

/// A table in several copies, one after the other.
pub struct Copies<B> {
    memory: Elements<B>,
    buckets: u32,
    current: u32,
    /// Copies after the current one that no packet looks at any more.
    free: u32,
}

impl<B: Pod> Copies<B> {
    pub fn new(memory: Elements<B>, buckets: u32) -> Self {
        Copies { memory, buckets, current: 0, free: TABLE_COPIES - 1 }
    }

    /// Writes the next copy, and answers where it begins.
    pub fn write<E>(&mut self, table: &[B], grace: impl FnOnce() -> Result<(), E>) -> Result<u32, E> {
        if self.free == 0 {
            grace()?;
            self.free = TABLE_COPIES - 1;
        }
        self.free -= 1;
        self.current = (self.current + 1) % TABLE_COPIES;
        let first = self.current * self.buckets;
        self.memory.fill(first, table);
        Ok(first)
    }
}

/// Places for Maglev tables, in slabs that are made as they are needed.
pub struct Places {
    slabs: Vec<Elements<Line>>,
    /// How many slabs there can be.
    most: usize,
    free: Vec<u32>,
    /// Given up since the last grace period.
    retired: Vec<u32>,
    /// Where each pool's table is.
    of_pools: BTreeMap<u16, u32>,
    words: Words,
}

/// How many slabs there can be for so many pools.
pub fn slabs(pools: u32) -> u32 {
    (pools + 1 + SPARE_PLACES).div_ceil(SLAB_TABLES)
}

/// Places beyond those of the pools that there can be, so that not every swap waits.
const SPARE_PLACES: u32 = 64;

/// What the kernel has to do for tables to find a place.
pub trait Kernel {
    type Error;

    /// Waits until every packet that is on its way now has gone.
    fn grace(&mut self) -> Result<(), Self::Error>;

    /// Makes the slab of this number, full of empty tables. It takes a grace period too.
    fn add_slab(&mut self, number: u32) -> Result<Elements<Line>, Self::Error>;
}

impl Places {
    pub fn new<K: Kernel>(pools: u32, words: Words, kernel: &mut K) -> Result<Self, K::Error> {
        let most = slabs(pools) as usize;
        let (free, retired) = (Vec::new(), Vec::new());
        let mut places = Places { slabs: Vec::new(), most, free, retired, of_pools: BTreeMap::new(), words };
        places.grow(kernel)?;
        places.free.retain(|place| *place != EMPTY_TABLE);
        Ok(places)
    }

    pub fn set<K: Kernel>(&mut self, pool: u16, table: &[Line], kernel: &mut K) -> Result<(), K::Error> {
        let place = self.take(kernel)?;
        let slab = &mut self.slabs[(place / SLAB_TABLES) as usize];
        slab.fill(place % SLAB_TABLES * LINES, table);
        self.words.store(pool.into(), place);
        self.retired.extend(self.of_pools.insert(pool, place));
        Ok(())
    }

    pub fn clear(&mut self, pool: u16) {
        self.words.store(pool.into(), EMPTY_TABLE);
        self.retired.extend(self.of_pools.remove(&pool));
    }

    fn take<K: Kernel>(&mut self, kernel: &mut K) -> Result<u32, K::Error> {
        if self.free.is_empty() {
            if self.retired.len() < SPARE_PLACES as usize && self.slabs.len() < self.most {
                self.grow(kernel)?;
            } else {
                kernel.grace()?;
            }
            self.free.append(&mut self.retired);
        }
        Ok(self.free.pop().expect("there are more places than pools"))
    }

    fn grow<K: Kernel>(&mut self, kernel: &mut K) -> Result<(), K::Error> {
        let number = self.slabs.len() as u32;
        self.slabs.push(kernel.add_slab(number)?);
        self.free.extend((number * SLAB_TABLES..(number + 1) * SLAB_TABLES).rev());
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;
    use std::os::fd::AsFd as _;

    use nix::sys::memfd::{MFdFlags, memfd_create};
    use nix::unistd::ftruncate;
    use proptest::prelude::*;

    use super::*;

    fn memory(bytes: usize) -> std::os::fd::OwnedFd {
        let memory = memfd_create(c"table", MFdFlags::empty()).expect("memory");
        ftruncate(&memory, bytes as i64).expect("room");
        memory
    }

    fn elements<T: Pod>(count: u32) -> Elements<T> {
        Elements::new(memory(count as usize * size_of::<T>()).as_fd(), count).expect("shared memory")
    }

    /// Counts what it is asked for.
    #[derive(Default)]
    struct Counting {
        graces: u32,
        slabs: u32,
    }

    impl Kernel for Counting {
        type Error = Infallible;

        fn grace(&mut self) -> Result<(), Infallible> {
            self.graces += 1;
            Ok(())
        }

        fn add_slab(&mut self, number: u32) -> Result<Elements<Line>, Infallible> {
            assert_eq!(number, self.slabs);
            self.slabs += 1;
            Ok(elements(SLAB_TABLES * LINES))
        }
    }

    #[test]
    fn a_copy_rests_for_a_grace_period_before_it_is_written_again() {
        let mut copies = Copies::new(elements::<u64>(TABLE_COPIES * 2), 2);
        let mut graces = 0;
        let mut written = Vec::new();
        for n in 0..3 * u64::from(TABLE_COPIES) {
            let mut waited = false;
            let grace = || {
                waited = true;
                Ok::<_, Infallible>(())
            };
            let first = copies.write(&[n, n], grace).unwrap();
            if waited {
                graces += 1;
                // All but the one that packets look at.
                written.drain(..written.len() - 1);
            }
            assert!(!written.contains(&first), "copy at {first} was written again too early");
            written.push(first);
        }
        assert_eq!(graces, 3, "one for every {} swaps", TABLE_COPIES - 1);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(16))]

        /// However pools come, change and go: no place is written that a packet may still look at, and there is always one.
        #[test]
        fn no_place_is_written_while_a_packet_may_look_at_it(
            steps in prop::collection::vec((1_u16..40, any::<bool>()), 1..400),
        ) {
            let mut kernel = Counting::default();
            let words = Words::new(memory(41 * 8).as_fd(), 41).expect("shared memory");
            let mut places = Places::new(40, words, &mut kernel).unwrap();
            let table = vec![Line::default(); LINES as usize];
            // Places given up, and how many grace periods there had been by then.
            let mut given_up = BTreeMap::new();
            for (pool, set) in steps {
                let before = places.of_pools.get(&pool).copied();
                let periods = |kernel: &Counting| kernel.graces + kernel.slabs;
                if set {
                    places.set(pool, &table, &mut kernel).unwrap();
                    let place = places.of_pools[&pool];
                    prop_assert!(place != EMPTY_TABLE);
                    let since = given_up.remove(&place);
                    prop_assert!(since.is_none_or(|since| since < periods(&kernel)), "place {place}");
                } else {
                    places.clear(pool);
                }
                given_up.extend(before.map(|place| (place, periods(&kernel))));
                let used: std::collections::BTreeSet<u32> = places.of_pools.values().copied().collect();
                prop_assert_eq!(used.len(), places.of_pools.len(), "two pools in one place");
            }
        }
    }
}
