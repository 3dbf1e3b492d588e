//! Searches in the table compared with a scan of all prefixes, beside a writer, and without room.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::sync::{Arc, RwLock};

use ipnet::IpNet;
use nlb_common::prefix::{find, longest};
use proptest::prelude::*;

use super::*;
use crate::datapath::maps::memory::tests::memory;

/// The tables as packets see them.
#[derive(Clone, Default)]
struct Seen {
    table: Arc<AtomicU64>,
    lengths: Arc<[AtomicU64; 3]>,
    slabs: Arc<RwLock<BTreeMap<u32, Arc<Shared<Bucket>>>>>,
    /// Slabs that can still be created before memory runs out.
    left: Arc<AtomicU64>,
}

impl Seen {
    fn with_room(slabs: u64) -> Self {
        let seen = Seen::default();
        seen.left.store(slabs, SeqCst);
        seen
    }

    fn longest(&self, scope: Scope, addr: Addr) -> u32 {
        // Read lock before the table's word is read: like a program's RCU section, it keeps the slabs of the
        // table that this search uses until the search ends.
        let slabs = self.slabs.read().unwrap();
        let table = Table::from_word(self.table.load(SeqCst));
        let lengths = Lengths::from_word(self.lengths[scope as usize].load(SeqCst));
        longest(scope, addr, lengths, |key| {
            find(key, table, |bucket| {
                let (slab, place) = table.place(bucket);
                slabs.get(&slab).map(|slab| &slab.all()[place as usize])
            })
        })
    }
}

impl Tables for Seen {
    fn make(&mut self, table: Table) -> Result<Vec<Shared<Bucket>>, MapError> {
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
        table.numbers().map(make).collect()
    }

    fn switch_to(&mut self, to: Table, from: Option<Table>) {
        self.table.store(to.word(), SeqCst);
        if let Some(from) = from {
            self.slabs.write().unwrap().retain(|number, _| !from.numbers().contains(number));
        }
    }

    fn set_lengths(&mut self, scope: Scope, lengths: Lengths) {
        self.lengths[scope as usize].store(lengths.word().into(), SeqCst);
    }
}

/// An empty table of at most `most` slabs, with memory for `left` slabs in total, and the packets' view of
/// it.
fn empty(left: u64, most: u16) -> (Seen, Prefixes<Seen>) {
    let seen = Seen::with_room(left);
    let prefixes = Prefixes::new(seen.clone(), most).expect("memory for one slab");
    (seen, prefixes)
}

fn prefix(net: &str) -> Addr128 {
    net.parse::<IpNet>().expect("a prefix").into()
}

fn addr(addr: &str) -> Addr {
    addr.parse::<IpAddr>().expect("an address").into()
}

#[test]
fn a_prefix_of_ipv6_does_not_cover_ipv4() {
    let (seen, mut prefixes) = empty(1, 1);
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
    assert_eq!(seen.longest(1, addr("10.129.0.1")), NONE, "no prefix covers the rest of the marker");
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
    let (seen, mut prefixes) = empty(100, slabs(PREFIXES) as u16);
    let host = |n: u32| Addr128::from(IpNet::from(IpAddr::from((n * 77).to_be_bytes())));
    for n in 0..PREFIXES {
        prefixes.set(1, host(n), n).unwrap();
    }
    assert!(prefixes.table.slabs() >= 4, "{:?}", prefixes.table);
    for n in 0..PREFIXES {
        assert_eq!(seen.longest(1, Addr::v6(host(n).addr)), n);
    }
    let in_use = seen.slabs.read().unwrap().len();
    assert_eq!(in_use, usize::from(prefixes.table.slabs()), "the memory of old tables is returned");
    for n in 0..PREFIXES {
        prefixes.clear(1, host(n));
    }
    assert!(prefixes.nodes.is_empty() && prefixes.lengths.is_empty());
    let buckets = prefixes.slabs.iter().flat_map(Shared::all);
    assert!(buckets.flat_map(|bucket| &bucket.entries).all(Entry::is_free));
}

#[test]
fn a_change_without_room_leaves_the_table_as_it_is() {
    let in_the_way = |most, left| {
        let (seen, mut prefixes) = empty(left, most);
        let host = |n: u32| Addr128::from(IpNet::from(IpAddr::from((n << 8).to_be_bytes())));
        let (refused, error) = (0..)
            .find_map(|n| prefixes.set(1, host(n), n).err().map(|error| (n, error)))
            .expect("room for so many");
        for n in 0..refused {
            assert_eq!(seen.longest(1, Addr::v6(host(n).addr)), n);
        }
        assert_eq!(seen.longest(1, Addr::v6(host(refused).addr)), NONE);
        assert!(!prefixes.nodes.contains_key(&(1, host(refused))));
        // A removed prefix makes room for another.
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

/// Prefixes of few addresses, so that they contain each other.
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

/// The value of the longest prefix that covers an address, found by a scan of all prefixes.
fn expected(known: &Known, scope: Scope, addr: Addr) -> u32 {
    let covering = known.iter().filter(|((of, prefix), _)| *of == scope && prefix.covers(addr));
    covering.max_by_key(|((_, prefix), _)| prefix.bits).map_or(NONE, |(_, value)| *value)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_search_finds_what_reading_one_by_one_does(steps in prop::collection::vec(any_step(), 1..120)) {
        let (seen, mut prefixes) = empty(1, 1);
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

/// While a writer adds and removes prefixes around and inside a client's own, a client whose pool does not
/// change finds that pool at any moment. A client whose own prefix comes and goes finds that one's pool or
/// that of the prefix around it.
#[test]
fn beside_a_writer_clients_find_what_was_or_what_will_be() {
    let (seen, mut prefixes) = empty(1000, 16);
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
            // Other prefixes come and go, and make the table grow now and then.
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
