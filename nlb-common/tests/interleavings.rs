//! The tables that packets read while others write them, in every interleaving of a few threads, with every
//! value that a load may see on x86. loom runs the interleavings one by one; `contention` in `properties`
//! uses real threads, which run into some interleavings often and into others never.
//!
//! Built with `--cfg loom` only, as `cargo xtask test` does (docs/testing.md).
#![cfg(loom)]

use loom::sync::Arc;
use loom::thread::{self, JoinHandle};
use nlb_common::capacity::Capacity;
use nlb_common::flow::{Bucket, Direction, IdleTimes, Key, State, next_phase, phase};
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::TcpFlags;
use nlb_common::prefix::{self, Value};

const IDLE: IdleTimes = IdleTimes { opening: 0, established: 1000, closing: 0, udp: 1000, time_wait: 0 };

/// The flows of a full bucket, by number; the first is idle longest, and so the one to be evicted.
const OLD: [u16; 4] = [1, 2, 3, 4];
const NOW: u16 = 100;

/// Every word of the key depends on the flow, so that a mixture of two keys is the key of no flow.
fn key(flow: u16) -> Key {
    let port = Be16::new(flow);
    let addr = Addr { hi: flow.into(), lo: !u64::from(flow) };
    Key::new(addr, port, port, flow, L4::Udp, Direction::Forward)
}

/// The backend depends on the flow.
fn state(flow: u16, seen: u16) -> State {
    State::forward(flow, Be16::new(flow), 0, phase::UDP | phase::ESTABLISHED, seen)
}

fn full() -> Arc<Bucket> {
    let bucket = Bucket::default();
    for flow in OLD {
        assert!(record(&bucket, flow, 90 + flow).is_some());
    }
    Arc::new(bucket)
}

/// Records a flow, and evicts another if it has to.
fn record(bucket: &Bucket, flow: u16, now: u16) -> Option<usize> {
    bucket.insert(&key(flow), state(flow, now), now, &IDLE, true, |_, _| false).map(|(way, _)| way)
}

/// A thread that records a flow.
fn writer(bucket: &Arc<Bucket>, flow: u16) -> JoinHandle<Option<usize>> {
    let bucket = bucket.clone();
    thread::spawn(move || record(&bucket, flow, NOW))
}

/// Looks a flow up, and checks that what it finds is its own.
fn find(bucket: &Bucket, flow: u16) -> Option<(usize, State)> {
    let found = bucket.find(&key(flow));
    if let Some((_, state)) = found {
        assert_eq!(state.backend(), flow, "another flow's backend");
        assert_eq!(state.snat_port(), Be16::new(flow), "another flow's port");
    }
    found
}

/// Checks that every entry belongs to one flow, and no flow has two.
fn is_sound(bucket: &Bucket) {
    let mut seen = Vec::new();
    for entry in &bucket.entries {
        let (there, state) = entry.snapshot().expect("nobody is at work any more");
        assert_eq!(there, key(state.backend()), "a mixture was left behind");
        assert!(!seen.contains(&state.backend()), "flow {} is there twice", state.backend());
        seen.push(state.backend());
    }
}

#[test]
fn a_reader_meets_the_old_flow_or_the_new_one_or_none() {
    loom::model(|| {
        let bucket = full();
        let writer = writer(&bucket, 9);
        find(&bucket, 1);
        find(&bucket, 9);
        assert!(writer.join().unwrap().is_some(), "nobody was in its way");
        assert!(find(&bucket, 9).is_some() && find(&bucket, 1).is_none());
        is_sound(&bucket);
    });
}

#[test]
fn of_two_writers_to_an_entry_one_wins_and_the_other_knows() {
    loom::model(|| {
        let bucket = full();
        let writers = [8, 9].map(|flow| writer(&bucket, flow));
        let won = writers.map(|writer| writer.join().unwrap().is_some());
        assert!(won.contains(&true), "one of them was first");
        // The second may come late enough to evict the first, or another.
        let there = [8, 9].map(|flow| find(&bucket, flow).is_some());
        assert!(there.contains(&true));
        for (won, there) in won.into_iter().zip(there) {
            assert!(won || !there, "one that was told it lost is there");
        }
        is_sound(&bucket);
    });
}

#[test]
fn a_reader_is_not_confused_by_two_writers() {
    loom::model(|| {
        let bucket = full();
        let writers = [8, 9].map(|flow| writer(&bucket, flow));
        find(&bucket, 9);
        for writer in writers {
            writer.join().unwrap();
        }
        is_sound(&bucket);
    });
}

#[test]
fn a_late_packet_of_the_old_flow_does_not_touch_the_new_one() {
    loom::model(|| {
        let bucket = full();
        let writer = writer(&bucket, 9);
        if let Some((way, state)) = find(&bucket, 1) {
            bucket.entries[way].touch(state, state.phase() | phase::ESTABLISHED, NOW + 1);
        }
        writer.join().unwrap();
        is_sound(&bucket);
        if let Some((_, state)) = find(&bucket, 9) {
            assert_eq!(state.seen(), NOW, "the time of another flow's packet");
        }
    });
}

#[test]
fn a_fin_is_not_lost_to_a_packet_at_the_same_time() {
    loom::model(|| {
        let bucket = Arc::new(Bucket::default());
        let open = State::forward(1, Be16::new(1), 0, phase::ESTABLISHED, NOW);
        bucket.insert(&key(1), open, NOW, &IDLE, true, |_, _| false);
        let threads = [phase::CLIENT_FIN, phase::BACKEND_FIN].map(|fin| {
            let bucket = bucket.clone();
            thread::spawn(move || {
                let (way, state) = find(&bucket, 1).expect("nobody takes it away");
                bucket.entries[way].touch(state, state.phase() | fin, NOW + 1);
            })
        });
        for thread in threads {
            thread.join().unwrap();
        }
        let (_, state) = find(&bucket, 1).expect("nobody took it away");
        assert!(state.is_closed(), "a FIN was lost: {:b}", state.phase());
    });
}

#[test]
fn removing_a_flow_removes_no_other() {
    loom::model(|| {
        let bucket = full();
        let writer = writer(&bucket, 9);
        if let Some((way, state)) = find(&bucket, 1) {
            bucket.entries[way].remove(state);
        }
        assert!(writer.join().unwrap().is_some() == find(&bucket, 9).is_some(), "a flow that nobody removed");
    });
}

/// Both words of the address depend on the prefix.
fn host(hi: u32, lo: u32) -> prefix::Key {
    prefix::Key::new(1, Addr { hi: hi.into(), lo: lo.into() }, 128)
}

fn plain(value: u32) -> Value {
    Value { value, longer: false }
}

#[test]
fn a_search_meets_the_old_prefix_or_the_new_one_and_no_mixture() {
    loom::model(|| {
        let entry = Arc::new(prefix::Entry::default());
        entry.publish(&host(1, 1), plain(1));
        let writer = thread::spawn({
            let entry = entry.clone();
            move || {
                entry.clear();
                entry.publish(&host(2, 2), plain(2));
            }
        });
        for n in [1, 2] {
            assert!(entry.matches(&host(n, n)).is_none_or(|found| found.value == n), "the value of another");
        }
        for mixture in [host(1, 2), host(2, 1)] {
            assert_eq!(entry.matches(&mixture), None, "a mixture");
        }
        writer.join().unwrap();
        assert_eq!(entry.matches(&host(2, 2)), Some(plain(2)));
    });
}

#[test]
fn a_search_meets_what_a_prefix_stood_for_or_what_it_will() {
    loom::model(|| {
        let entry = Arc::new(prefix::Entry::default());
        entry.publish(&host(1, 1), plain(1));
        let writer = thread::spawn({
            let entry = entry.clone();
            move || entry.update(Value { value: 2, longer: true })
        });
        let found = entry.matches(&host(1, 1)).expect("it is always there");
        assert!(found == plain(1) || found == Value { value: 2, longer: true }, "{found:?}");
        writer.join().unwrap();
    });
}

#[test]
fn an_instance_gets_no_flow_beyond_its_limit() {
    loom::model(|| {
        let capacity = Arc::new(Capacity::default());
        capacity.set_limit(2);
        assert!(capacity.add());
        let others = [(), ()].map(|()| {
            let capacity = capacity.clone();
            thread::spawn(move || {
                let added = capacity.add();
                assert!(capacity.count().flows() <= 2, "beyond the limit");
                added
            })
        });
        let added = others.map(|thread| thread.join().unwrap());
        assert!(added[0] != added[1], "one of two finds room");
        assert_eq!(capacity.count().flows(), 2);
    });
}

/// A packet closes the flow while the scan finds it idle, or while another flow takes its entry: one of them
/// takes it off the count.
#[test]
fn a_flow_is_taken_off_its_count_once() {
    loom::model(|| {
        let (capacity, bucket) = (Arc::new(Capacity::default()), Arc::new(Bucket::default()));
        capacity.set_limit(5);
        assert!(capacity.add() && capacity.add());
        let open = State::forward(1, Be16::new(1), 0, phase::ESTABLISHED | phase::CLIENT_FIN, NOW);
        bucket.insert(&key(1), open.with_counted(true), NOW, &IDLE, true, |_, _| false);
        let closes = {
            let (capacity, bucket) = (capacity.clone(), bucket.clone());
            thread::spawn(move || {
                let Some((way, state)) = bucket.find(&key(1)) else { return };
                let closed = next_phase(state.phase(), TcpFlags(TcpFlags::FIN | TcpFlags::ACK), false);
                if bucket.entries[way].touch(state, closed, NOW + 1) {
                    assert!(capacity.remove());
                }
            })
        };
        if let Some((way, state)) = bucket.find(&key(1)).filter(|(_, state)| state.is_counted())
            && bucket.entries[way].replace(state, state.with_counted(false))
        {
            assert!(capacity.remove());
        }
        closes.join().unwrap();
        let left = bucket.find(&key(1)).is_some_and(|(_, state)| state.is_counted());
        assert_eq!(capacity.count().flows(), 1 + u32::from(left));
    });
}
