//! The table of source prefixes, from its writer's side: which markers a prefix needs, where entries lie, and when the table
//! has to grow ([`nlb_common::prefix`] says how packets search it).
//!
//! Packets look into it all the time, so one store at a time has to leave a table in which every client finds what it found
//! before the change or what it will find after it. That is why entries never move: a bucket that is full goes on in another,
//! and where no more of those are left, all entries are written into a new table of twice the size, which packets go over to
//! by one store.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use nlb_common::net::Addr;
use nlb_common::prefix::{
    Bucket, CHAIN, Entry, Key, Lengths, NONE, SLAB_BUCKETS, Says, Scope, Search, Table,
};

use super::MapError;
use super::memory::Shared;
use crate::compile::Addr128;

/// Where tables lie, and how packets are told.
pub trait Tables {
    /// Makes slabs, full of free entries, from the one of this number on.
    fn make(&mut self, first: u16, slabs: u16) -> Result<Vec<Shared<Bucket>>, MapError>;

    /// Has packets look into this table, and gives the memory of another back that they looked into before.
    fn go_over(&mut self, to: Table, from: Option<Table>);

    fn set_lengths(&mut self, scope: Scope, lengths: Lengths);
}

/// A prefix that is in the table, or a marker on the way to some.
#[derive(Debug)]
struct Node {
    /// What the prefix stands for; a mere marker for nothing.
    stands_for: Option<u32>,
    /// The longest prefix that covers this one, itself included: its length, and what it stands for.
    covered_by: Option<(u8, u32)>,
    /// Prefixes whose search comes by here.
    leads_to: u32,
}

impl Node {
    fn says(&self) -> Says {
        let value = self.covered_by.map_or(NONE, |(_, value)| value);
        Says { value, longer: self.leads_to > 0 }
    }
}

type Place = (Scope, Addr128);

pub struct Prefixes<T> {
    tables: T,
    table: Table,
    slabs: Vec<Shared<Bucket>>,
    /// How many slabs a table can have.
    most: u16,
    /// Buckets that lie behind others.
    behind: u32,
    nodes: BTreeMap<Place, Node>,
    /// How many prefixes of each length a scope has, by family.
    lengths: BTreeMap<(Scope, bool, u8), u32>,
}

/// How many slabs there can be for so many prefixes.
pub fn slabs(prefixes: u32) -> u32 {
    const NODES_OF_PREFIX: u64 = 1 + MOST_MARKERS as u64;
    // Buckets of two hold more than one entry each on average before those behind them are used up.
    let buckets = u64::from(prefixes) * NODES_OF_PREFIX;
    TABLES * buckets.div_ceil(SLAB_BUCKETS.into()).clamp(1, MOST_SLABS.into()) as u32
}

/// A table and the one that it grows into, each in one half of the map by turns.
pub const TABLES: u32 = 2;

/// Slabs of one table; their numbers have 16 bits.
const MOST_SLABS: u32 = (1 << 16) / TABLES - 1;

/// Of a prefix of IPv6; those of lengths that people use have at most two.
const MOST_MARKERS: usize = 6;

impl<T: Tables> Prefixes<T> {
    pub fn new(mut tables: T, most: u16) -> Result<Self, MapError> {
        let (table, slabs) = make(&mut tables, 0, 1)?;
        tables.go_over(table, None);
        let (nodes, lengths) = (BTreeMap::new(), BTreeMap::new());
        Ok(Prefixes { tables, table, slabs, most, behind: 0, nodes, lengths })
    }

    /// Has a prefix stand for a value, which is not [`NONE`].
    pub fn set(&mut self, scope: Scope, prefix: Addr128, value: u32) -> Result<(), MapError> {
        let place = (scope, prefix);
        let mut changed = Vec::new();
        if self.nodes.get(&place).is_none_or(|node| node.stands_for.is_none()) {
            for marker in markers(&prefix) {
                let marker = (scope, prefix.cut(marker));
                self.node(marker).leads_to += 1;
                changed.push(marker);
            }
            *self.lengths.entry((scope, prefix.is_v4(), prefix.bits)).or_default() += 1;
        }
        self.node(place).stands_for = Some(value);
        changed.push(place);
        self.cover(place, Some((prefix.bits, value)), &mut changed);
        if let Err(error) = changed.iter().try_for_each(|place| self.show(place)) {
            // Only what is new needs room, so nothing is lost by taking it back.
            self.clear(scope, prefix);
            return Err(error);
        }
        self.tell_lengths(scope);
        Ok(())
    }

    pub fn clear(&mut self, scope: Scope, prefix: Addr128) {
        let place = (scope, prefix);
        let Some(node) = self.nodes.get_mut(&place).filter(|node| node.stands_for.is_some()) else { return };
        node.stands_for = None;
        let mut changed = vec![place];
        let around = self.covering(place, prefix.bits);
        self.cover(place, around, &mut changed);
        for marker in markers(&prefix).into_iter().rev() {
            let marker = (scope, prefix.cut(marker));
            self.node(marker).leads_to -= 1;
            changed.push(marker);
        }
        if let MapEntry::Occupied(mut count) = self.lengths.entry((scope, prefix.is_v4(), prefix.bits)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        for place in &changed {
            if self.nodes.get(place).is_some_and(|node| node.stands_for.is_none() && node.leads_to == 0) {
                self.nodes.remove(place);
            }
            self.show(place).expect("room is asked for by new entries only");
        }
        self.tell_lengths(scope);
    }

    /// The node of a prefix, which is made if it is not there.
    fn node(&mut self, (scope, prefix): Place) -> &mut Node {
        if !self.nodes.contains_key(&(scope, prefix)) {
            let covered_by = self.covering((scope, prefix), prefix.bits + 1);
            let node = Node { stands_for: None, covered_by, leads_to: 0 };
            self.nodes.insert((scope, prefix), node);
        }
        self.nodes.get_mut(&(scope, prefix)).expect("it was made")
    }

    /// Of the prefixes that are shorter than `end` and cover this one, the longest: its length, and what it stands for.
    fn covering(&self, (scope, prefix): Place, end: u8) -> Option<(u8, u32)> {
        let v4 = prefix.is_v4();
        let lengths = self.lengths.range((scope, v4, 0)..(scope, v4, end)).rev();
        lengths.map(|((_, _, bits), _)| *bits).find_map(|bits| {
            let node = self.nodes.get(&(scope, prefix.cut(bits)))?;
            Some((bits, node.stands_for?))
        })
    }

    /// A prefix, and those inside it that no longer one covers, are covered by another from now on.
    fn cover(&mut self, (scope, prefix): Place, by: Option<(u8, u32)>, changed: &mut Vec<Place>) {
        let last = Addr128 { addr: prefix.last(), bits: u8::MAX };
        for (place, node) in self.nodes.range_mut((scope, prefix)..=(scope, last)) {
            let longer = node.covered_by.is_some_and(|(bits, _)| bits > prefix.bits);
            if place.1.is_v4() == prefix.is_v4() && !longer && node.covered_by != by {
                node.covered_by = by;
                changed.push(*place);
            }
        }
    }

    /// Makes the entry of a prefix say what its node says.
    fn show(&mut self, place: &Place) -> Result<(), MapError> {
        let (key, says) = (key(place), self.nodes.get(place).map(Node::says));
        match (self.entry(&key), says) {
            (Some(entry), Some(says)) => entry.say(says),
            (Some(entry), None) => entry.clear(),
            (None, None) => {}
            (None, Some(says)) => match self.room(&key) {
                Some(entry) => entry.publish(&key, says),
                None => self.grow()?,
            },
        }
        Ok(())
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        let entries = self.chain(key).flat_map(|index| &self.bucket(index).entries);
        entries.into_iter().find(|entry| entry.matches(key).is_some())
    }

    /// A free entry where packets look for this prefix, if there is one or can be.
    fn room(&mut self, key: &Key) -> Option<&Entry> {
        let chain: Vec<u32> = self.chain(key).collect();
        let free = |index: &u32| self.bucket(*index).entries.iter().position(Entry::is_free);
        if let Some((index, way)) = chain.iter().find_map(|index| Some((*index, free(index)?))) {
            return Some(&self.bucket(index).entries[way]);
        }
        let next = self.table.homes() + self.behind;
        if chain.len() == CHAIN || next == self.table.buckets() {
            return None;
        }
        self.behind += 1;
        self.bucket(*chain.last()?).next.store(next.into());
        Some(&self.bucket(next).entries[0])
    }

    /// The buckets in which packets look for a prefix.
    fn chain(&self, key: &Key) -> impl Iterator<Item = u32> {
        let next = |index: &u32| Some(self.bucket(*index).next.load() as u32).filter(|next| *next != 0);
        std::iter::successors(Some(self.table.home(key)), next)
    }

    fn bucket(&self, index: u32) -> &Bucket {
        &self.slabs[(index / SLAB_BUCKETS) as usize].all()[(index % SLAB_BUCKETS) as usize]
    }

    /// Goes over to a larger table, in which everything is as the nodes say.
    fn grow(&mut self) -> Result<(), MapError> {
        let first = if self.table.first() == 0 { self.most } else { 0 };
        let mut slabs = self.table.slabs();
        loop {
            if slabs == self.most {
                return Err(MapError::Full { map: "PREFIXES", entries: self.nodes.len() });
            }
            slabs = slabs.saturating_mul(2).min(self.most);
            let (table, memory) = make(&mut self.tables, first, slabs)?;
            let old = (self.table, std::mem::replace(&mut self.slabs, memory), self.behind);
            (self.table, self.behind) = (table, 0);
            if self.fill() {
                self.tables.go_over(table, Some(old.0));
                return Ok(());
            }
            (self.table, self.slabs, self.behind) = old;
        }
    }

    /// Writes all entries into a table of free ones; `false` if they do not fit.
    fn fill(&mut self) -> bool {
        let entries: Vec<(Key, Says)> =
            self.nodes.iter().map(|(place, node)| (key(place), node.says())).collect();
        entries.iter().all(|(key, says)| match self.room(key) {
            Some(entry) => {
                entry.publish(key, *says);
                true
            }
            None => false,
        })
    }

    fn tell_lengths(&mut self, scope: Scope) {
        let of = |v4| {
            let mut lengths = self.lengths.range((scope, v4, 0)..=(scope, v4, u8::MAX)).map(|(key, _)| key.2);
            lengths.next().map_or(Lengths::NO_PREFIX, |first| [first, lengths.next_back().unwrap_or(first)])
        };
        self.tables.set_lengths(scope, Lengths::new(of(true), of(false)));
    }
}

fn key((scope, prefix): &Place) -> Key {
    Key::new(*scope, Addr::v6(prefix.addr), prefix.bits)
}

/// The lengths from which a search for this prefix goes on to longer ones, in its order.
fn markers(prefix: &Addr128) -> Vec<u8> {
    let mut search = Search::of(prefix.is_v4());
    let mut markers = Vec::new();
    while let Some(bits) = search.length().filter(|bits| *bits != prefix.bits) {
        search = if bits < prefix.bits {
            markers.push(bits);
            search.longer()
        } else {
            search.shorter()
        };
    }
    markers
}

fn make<T: Tables>(tables: &mut T, first: u16, slabs: u16) -> Result<(Table, Vec<Shared<Bucket>>), MapError> {
    let memory = tables.make(first, slabs)?;
    let seed =
        getrandom::u32().map_err(|error| MapError::Kernel { map: "PREFIXES", reason: error.to_string() })?;
    Ok((Table::new(first, slabs, seed), memory))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::net::IpAddr;
    use std::os::fd::AsFd as _;
    use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
    use std::sync::{Arc, RwLock};

    use ipnet::IpNet;
    use nlb_common::prefix::{find, longest};
    use proptest::prelude::*;

    use super::super::memory::tests::memory;
    use super::*;

    /// What packets look into.
    #[derive(Clone, Default)]
    struct Seen {
        table: Arc<AtomicU64>,
        lengths: Arc<[AtomicU64; 3]>,
        slabs: Arc<RwLock<BTreeMap<u32, Arc<Shared<Bucket>>>>>,
        /// Slabs that can still be made; then memory has run out.
        left: Arc<AtomicU64>,
    }

    impl Seen {
        fn with_room(slabs: u64) -> Self {
            let seen = Seen::default();
            seen.left.store(slabs, SeqCst);
            seen
        }

        fn longest(&self, scope: Scope, addr: Addr) -> u32 {
            let table = Table::from_word(self.table.load(SeqCst));
            let lengths = Lengths::from_word(self.lengths[scope as usize].load(SeqCst));
            let slabs = self.slabs.read().unwrap();
            longest(scope, addr, lengths, |key| {
                find(key, table, |bucket| {
                    let (slab, place) = table.place(bucket);
                    slabs.get(&slab).map(|slab| &slab.all()[place as usize])
                })
            })
        }
    }

    impl Tables for Seen {
        fn make(&mut self, first: u16, slabs: u16) -> Result<Vec<Shared<Bucket>>, MapError> {
            let numbers = u32::from(first)..u32::from(first) + u32::from(slabs);
            let make = |number| {
                if self.left.load(SeqCst) == 0 {
                    return Err(MapError::Kernel { map: "PREFIXES", reason: "no memory".to_owned() });
                }
                self.left.fetch_sub(1, SeqCst);
                let fd = memory(SLAB_BUCKETS as usize * size_of::<Bucket>());
                let slab = || Shared::new(fd.as_fd(), SLAB_BUCKETS).expect("shared memory");
                self.slabs.write().unwrap().insert(number, Arc::new(slab()));
                Ok(slab())
            };
            numbers.map(make).collect()
        }

        fn go_over(&mut self, to: Table, from: Option<Table>) {
            self.table.store(to.word(), SeqCst);
            if let Some(from) = from {
                let gone = u32::from(from.first())..u32::from(from.first()) + u32::from(from.slabs());
                self.slabs.write().unwrap().retain(|number, _| !gone.contains(number));
            }
        }

        fn set_lengths(&mut self, scope: Scope, lengths: Lengths) {
            self.lengths[scope as usize].store(lengths.word().into(), SeqCst);
        }
    }

    fn prefix(net: &str) -> Addr128 {
        net.parse::<IpNet>().expect("a prefix").into()
    }

    fn addr(addr: &str) -> Addr {
        addr.parse::<IpAddr>().expect("an address").into()
    }

    #[test]
    fn a_prefix_of_ipv6_does_not_cover_ipv4() {
        let seen = Seen::with_room(1);
        let mut prefixes = Prefixes::new(seen.clone(), 1).unwrap();
        prefixes.set(1, prefix("::/0"), 6).unwrap();
        prefixes.set(1, prefix("::/8"), 8).unwrap();
        assert_eq!(seen.longest(1, addr("10.0.0.1")), NONE);
        assert_eq!(seen.longest(1, addr("::2")), 8);
        assert_eq!(seen.longest(1, addr("2001:db8::1")), 6);
        prefixes.set(1, prefix("0.0.0.0/0"), 4).unwrap();
        assert_eq!(seen.longest(1, addr("10.0.0.1")), 4);
        assert_eq!(seen.longest(2, addr("10.0.0.1")), NONE, "another scope");
        prefixes.set(1, prefix("10.0.0.0/9"), 9).unwrap();
        prefixes.clear(1, prefix("0.0.0.0/0"));
        assert_eq!(
            seen.longest(1, addr("10.129.0.1")),
            NONE,
            "what is left of the marker is covered by nothing"
        );
    }

    #[test]
    fn no_prefix_leaves_more_markers_than_there_is_room_for() {
        let of = |v4, bits| {
            let base = prefix(if v4 { "10.0.0.0/32" } else { "2001:db8::/128" });
            markers(&base.cut(bits)).len()
        };
        assert_eq!((0..=128).map(|bits| of(false, bits)).max(), Some(MOST_MARKERS));
        assert_eq!((nlb_common::prefix::V4..=128).map(|bits| of(true, bits)).max(), Some(3));
        assert_eq!([24, 32, 16, 8, 28].map(|bits| of(true, nlb_common::prefix::V4 + bits)), [0, 1, 0, 0, 1]);
        assert_eq!([48, 64, 128, 32, 56].map(|bits| of(false, bits)), [0, 1, 2, 0, 1]);
    }

    #[test]
    fn the_table_grows_and_everything_is_found_in_the_new_one() {
        const PREFIXES: u32 = 200_000;
        let seen = Seen::with_room(100);
        let mut prefixes = Prefixes::new(seen.clone(), slabs(PREFIXES) as u16).unwrap();
        let host = |n: u32| Addr128::from(IpNet::from(IpAddr::from((n * 77).to_be_bytes())));
        for n in 0..PREFIXES {
            prefixes.set(1, host(n), n).unwrap();
        }
        assert!(prefixes.table.slabs() >= 4, "{:?}", prefixes.table);
        for n in 0..PREFIXES {
            assert_eq!(seen.longest(1, Addr::v6(host(n).addr)), n);
        }
        let in_use = seen.slabs.read().unwrap().len();
        assert_eq!(in_use, usize::from(prefixes.table.slabs()), "old tables are given back");
        for n in 0..PREFIXES {
            prefixes.clear(1, host(n));
        }
        assert!(prefixes.nodes.is_empty() && prefixes.lengths.is_empty());
        let buckets = prefixes.slabs.iter().flat_map(Shared::all);
        assert!(buckets.flat_map(|bucket| &bucket.entries).all(Entry::is_free));
    }

    #[test]
    fn where_there_is_no_room_the_table_stays_as_it_is() {
        let in_the_way = |most, left| {
            let seen = Seen::with_room(left);
            let mut prefixes = Prefixes::new(seen.clone(), most).unwrap();
            let host = |n: u32| Addr128::from(IpNet::from(IpAddr::from((n << 8).to_be_bytes())));
            let (refused, error) = (0..)
                .find_map(|n| prefixes.set(1, host(n), n).err().map(|error| (n, error)))
                .expect("room for so many");
            for n in 0..refused {
                assert_eq!(seen.longest(1, Addr::v6(host(n).addr)), n);
            }
            assert_eq!(seen.longest(1, Addr::v6(host(refused).addr)), NONE);
            assert!(!prefixes.nodes.contains_key(&(1, host(refused))));
            // What is given up makes room.
            prefixes.clear(1, host(0));
            prefixes.clear(1, host(1));
            prefixes.set(1, host(0), 7).unwrap();
            assert_eq!(seen.longest(1, Addr::v6(host(0).addr)), 7);
            (refused, error)
        };
        let (fit, error) = in_the_way(1, 10);
        assert!(matches!(error, MapError::Full { .. }), "{error}");
        assert!(fit > 40_000, "{fit} prefixes of two entries each in one slab");
        let (_, error) = in_the_way(2, 1);
        assert!(matches!(error, MapError::Kernel { .. }), "{error}");
    }

    #[derive(Clone, Debug)]
    enum Step {
        Set(Scope, Addr128, u32),
        Clear(Scope, Addr128),
    }

    /// Prefixes of few addresses, so that they lie in each other.
    fn any_prefix() -> impl Strategy<Value = Addr128> {
        let v4 = (0_u8..4, 0_u8..=32).prop_map(|(n, bits)| {
            let addr = [10, [0, 255, 128, 1][usize::from(n)], n, 0xaa];
            IpNet::new(addr.into(), bits).expect("a length")
        });
        let v6 = (0_u8..4, 0_u8..=128).prop_map(|(n, bits)| {
            let mut addr = [0xaa; 16];
            addr[usize::from(n) * 5] = n;
            IpNet::new(addr.into(), bits).expect("a length")
        });
        let inside_v4 = (0_u8..=128).prop_map(|bits| {
            IpNet::new("::ffff:10.0.0.170".parse().expect("an address"), bits).expect("a length")
        });
        prop_oneof![4 => v4, 4 => v6, 1 => inside_v4].prop_map(|net: IpNet| net.trunc().into())
    }

    fn any_step() -> impl Strategy<Value = Step> {
        let place = || (1_u16..3, any_prefix());
        prop_oneof![
            2 => (place(), 0_u32..1000).prop_map(|((scope, prefix), value)| Step::Set(scope, prefix, value)),
            1 => place().prop_map(|(scope, prefix)| Step::Clear(scope, prefix)),
        ]
    }

    type Known = BTreeMap<Place, u32>;

    /// Every prefix's first and last address, read one by one.
    fn expected(known: &Known, scope: Scope, addr: Addr) -> u32 {
        let covering = known.iter().filter(|((of, prefix), _)| *of == scope && prefix.covers(addr));
        covering.max_by_key(|((_, prefix), _)| prefix.bits).map_or(NONE, |(_, value)| *value)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn a_search_finds_what_reading_one_by_one_does(steps in prop::collection::vec(any_step(), 1..120)) {
            let seen = Seen::with_room(1);
            let mut prefixes = Prefixes::new(seen.clone(), 1).unwrap();
            let mut known = Known::new();
            let mut asked: Vec<Addr> = Vec::new();
            for step in steps {
                match step {
                    Step::Set(scope, prefix, value) => {
                        prefixes.set(scope, prefix, value).unwrap();
                        known.insert((scope, prefix), value);
                        asked.extend([Addr::v6(prefix.addr), Addr::v6(prefix.last())]);
                    }
                    Step::Clear(scope, prefix) => {
                        prefixes.clear(scope, prefix);
                        known.remove(&(scope, prefix));
                    }
                }
                for addr in &asked {
                    for scope in 1..3 {
                        prop_assert_eq!(seen.longest(scope, *addr), expected(&known, scope, *addr), "{:?}", addr);
                    }
                }
            }
            for (scope, prefix) in known.keys() {
                prefixes.clear(*scope, *prefix);
            }
            prop_assert!(prefixes.nodes.is_empty() && prefixes.lengths.is_empty());
        }
    }

    /// A client whose pool does not change finds it at any moment, whatever becomes of the prefixes around and inside its own;
    /// and one whose prefix comes and goes finds that or the one around it.
    #[test]
    fn beside_a_writer_clients_find_what_was_or_what_will_be() {
        let seen = Seen::with_room(1000);
        let mut prefixes = Prefixes::new(seen.clone(), 16).unwrap();
        prefixes.set(1, prefix("10.0.0.0/8"), 8).unwrap();
        prefixes.set(1, prefix("10.1.0.0/20"), 20).unwrap();
        let done = AtomicBool::new(false);
        std::thread::scope(|threads| {
            for _ in 0..2 {
                threads.spawn(|| {
                    while !done.load(SeqCst) {
                        assert_eq!(seen.longest(1, addr("10.1.0.9")), 20);
                        for (client, values) in [("10.1.250.1", [8, 12, 8]), ("10.1.1.77", [20, 24, 32])] {
                            let found = seen.longest(1, addr(client));
                            assert!(values.contains(&found), "{client}: {found}");
                        }
                    }
                });
            }
            for round in 0..300_u32 {
                prefixes.set(1, prefix("10.1.1.0/24"), 24).unwrap();
                prefixes.set(1, prefix("10.1.1.77/32"), 32).unwrap();
                prefixes.set(1, prefix("10.0.0.0/12"), 12).unwrap();
                prefixes.set(1, prefix("10.1.0.0/16"), 8).unwrap();
                prefixes.set(1, prefix("10.1.0.8/30"), 20).unwrap();
                // Others come and go, and make the table grow now and then.
                for n in 0..500 {
                    let other = IpNet::from(IpAddr::from([11, round as u8, (n >> 8) as u8, n as u8]));
                    prefixes.set(1, other.into(), n).unwrap();
                }
                prefixes.clear(1, prefix("10.1.0.8/30"));
                prefixes.clear(1, prefix("10.1.1.77/32"));
                prefixes.clear(1, prefix("10.1.1.0/24"));
                prefixes.clear(1, prefix("10.0.0.0/12"));
                prefixes.clear(1, prefix("10.1.0.0/16"));
            }
            done.store(true, SeqCst);
        });
        assert!(prefixes.table.slabs() > 1, "it grew");
    }
}
