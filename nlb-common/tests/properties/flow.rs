//! The flow table with one thread: which entry a look-up finds, which one is evicted, and the phases of a
//! connection.

use nlb_common::flow::{
    Bucket, Direction, IdleTimes, Key, Mark, State, WAYS, first_phase, next_phase, phase,
};
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::TcpFlags;
use phase::{BACKEND_FIN, CLIENT_FIN, ESTABLISHED, LIVE, ONE_WAY, RESET, UDP};
use proptest::collection::vec;
use proptest::prelude::*;

const IDLE: IdleTimes = IdleTimes { opening: 120, established: 7200, closing: 60, udp: 240, time_wait: 120 };

const FIN: u8 = TcpFlags::FIN;
const SYN: u8 = TcpFlags::SYN;
const RST: u8 = TcpFlags::RST;
const ACK: u8 = TcpFlags::ACK;

/// In place of a generation: the backend of the flow is gone.
const STALE: u8 = 0xee;

fn is_stale(_: &Key, state: State) -> bool {
    state.generation() == STALE
}

fn key(id: u64) -> Key {
    let port = Be16::new(id as u16);
    Key::new(Addr { hi: id, lo: id }, port, port, id as u16, L4::Tcp, Direction::Forward)
}

fn insert(bucket: &Bucket, key: &Key, state: State, now: u16, must: bool) -> Option<usize> {
    bucket.insert(key, state, now, &IDLE, must, is_stale).map(|(way, _)| way)
}

fn state(id: u64, phase: u8, seen: u16) -> State {
    State::forward(id as u16, Be16::new(id as u16), 0, phase, seen)
}

/// The kind of an entry, when another flow needs its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    Free,
    Expired,
    Closed,
    Stale,
    /// A SYN was seen this many ticks ago, and nothing since.
    Opening(u16),
    /// A single datagram was seen this many ticks ago.
    Datagram(u16),
    /// Established, and idle for this many ticks.
    Established(u16),
    Udp(u16),
    /// Closed in this tick: a late packet may still come.
    Closing,
}

/// How readily it is evicted: the larger number first. Entries below [`WILLING`] are evicted only for flows
/// that need an entry.
fn readiness(kind: Kind) -> u32 {
    match kind {
        Kind::Free => 4,
        Kind::Expired | Kind::Closed | Kind::Stale => 3,
        Kind::Opening(age) | Kind::Datagram(age) if age >= 2 => 2,
        Kind::Opening(_) | Kind::Datagram(_) => 1,
        Kind::Established(_) | Kind::Udp(_) | Kind::Closing => 0,
    }
}

const WILLING: u32 = 2;

/// Entries above this are evicted in any order; among the others, the one that is idle longest is first.
const BY_AGE: u32 = 2;

fn age(kind: Kind) -> u16 {
    match kind {
        Kind::Opening(age) | Kind::Datagram(age) | Kind::Established(age) | Kind::Udp(age) => age,
        Kind::Closed => 2,
        Kind::Expired => IDLE.established + 1,
        Kind::Free | Kind::Stale | Kind::Closing => 0,
    }
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        Just(Kind::Free),
        Just(Kind::Expired),
        Just(Kind::Closed),
        Just(Kind::Stale),
        (0..=IDLE.opening).prop_map(Kind::Opening),
        (0..4_u16).prop_map(Kind::Opening),
        (0..4_u16).prop_map(Kind::Datagram),
        (0..=IDLE.established).prop_map(Kind::Established),
        (0..=IDLE.udp).prop_map(Kind::Udp),
        Just(Kind::Closing),
    ]
}

fn entry(id: u64, kind: Kind, now: u16) -> State {
    let seen = now.wrapping_sub(age(kind));
    match kind {
        Kind::Opening(_) => state(id, 0, seen),
        Kind::Datagram(_) => state(id, UDP, seen),
        Kind::Udp(_) => state(id, UDP | ESTABLISHED, seen),
        Kind::Closed | Kind::Closing => state(id, ESTABLISHED | CLIENT_FIN | BACKEND_FIN, seen),
        Kind::Stale => State::forward(id as u16, Be16::new(0), STALE, ESTABLISHED, seen),
        Kind::Free | Kind::Expired | Kind::Established(_) => state(id, ESTABLISHED, seen),
    }
}

/// A bucket of such entries, with keys 0 to 3.
fn filled(kinds: &[Kind], now: u16) -> Bucket {
    let bucket = Bucket::default();
    // Free entries are filled first, and removed again when all are there.
    for id in 0..WAYS as u64 {
        let way = insert(&bucket, &key(id), state(id, ESTABLISHED, now), now, false);
        assert_eq!(way, Some(id as usize), "free entries are taken in order");
    }
    for (id, kind) in kinds.iter().enumerate() {
        let (way, old) = bucket.find(&key(id as u64)).expect("just recorded");
        match kind {
            Kind::Free => assert!(bucket.entries[way].remove(old)),
            _ => assert!(bucket.entries[way].replace(old, entry(id as u64, *kind, now))),
        }
    }
    bucket
}

proptest! {
    #[test]
    fn the_entry_of_the_lowest_rank_is_evicted(
        kinds in vec(kind(), WAYS),
        now: u16,
        must: bool,
    ) {
        let bucket = filled(&kinds, now);
        let newcomer = state(99, 0, now);
        let taken = insert(&bucket, &key(99), newcomer, now, must);

        let best = kinds.iter().copied().map(readiness).max().expect("four");
        match taken {
            None => prop_assert!(best < WILLING && !must, "{kinds:?}"),
            Some(way) => {
                let gone = kinds[way];
                prop_assert_eq!(readiness(gone), best, "{:?} of {:?}", gone, kinds);
                prop_assert!(best >= WILLING || must);
                if best <= BY_AGE {
                    let rivals = kinds.iter().copied().filter(|other| readiness(*other) == best);
                    prop_assert_eq!(Some(age(gone)), rivals.map(age).max(), "{:?}", kinds);
                }
                prop_assert_eq!(bucket.find(&key(99)), Some((way, newcomer)));
                prop_assert_eq!(bucket.find(&key(way as u64)), None);
            }
        }
        for (way, kind) in kinds.iter().enumerate().filter(|(way, _)| taken != Some(*way)) {
            let expected = (*kind != Kind::Free).then(|| (way, entry(way as u64, *kind, now)));
            prop_assert_eq!(bucket.find(&key(way as u64)), expected, "a bystander");
        }
    }

    /// A SYN flood evicts its own entries, and never an established flow.
    #[test]
    fn established_flows_outlive_any_number_of_opening_ones(
        floods in vec((2..0xffff_u64, 0..10_u16), 1..100),
    ) {
        let bucket = Bucket::default();
        insert(&bucket, &key(0), state(0, ESTABLISHED, 0), 0, false);
        insert(&bucket, &key(1), state(1, UDP | ESTABLISHED, 0), 0, false);
        let mut now = 0;
        for (id, pause) in floods {
            now = (now + pause).min(IDLE.udp);
            insert(&bucket, &key(id), state(id, 0, now), now, false);
            prop_assert!(bucket.find(&key(0)).is_some() && bucket.find(&key(1)).is_some());
        }
    }

    #[test]
    fn keys_that_differ_anywhere_are_different_flows(
        a: (u64, u64, u16, u16, u16, bool, u8),
        b: (u64, u64, u16, u16, u16, bool, u8),
        same in vec(any::<bool>(), 7),
    ) {
        let pick = |i: usize| same[i];
        let b = (
            if pick(0) { a.0 } else { b.0 },
            if pick(1) { a.1 } else { b.1 },
            if pick(2) { a.2 } else { b.2 },
            if pick(3) { a.3 } else { b.3 },
            if pick(4) { a.4 } else { b.4 },
            if pick(5) { a.5 } else { b.5 },
            if pick(6) { a.6 } else { b.6 },
        );
        let normal = |t: (u64, u64, u16, u16, u16, bool, u8)| (t.0, t.1, t.2, t.3, t.4, t.5, t.6 % 3);
        let key = |t: (u64, u64, u16, u16, u16, bool, u8)| {
            let (hi, lo, remote_port, local_port, local, tcp, direction) = normal(t);
            let direction = [Direction::Forward, Direction::Reply, Direction::TransparentReply][direction as usize];
            let l4 = if tcp { L4::Tcp } else { L4::Udp };
            Key::new(Addr { hi, lo }, Be16::new(remote_port), Be16::new(local_port), local, l4, direction)
        };
        let bucket = Bucket::default();
        insert(&bucket, &key(a), state(1, ESTABLISHED, 0), 0, false);
        prop_assert_eq!(bucket.find(&key(b)).is_some(), normal(a) == normal(b));
        let k = key(a);
        prop_assert_eq!((k.remote(), k.remote_port().get(), k.local_port().get(), k.local()),
            (Addr { hi: a.0, lo: a.1 }, a.2, a.3, a.4));
        prop_assert_eq!(k.protocol(), if a.5 { 6 } else { 17 });
    }

    #[test]
    fn a_state_keeps_its_parts_apart(backend: u16, port: u16, generation: u8, place: u32, phase in 0..128_u8, now: u16) {
        let forward = State::forward(backend, Be16::new(port), generation, phase, now);
        prop_assert_eq!((forward.backend(), forward.snat_port().get(), forward.generation()), (backend, port, generation));
        prop_assert_eq!((forward.phase(), forward.seen()), (phase | LIVE, now));
        let reply = State::reply(place, Mark::from_byte(generation), phase, now);
        prop_assert_eq!((reply.place(), reply.mark().byte()), (place, generation));
        prop_assert_eq!((reply.phase(), reply.seen()), (phase | LIVE, now));
        prop_assert!(forward.is_live() && reply.is_live());
    }

    /// Ticks wrap around after nine hours; an idle time is never longer than that.
    #[test]
    fn idle_time_is_counted_across_the_wrap(seen: u16, idle_for in 0..u16::MAX - 8, ahead in 1..=8_u16) {
        for (phase, limit) in [
            (0, IDLE.opening),
            (ESTABLISHED, IDLE.established),
            (ESTABLISHED | CLIENT_FIN, IDLE.established),
            (ESTABLISHED | BACKEND_FIN, IDLE.established),
            (CLIENT_FIN, IDLE.opening),
            (ESTABLISHED | CLIENT_FIN | BACKEND_FIN, IDLE.closing),
            (ESTABLISHED | ONE_WAY, IDLE.established),
            (ESTABLISHED | ONE_WAY | CLIENT_FIN, IDLE.closing),
            (ESTABLISHED | RESET, IDLE.closing),
            (UDP, IDLE.udp),
            (UDP | ESTABLISHED, IDLE.udp),
        ] {
            let expired = state(1, phase, seen).is_expired(seen.wrapping_add(idle_for), &IDLE);
            prop_assert_eq!(expired, idle_for > limit, "phase {}", phase);
            let early = state(1, phase, seen).is_expired(seen.wrapping_sub(ahead), &IDLE);
            prop_assert!(!early, "a packet that came since the clock was read is no old one");
        }
    }

    /// A connection is closed when both sides have sent a FIN since the client's SYN, or when its last packet
    /// was a reset.
    #[test]
    fn a_connection_closes_by_both_fins_or_a_last_reset(
        packets in vec((any::<bool>(), prop::bits::u8::masked(FIN | SYN | RST | ACK)), 0..12),
    ) {
        let mut phase = first_phase(L4::Tcp, TcpFlags(SYN));
        let (mut fins, mut went_through) = ([false, false], false);
        for (from_client, flags) in packets {
            phase = next_phase(phase, TcpFlags(flags), from_client);
            let reset = flags & RST != 0;
            if !reset {
                if from_client && flags & (SYN | ACK) == SYN {
                    fins = [false, false];
                }
                fins[from_client as usize] |= flags & FIN != 0;
                went_through |= from_client && flags & (SYN | ACK) == ACK;
            }
            let state = state(1, phase, 0);
            prop_assert_eq!(state.is_closed(), fins == [true, true] || reset);
            prop_assert_eq!(phase & ESTABLISHED != 0, went_through);
            prop_assert!(phase & UDP == 0);
        }
    }
}

#[test]
fn the_first_packet_decides_where_a_flow_starts() {
    for (l4, flags, expected) in [
        (L4::Tcp, SYN, 0),
        (L4::Tcp, SYN | ACK, 0),
        (L4::Tcp, ACK, ESTABLISHED),
        (L4::Tcp, FIN | ACK, CLIENT_FIN),
        (L4::Tcp, RST, RESET),
        (L4::Tcp, RST | ACK, RESET),
        (L4::Udp, 0, UDP),
    ] {
        assert_eq!(first_phase(l4, TcpFlags(flags)), expected, "{l4} {flags:#04x}");
    }
}

#[test]
fn every_kind_of_packet_moves_a_flow_as_the_table_says() {
    const CLIENT: bool = true;
    const BACKEND: bool = false;
    for (what, phase, flags, from, expected) in [
        ("a retransmitted SYN", LIVE, SYN, CLIENT, LIVE),
        ("the backend's SYN-ACK", LIVE, SYN | ACK, BACKEND, LIVE),
        ("the client's ACK", LIVE, ACK, CLIENT, LIVE | ESTABLISHED),
        ("data from the backend alone proves nothing", LIVE, ACK, BACKEND, LIVE),
        ("data", LIVE | ESTABLISHED, ACK, CLIENT, LIVE | ESTABLISHED),
        ("the client's FIN", LIVE | ESTABLISHED, FIN | ACK, CLIENT, LIVE | ESTABLISHED | CLIENT_FIN),
        ("the backend's FIN", LIVE | ESTABLISHED, FIN | ACK, BACKEND, LIVE | ESTABLISHED | BACKEND_FIN),
        (
            "the other FIN",
            LIVE | ESTABLISHED | CLIENT_FIN,
            FIN | ACK,
            BACKEND,
            LIVE | ESTABLISHED | CLIENT_FIN | BACKEND_FIN,
        ),
        (
            "the last ACK leaves it closed",
            LIVE | ESTABLISHED | CLIENT_FIN | BACKEND_FIN,
            ACK,
            CLIENT,
            LIVE | ESTABLISHED | CLIENT_FIN | BACKEND_FIN,
        ),
        ("a reset", LIVE | ESTABLISHED, RST, CLIENT, LIVE | ESTABLISHED | RESET),
        ("the backend's reset", LIVE | ESTABLISHED, RST | ACK, BACKEND, LIVE | ESTABLISHED | RESET),
        ("a reset that refuses", LIVE, RST | ACK, BACKEND, LIVE | RESET),
        ("data after a forged reset", LIVE | ESTABLISHED | RESET, ACK, CLIENT, LIVE | ESTABLISHED),
        ("the backend's, too", LIVE | ESTABLISHED | RESET, ACK, BACKEND, LIVE | ESTABLISHED),
        ("a reset with a FIN is a reset", LIVE | ESTABLISHED, RST | FIN, CLIENT, LIVE | ESTABLISHED | RESET),
        ("a second datagram", LIVE | UDP, 0, CLIENT, LIVE | UDP | ESTABLISHED),
        ("a datagram back", LIVE | UDP, 0, BACKEND, LIVE | UDP | ESTABLISHED),
        ("more of them", LIVE | UDP | ESTABLISHED, 0, BACKEND, LIVE | UDP | ESTABLISHED),
    ] {
        assert_eq!(next_phase(phase, TcpFlags(flags), from), expected, "{what}");
    }
}

#[test]
fn notes_change_time_and_phase_and_nothing_else() {
    let bucket = Bucket::default();
    let first = State::forward(7, Be16::new(4000), 3, 0, 10);
    let way = insert(&bucket, &key(1), first, 10, false).expect("room");
    bucket.entries[way].touch(first, ESTABLISHED | LIVE, 12);
    assert_eq!(bucket.find(&key(1)), Some((way, State::forward(7, Be16::new(4000), 3, ESTABLISHED, 12))));
    // A touch that is older than the entry does not change its time.
    bucket.entries[way].touch(first, LIVE, 11);
    assert_eq!(bucket.find(&key(1)).map(|(_, state)| state.seen()), Some(12));
    // It does change the phase.
    bucket.entries[way].touch(first, LIVE | BACKEND_FIN, 11);
    let both = State::forward(7, Be16::new(4000), 3, ESTABLISHED | BACKEND_FIN, 12);
    assert_eq!(bucket.find(&key(1)), Some((way, both)));
    // A removal with an old state has no effect either.
    bucket.entries[way].remove(first);
    let (_, now) = bucket.find(&key(1)).expect("still there");
    bucket.entries[way].remove(now);
    assert_eq!(bucket.find(&key(1)), None);
    assert_eq!(bucket.entries[way].snapshot(), None);
}
