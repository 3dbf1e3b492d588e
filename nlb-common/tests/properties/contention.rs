//! The flow table under many threads: a look-up finds the entry of its own flow, or none.

use std::thread;

use nlb_common::flow::{Bucket, Direction, IdleTimes, Key, State, phase};
use nlb_common::net::{Addr, Be16, L4};

const THREADS: u64 = 4;
const ROUNDS: u64 = 2_000_000;

/// More flows than the bucket has entries, so that they evict each other.
const FLOWS: u64 = 11;

const IDLE: IdleTimes = IdleTimes { opening: 0, established: 0, closing: 0, udp: 0, time_wait: 0 };

/// Every word of the key depends on the flow, so that a mixture of two keys is the key of no flow.
fn key(flow: u64) -> Key {
    let port = Be16::new(flow as u16);
    Key::new(Addr { hi: flow << 32 | flow, lo: !flow }, port, port, flow as u16, L4::Udp, Direction::Forward)
}

/// The payload depends on the flow. The rest differs each time, since readers of the table cannot tell two
/// equal states apart.
fn state(flow: u64, thread: u64, round: u64) -> State {
    let distinct = (thread * ROUNDS + round) as u32;
    State::forward(flow as u16, Be16::new(distinct as u16), (distinct >> 16) as u8, phase::UDP, round as u16)
}

const _: () = assert!(THREADS * ROUNDS < 1 << 24, "every payload is used once");

#[test]
fn a_lookup_returns_the_value_of_its_own_key() {
    let bucket = Bucket::default();
    let found: u64 = thread::scope(|scope| {
        let threads: Vec<_> = (0..THREADS)
            .map(|thread| {
                let bucket = &bucket;
                scope.spawn(move || hammer(bucket, thread))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().expect("no mixture was found")).sum()
    });
    assert!(found > ROUNDS / 100, "{found} finds say little");
    let left = bucket.entries.iter().filter_map(|entry| entry.snapshot());
    for (key_there, state) in left {
        assert_eq!(key_there, key(u64::from(state.backend())), "left behind");
    }
}

/// Records, finds, touches and removes flows as fast as it can; returns how many it found.
fn hammer(bucket: &Bucket, thread: u64) -> u64 {
    let mut random = thread + 1;
    let mut found = 0;
    for round in 0..ROUNDS {
        // A multiplicative generator (Lehmer), since no two threads may do the same.
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let flow = (random >> 33) % FLOWS;
        match bucket.find(&key(flow)) {
            Some((way, state)) => {
                assert_eq!(u64::from(state.backend()), flow, "another flow's payload");
                found += 1;
                match random >> 61 {
                    0..=2 => {
                        bucket.entries[way].touch(state, state.phase() | phase::ESTABLISHED, round as u16);
                    }
                    3 => drop(bucket.entries[way].remove(state)),
                    _ => {}
                }
            }
            None => {
                let new = state(flow, thread, round);
                bucket.insert(&key(flow), new, round as u16, &IDLE, true, |_, _| false);
            }
        }
        if let Some((key_there, state)) = bucket.entries[(random >> 40) as usize % 4].snapshot() {
            assert_eq!(key_there, key(u64::from(state.backend())), "a snapshot of two flows");
        }
    }
    found
}
