//! Upcalls about destinations that no route covers.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use anyhow::Result;
use nlb::model::destination::L4Destination;
use nlb::model::upcall::{QUEUE, Question};
use nlb::model::{ForwardMode, L4};
use nlb_common::upcall::{NEGATIVE_TTL, PENDING_TTL, negative, pending};

use crate::packet::{ACK, Packet, RST, SYN, Transport};
use crate::rig::{Family, Outcome, Rig, XDP_DROP, XDP_PASS, families, test_run};

/// A port without a service.
const PORT: u16 = 4444;

/// Longer than any test, in nanoseconds.
const HOUR: u64 = 3_600_000_000_000;

/// Keeps a question pending for as long as the test runs.
fn keep_pending(rig: &mut Rig, question: &Question) -> Result<()> {
    rig.answer_upcall(question, pending(question.asked_at + HOUR))
}

fn learning() -> Result<Rig> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    rig.desired.learn_routes = true;
    rig.apply()?;
    Ok(rig)
}

fn syn(family: &Family) -> Packet {
    family.syn().with(|p| p.dport = PORT)
}

fn datagram(family: &Family) -> Packet {
    family.udp().with(|p| p.dport = PORT)
}

#[track_caller]
fn assert_pending(outcome: &Outcome) {
    assert_eq!((outcome.action, &outcome.counted), (XDP_DROP, &[("drop asking".to_owned(), 1)].into()));
}

#[track_caller]
fn assert_closed(outcome: &Outcome) {
    assert_eq!((outcome.action, &outcome.counted), (XDP_PASS, &[("pass closed_port".to_owned(), 1)].into()));
}

#[test]
fn first_packet_raises_an_upcall_and_others_are_dropped() -> Result<()> {
    let mut rig = learning()?;
    for family in families() {
        for (packet, l4) in [(syn(&family), L4::Tcp), (datagram(&family), L4::Udp)] {
            assert_pending(&rig.run(&packet)?);
            let questions = rig.questions();
            assert_eq!(questions.len(), 1, "{questions:?}");
            keep_pending(&mut rig, &questions[0])?;
            for client_port in [40_001, 40_000] {
                assert_pending(&rig.run(&packet.with(|p| p.sport = client_port))?);
                assert_eq!(rig.questions(), []);
            }
            assert_eq!(questions[0].destination, L4Destination { vip: family.vip, port: PORT, l4 });
            assert_eq!(questions[0].client, SocketAddr::new(family.client, 40_000));
        }
        assert_pending(&rig.run(&syn(&family).with(|p| p.dst = family.vip2))?);
        assert_pending(&rig.run(&syn(&family).with(|p| p.dport = PORT + 1))?);
        let destination: Vec<_> = rig.questions().iter().map(|question| question.destination).collect();
        let elsewhere = L4Destination { vip: family.vip2, port: PORT, l4: L4::Tcp };
        assert_eq!(destination, [elsewhere, L4Destination { vip: family.vip, port: PORT + 1, l4: L4::Tcp }]);
    }
    Ok(())
}

#[test]
fn packets_on_all_cpus_raise_one_upcall() -> Result<()> {
    let mut rig = learning()?;
    let family = families()[0];
    for round in 0..200 {
        let port = PORT + round;
        let frame = family.syn().with(|p| p.dport = port).bytes();
        let actions = rig.on_each_cpu(|program| {
            (0..5).map(|_| Ok(test_run(program, &frame)?.0)).collect::<Result<BTreeSet<u32>>>()
        })?;
        assert!(actions.iter().all(|actions| actions.iter().eq([&XDP_DROP])), "{actions:?}");
        let questions = rig.questions();
        assert_eq!(questions.len(), 1, "{questions:?}");
        // After the negative state has ended, the entry exists already.
        rig.answer_upcall(&questions[0], negative(questions[0].asked_at))?;
        rig.on_each_cpu(|program| (0..5).try_for_each(|_| test_run(program, &frame).map(drop)))?;
        assert_eq!(rig.questions().len(), 1);
    }
    Ok(())
}

#[test]
fn only_packets_that_open_a_flow_raise_upcalls() -> Result<()> {
    let mut rig = learning()?;
    for family in families() {
        for flags in [ACK, RST, SYN | ACK] {
            let packet = syn(&family).with(|p| p.l4 = Transport::Tcp { flags, seq: 7 });
            assert_closed(&rig.run(&packet)?);
            assert_eq!(rig.questions(), []);
        }
        assert_pending(&rig.run(&syn(&family))?);
        let established = syn(&family).with(|p| p.l4 = Transport::Tcp { flags: ACK, seq: 7 });
        assert_closed(&rig.run(&established)?);
        assert_eq!(rig.questions().len(), 1);
    }
    Ok(())
}

#[test]
fn negative_destination_is_closed_until_its_ttl_ends() -> Result<()> {
    let mut rig = learning()?;
    for family in families() {
        for packet in [syn(&family), datagram(&family)] {
            rig.run(&packet)?;
            let question = &rig.questions()[0];
            rig.answer_upcall(question, negative(question.asked_at + HOUR))?;
            assert_closed(&rig.run(&packet)?);
            assert_closed(&rig.run(&packet)?);
            assert_eq!(rig.questions(), []);
            rig.answer_upcall(question, negative(question.asked_at))?;
            assert_pending(&rig.run(&packet)?);
            let questions = rig.questions();
            assert_eq!(questions.len(), 1, "one question after the answer has ended");
            keep_pending(&mut rig, &questions[0])?;
            assert_pending(&rig.run(&packet)?);
            assert_eq!(rig.questions(), []);
        }
    }
    // Closed ports are dropped if that is configured.
    rig.desired.drop_closed_ports = true;
    rig.apply()?;
    let packet = syn(&families()[0]).with(|p| p.dport = PORT + 1);
    assert_pending(&rig.run(&packet)?);
    let question = &rig.questions()[0];
    rig.answer_upcall(question, negative(question.asked_at + HOUR))?;
    assert_eq!(rig.run(&packet)?.counted, [("drop closed_port".to_owned(), 1)].into());
    Ok(())
}

#[test]
fn destination_is_closed_after_an_upcall_without_an_answer() -> Result<()> {
    let mut rig = learning()?;
    let packet = syn(&families()[0]);
    rig.run(&packet)?;
    let question = &rig.questions()[0];
    // The state of a question that was raised so long before.
    let asked_before = |nanoseconds: u64| pending(question.asked_at - nanoseconds);
    rig.answer_upcall(question, asked_before(PENDING_TTL))?;
    assert_closed(&rig.run(&packet)?);
    assert_eq!(rig.questions(), []);
    rig.answer_upcall(question, asked_before(PENDING_TTL + NEGATIVE_TTL))?;
    assert_pending(&rig.run(&packet)?);
    assert_eq!(rig.questions().len(), 1);
    Ok(())
}

#[test]
fn upcall_without_room_in_the_ring_buffer_is_counted() -> Result<()> {
    let mut rig = learning()?;
    let family = families()[0];
    let at = |port: u16| family.syn().with(|p| p.dport = port);
    let mut refused = Vec::new();
    for port in 10_000..10_000 + 2 * QUEUE as u16 {
        let outcome = rig.run(&at(port))?;
        if outcome.counted.contains_key("unasked") {
            assert_eq!(outcome.action, XDP_PASS);
            assert_eq!(
                outcome.counted,
                [("pass closed_port".to_owned(), 1), ("unasked".to_owned(), 1)].into()
            );
            refused.push(port);
        } else {
            assert_pending(&outcome);
            assert!(refused.is_empty(), "an upcall after the ring buffer was full");
        }
        if refused.len() == 10 {
            break;
        }
    }
    let first_refused = *refused.first().expect("the ring buffer is bounded");
    // The last question is still pending. The first may have expired on an emulated machine.
    assert_pending(&rig.run(&at(first_refused - 1))?);
    assert_eq!(rig.questions().len(), usize::from(first_refused - 10_000));
    assert_pending(&rig.run(&at(first_refused))?);
    assert_eq!(rig.questions().len(), 1, "an upcall after the ring buffer was emptied");
    Ok(())
}

#[test]
fn no_upcall_is_raised_without_learn_routes() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        assert_closed(&rig.run(&syn(&family))?);
        assert_closed(&rig.run(&datagram(&family))?);
    }
    assert_eq!(rig.questions(), []);
    Ok(())
}

#[test]
fn services_raise_no_upcall_and_vips_without_routes_do() -> Result<()> {
    let mut rig = learning()?;
    for family in families() {
        assert_eq!(rig.run(&family.syn())?.counted, [("send forward".to_owned(), 1)].into());
        assert_eq!(rig.run(&family.udp())?.counted, [("send forward".to_owned(), 1)].into());
        assert_eq!(rig.questions(), []);
    }
    rig.desired.modules.clear();
    rig.apply()?;
    for family in families() {
        assert_pending(&rig.run(&family.syn())?);
        assert_eq!(rig.questions().len(), 1);
    }
    Ok(())
}
