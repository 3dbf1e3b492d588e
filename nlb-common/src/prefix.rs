//! The longest prefix that covers an address, by binary search on the lengths of prefixes.
//!
//! A trie follows a pointer for each bit of an address, and every pointer may be a cache miss. Here a hash
//! table holds the prefixes, and a search looks up the address cut to one length after another: if that
//! prefix is there, longer ones may be too; if not, only shorter ones can be (Waldvogel, Varghese, Turner and
//! Plattner, "Scalable High Speed IP Routing Lookups", SIGCOMM 1997). For this to hold, a prefix leaves
//! *markers* at those shorter lengths from which its own search goes on to longer ones. A marker holds the
//! value of the longest prefix that covers it, so a search that finds nothing beyond a marker need not go
//! back. Common lengths come first, so they are found in one to three steps. Lengths beyond those in use are
//! skipped without a look-up.
//!
//! User space is the only writer ([`Entry::publish`], [`Entry::clear`]); packets look up the table at any
//! time.

use crate::atomic::{Word, fence};
use crate::hash;
use crate::net::Addr;

/// Bits of the v4-mapped form before an IPv4 address.
pub const V4: u8 = 96;

/// The value if no prefix covers the address.
pub const NONE: u32 = u32::MAX;

/// The most steps of a search.
pub const STEPS: usize = 10;

/// The most buckets in which an entry can lie: its primary bucket, and overflow buckets behind that.
pub const CHAIN: usize = 8;

pub const WAYS: usize = 2;

/// The buckets in one map.
pub const SLAB_BUCKETS: u32 = 1 << 16;

/// A set of prefixes among those that share the table: that of a service, by its id.
pub type Scope = u16;

/// The prefixes with rate limits. No service has this id.
pub const LIMITED: Scope = 0;

/// A prefix of one scope.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    pub addr: Addr,
    /// The scope and the length, as the last word of the entry holds them.
    pub tag: u64,
}

impl Key {
    /// The prefix of this length, in v4-mapped bits, that covers the address.
    #[inline(always)]
    pub const fn new(scope: Scope, addr: Addr, bits: u8) -> Self {
        Key { addr: addr.prefix(bits), tag: USED | (scope as u64) << 32 | (bits as u64) << 48 }
    }
}

/// The place and the size of a table, in one word, so that one store makes packets use another table.
///
/// Three quarters of its buckets are primary buckets; the others are overflow buckets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table(u64);

impl Table {
    /// A table in `slabs` slabs, beginning with the one at `first`. The seed makes it hard to choose prefixes
    /// that collide.
    pub const fn new(first: u16, slabs: u16, seed: u32) -> Self {
        Table(first as u64 | (slabs as u64) << 16 | (seed as u64) << 32)
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Table(word)
    }

    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.0
    }

    /// The slab of a bucket, and its index there.
    #[inline(always)]
    pub const fn place(self, bucket: u32) -> (u32, u32) {
        (self.first() as u32 + bucket / SLAB_BUCKETS, bucket % SLAB_BUCKETS)
    }

    #[inline(always)]
    pub const fn first(self) -> u16 {
        self.0 as u16
    }

    #[inline(always)]
    pub const fn slabs(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The numbers of the slabs.
    pub const fn numbers(self) -> core::ops::Range<u32> {
        self.first() as u32..self.first() as u32 + self.slabs() as u32
    }

    #[inline(always)]
    pub const fn primary_buckets(self) -> u32 {
        self.slabs() as u32 * (SLAB_BUCKETS / 4 * 3)
    }

    pub const fn buckets(self) -> u32 {
        self.slabs() as u32 * SLAB_BUCKETS
    }

    /// The bucket in which the search for a prefix begins.
    #[inline(always)]
    pub const fn primary_bucket(self, key: &Key) -> u32 {
        let hash = hash::prefix(key.addr, key.tag ^ (self.0 >> 32));
        // Scales 32 bits to the number of primary buckets (Lemire, "Fast Random Integer Generation in an
        // Interval", 2019).
        ((hash as u64 * self.primary_buckets() as u64) >> 32) as u32
    }
}

/// One cache line of entries.
#[repr(C, align(64))]
#[derive(Default)]
pub struct Bucket {
    pub entries: [Entry; WAYS],
    /// The overflow bucket behind this one; 0, which is a primary bucket, means none.
    pub next: Word,
    _pad: u64,
}

#[cfg(not(loom))]
const _: () = assert!(size_of::<Bucket>() == 64);

/// A prefix and its value. The last word holds, from the lowest bit on: the value (32 bits), the scope (16),
/// the length (8), the number of owners so far modulo 64 (6), whether the entry is in use, and whether there
/// may be longer prefixes.
#[repr(C)]
#[derive(Default)]
pub struct Entry {
    hi: Word,
    lo: Word,
    word: Word,
}

const OWNER: u64 = 1 << 56;
const OWNERS: u64 = 0x3f << 56;
const USED: u64 = 1 << 62;
const LONGER: u64 = 1 << 63;
const TAG: u64 = USED | 0x00ff_ffff_0000_0000;

/// What an entry holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Value {
    /// The value of the longest prefix that covers this one, itself included; [`NONE`] if there is none.
    pub value: u32,
    /// Whether there may be longer prefixes, whose marker this is.
    pub longer: bool,
}

impl Value {
    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        Value { value: word as u32, longer: word & LONGER != 0 }
    }

    #[inline(always)]
    pub const fn word(self) -> u64 {
        self.value as u64 | if self.longer { LONGER } else { 0 }
    }
}

impl Entry {
    /// The value of the entry, if it is that of `key`. The owner is compared before and after, because the
    /// entry may change meanwhile; only a multiple of 64 changes would go unnoticed.
    #[inline(always)]
    pub fn matches(&self, key: &Key) -> Option<Value> {
        let word = self.word.load();
        if word & TAG != key.tag {
            return None;
        }
        fence();
        if self.lo.load() != key.addr.lo || self.hi.load() != key.addr.hi {
            return None;
        }
        fence();
        let again = self.word.load();
        ((word ^ again) & (TAG | OWNERS) == 0).then_some(Value::from_word(again))
    }

    pub fn is_free(&self) -> bool {
        self.word.load() & USED == 0
    }

    /// Makes a free entry that of `key`.
    pub fn publish(&self, key: &Key, value: Value) {
        let owner = self.word.load().wrapping_add(OWNER) & OWNERS;
        self.hi.store(key.addr.hi);
        self.lo.store(key.addr.lo);
        self.word.store(key.tag | owner | value.word());
    }

    /// Changes the value of an entry in use.
    pub fn update(&self, value: Value) {
        self.word.store(self.word.load() & (TAG | OWNERS) | value.word());
    }

    pub fn clear(&self) {
        self.word.store(self.word.load() & OWNERS);
    }
}

/// The lengths that are left to search, in v4-mapped bits.
#[derive(Clone, Copy)]
struct LengthRange {
    low: u8,
    /// The first length beyond the range.
    end: u8,
}

impl LengthRange {
    const fn of(v4: bool) -> Self {
        LengthRange { low: if v4 { V4 } else { 0 }, end: 129 }
    }

    /// The length to search next: the most common one of the range, or the one in its middle.
    const fn pick(self) -> u8 {
        const OF_V4: &[u8] = &[V4 + 24, V4 + 32, V4 + 16, V4 + 8];
        const OF_V6: &[u8] = &[48, 64, 128, 32, 56];
        if self.low >= self.end {
            return END;
        }
        let popular = if self.low >= V4 { OF_V4 } else { OF_V6 };
        let mut i = 0;
        while i < popular.len() {
            if self.low <= popular[i] && popular[i] < self.end {
                return popular[i];
            }
            i += 1;
        }
        self.low + (self.end - self.low) / 2
    }

    const fn shorter_than(self, bits: u8) -> Self {
        LengthRange { end: bits, ..self }
    }

    const fn longer_than(self, bits: u8) -> Self {
        LengthRange { low: bits + 1, ..self }
    }
}

/// No length: the search is over.
const END: u8 = u8::MAX;

/// By length that was looked up: the next length after a miss, and the next length after a hit.
type SearchTree = [[u8; 2]; 256];

static TREE_OF_V4: SearchTree = search_tree(true);
static TREE_OF_V6: SearchTree = search_tree(false);

const fn search_tree(v4: bool) -> SearchTree {
    let mut tree = [[END; 2]; 256];
    let mut bits = LengthRange::of(v4).low;
    while bits <= 128 {
        let mut range = LengthRange::of(v4);
        while range.pick() != bits {
            let picked = range.pick();
            range = if picked < bits { range.longer_than(picked) } else { range.shorter_than(picked) };
        }
        tree[bits as usize] = [range.shorter_than(bits).pick(), range.longer_than(bits).pick()];
        bits += 1;
    }
    tree
}

/// The position of a search in its tree.
#[derive(Clone, Copy)]
pub struct Search {
    tree: &'static SearchTree,
    bits: u8,
}

impl Search {
    #[inline(always)]
    pub fn of(v4: bool) -> Self {
        const FIRST: [u8; 2] = [LengthRange::of(false).pick(), LengthRange::of(true).pick()];
        let tree = if v4 { &TREE_OF_V4 } else { &TREE_OF_V6 };
        Search { tree, bits: FIRST[v4 as usize] }
    }

    /// The length to look up; `None` at the end of the search.
    #[inline(always)]
    pub fn length(&self) -> Option<u8> {
        (self.bits != END).then_some(self.bits)
    }

    #[inline(always)]
    pub fn shorter(self) -> Self {
        Search { bits: self.tree[self.bits as usize][0], ..self }
    }

    #[inline(always)]
    pub fn longer(self) -> Self {
        Search { bits: self.tree[self.bits as usize][1], ..self }
    }
}

/// The shortest and the longest prefix of a scope, for each family, in v4-mapped bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Lengths {
    pub v4: [u8; 2],
    pub v6: [u8; 2],
    /// The upper half of the word that they were read from: 0, but the verifier does not know that.
    zero: u8,
}

impl Lengths {
    /// No length is both at least the first and at most the second.
    pub const NO_PREFIX: [u8; 2] = [u8::MAX, 0];

    /// A new map holds zeros, which mean no prefix of either family.
    const NONE: u32 = u32::from_ne_bytes([u8::MAX, 0, u8::MAX, 0]);

    pub const fn new(v4: [u8; 2], v6: [u8; 2]) -> Self {
        Lengths { v4, v6, zero: 0 }
    }

    #[inline(always)]
    pub const fn from_word(word: u64) -> Self {
        let [a, b, c, d] = (word as u32 ^ Self::NONE).to_ne_bytes();
        Lengths { v4: [a, b], v6: [c, d], zero: (word >> 32) as u8 }
    }

    pub const fn word(self) -> u32 {
        let ([a, b], [c, d]) = (self.v4, self.v6);
        u32::from_ne_bytes([a, b, c, d]) ^ Self::NONE
    }
}

/// The value of a prefix in the table.
#[inline(always)]
pub fn find<'a>(key: &Key, table: Table, bucket: impl Fn(u32) -> Option<&'a Bucket>) -> Option<Value> {
    let mut index = table.primary_bucket(key);
    let mut met = 0;
    while met < CHAIN {
        let bucket = bucket(index)?;
        if let Some(value) = bucket.entries[0].matches(key) {
            return Some(value);
        }
        if let Some(value) = bucket.entries[1].matches(key) {
            return Some(value);
        }
        index = bucket.next.load() as u32;
        if index == 0 {
            return None;
        }
        met += 1;
    }
    None
}

/// The value of the longest prefix of a scope that covers an address; [`NONE`] if none does. Prefixes of IPv6
/// do not cover addresses of IPv4.
#[inline(always)]
pub fn longest(scope: Scope, addr: Addr, lengths: Lengths, find: impl Fn(&Key) -> Option<Value>) -> u32 {
    let [shortest, longest] = if addr.is_v4() { lengths.v4 } else { lengths.v6 };
    if shortest == longest {
        return find(&Key::new(scope, addr, shortest)).map_or(NONE, |found| found.value);
    }
    let mut search = Search::of(addr.is_v4());
    // If the verifier knew the first length, it would know all of them, and follow every path of the tree.
    search.bits += lengths.zero;
    let mut best = NONE;
    let mut step = 0;
    while step < STEPS {
        step += 1;
        let Some(bits) = search.length() else { break };
        if bits < shortest {
            search = search.longer();
            continue;
        }
        if bits > longest {
            search = search.shorter();
            continue;
        }
        match find(&Key::new(scope, addr, bits)) {
            Some(found) => {
                best = found.value;
                if !found.longer {
                    break;
                }
                search = search.longer();
            }
            None => search = search.shorter(),
        }
    }
    best
}

#[cfg(test)]
mod tests {
    use super::*;

    fn steps_to(v4: bool, bits: u8) -> usize {
        let mut search = Search::of(v4);
        let mut steps = 0;
        while let Some(length) = search.length() {
            steps += 1;
            if length == bits {
                return steps;
            }
            search = if length < bits { search.longer() } else { search.shorter() };
        }
        panic!("a search never asks for {bits}")
    }

    #[test]
    fn every_length_is_asked_for_and_popular_ones_soon() {
        let most = |v4, lengths: core::ops::RangeInclusive<u8>| {
            lengths.map(|bits| steps_to(v4, bits)).max().expect("some lengths")
        };
        assert_eq!(most(true, V4..=128), 7);
        assert_eq!(most(false, 0..=128), STEPS);
        for (v4, bits, steps) in
            [(true, 24, 1), (true, 32, 2), (true, 16, 2), (true, 8, 3), (true, 28, 3), (true, 0, 7)]
        {
            assert_eq!(steps_to(v4, V4 + bits), steps, "/{bits}");
        }
        for (bits, steps) in [(48, 1), (64, 2), (32, 2), (128, 3), (56, 3), (0, 8)] {
            assert_eq!(steps_to(false, bits), steps, "/{bits}");
        }
    }

    #[test]
    fn a_key_is_the_prefix_and_nothing_behind_it() {
        let addr = |s: &str| Addr::from(s.parse::<core::net::IpAddr>().unwrap());
        let v4 = |bits| Key::new(1, addr("10.129.255.255"), V4 + bits).addr;
        assert_eq!(v4(9), addr("10.128.0.0"));
        assert_eq!(v4(32), addr("10.129.255.255"));
        assert_eq!(v4(0), addr("0.0.0.0"));
        let v6 = |bits| Key::new(1, addr("2001:db8:ffff:ffff:8000::1"), bits).addr;
        assert_eq!(v6(0), addr("::"));
        assert_eq!(v6(33), addr("2001:db8:8000::"));
        assert_eq!(v6(64), addr("2001:db8:ffff:ffff::"));
        assert_eq!(v6(65), addr("2001:db8:ffff:ffff:8000::"));
        assert_eq!(v6(128), addr("2001:db8:ffff:ffff:8000::1"));
    }

    #[test]
    fn primary_buckets_are_spread_over_three_quarters_of_the_table() {
        let table = Table::from_word(Table::new(7, 2, 0xdead_beef).word());
        assert_eq!((table.primary_buckets(), table.buckets()), (98_304, 131_072));
        assert_eq!(table.place(65_537), (8, 1));
        let mut quarters = [0; 4];
        for n in 0..98_304_u32 {
            let primary = table.primary_bucket(&Key::new(1, Addr::v4(n.to_be_bytes()), 128));
            quarters[(primary / 32_768) as usize] += 1;
        }
        assert_eq!(quarters[3], 0);
        assert!(quarters[..3].iter().all(|buckets| (32_000..33_600).contains(buckets)), "{quarters:?}");
    }

    #[test]
    fn lengths_that_were_never_set_are_none() {
        let none = Lengths::new(Lengths::NO_PREFIX, Lengths::NO_PREFIX);
        assert_eq!(Lengths::from_word(0), none);
        for lengths in [none, Lengths::new([V4, 128], [0, 64])] {
            assert_eq!(Lengths::from_word(lengths.word().into()), lengths);
        }
        for addr in [Addr::v4([10, 0, 0, 1]), Addr::v6([0x20; 16])] {
            assert_eq!(longest(1, addr, none, |_| panic!("a look")), NONE);
        }
    }
}
