//! The next-hop cache: how long the program uses the result of a look-up in the kernel's FIB.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use nlb::datapath::maps::bpf::FibGeneration;
use nlb::model::ForwardMode;
use nlb_testkit::cpu;
use nlb_testkit::process::MAX_WAIT;

use crate::packet::{ACK, Packet, SYN, Transport};
use crate::rig::{Family, Rig, XDP_REDIRECT, XDP_TX, families, source_port};

/// A rig on one CPU, so with one cache, and its FIB generation.
fn rig() -> Result<(Rig, FibGeneration)> {
    cpu::stay_on(*cpu::available()?.first().context("no CPU to run on")?)?;
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let changed = rig.fib_generation()?;
    Ok((rig, changed))
}

/// A backend's answer to the client's SYN.
fn answer(rig: &mut Rig, family: &Family) -> Result<Packet> {
    let syn = rig.run(&family.syn())?;
    ensure!(syn.action == XDP_REDIRECT, "a SYN: {syn:?}");
    let request = family.translated(&family.syn(), source_port(&syn.frame));
    Ok(family.answer(&request, Transport::Tcp { flags: SYN | ACK, seq: 9000 }))
}

/// The counted exit of a packet to the client.
fn exit(rig: &mut Rig, packet: &Packet) -> Result<String> {
    let outcome = rig.run(packet)?;
    outcome.counted.into_keys().next().context("every packet has an exit")
}

fn neighbour(rig: &Rig, family: &Family, there: bool) -> Result<()> {
    let client = family.client.to_string();
    let rest: &[_] = if there { &["lladdr", "02:00:00:00:00:c1", "nud", "permanent"] } else { &[] };
    let verb = if there { "replace" } else { "del" };
    rig.namespace().ip(&[&["neigh", verb, &client, "dev", "up0"], rest].concat()).map(drop)
}

#[test]
fn next_hop_is_cached_until_the_fib_generation_changes() -> Result<()> {
    let (mut rig, changed) = rig()?;
    for family in families() {
        let answer = answer(&mut rig, &family)?;
        // A tick may end between two packets, so this is repeated until a cached next hop was used.
        let started = Instant::now();
        let mut cached = false;
        while !cached {
            ensure!(started.elapsed() < MAX_WAIT, "every packet to {} was looked up", family.client);
            neighbour(&rig, &family, true)?;
            ensure!(exit(&mut rig, &answer)? == "send reply");
            neighbour(&rig, &family, false)?;
            cached = exit(&mut rig, &answer)? == "send reply";
            changed.count();
            ensure!(
                exit(&mut rig, &answer)? == "park next_hop",
                "to {}, after a new FIB generation",
                family.client
            );
        }
    }
    Ok(())
}

#[test]
fn next_hop_is_cached_for_a_tick_at_most() -> Result<()> {
    let (mut rig, _changed) = rig()?;
    for family in families() {
        let answer = answer(&mut rig, &family)?;
        ensure!(exit(&mut rig, &answer)? == "send reply");
        neighbour(&rig, &family, false)?;
        rig.wait_ticks(1)?;
        ensure!(exit(&mut rig, &answer)? == "park next_hop", "to {}, a tick later", family.client);
    }
    Ok(())
}

#[test]
fn a_packet_too_long_for_a_cached_next_hop_is_too_big() -> Result<()> {
    let (mut rig, _changed) = rig()?;
    rig.namespace().ip(&["link", "set", "up0", "mtu", "1400"])?;
    for family in families() {
        let answer = answer(&mut rig, &family)?;
        let headers = if family.vip.is_ipv4() { 40 } else { 60 };
        for (len, expected) in [(1400, "send reply"), (1401, "send too_big")] {
            // The first packet is looked up in the FIB, and its result is cached for the second.
            ensure!(exit(&mut rig, &answer)? == "send reply");
            let outcome = rig.run(&answer.with(|p| p.payload = vec![0x2a; len - headers]))?;
            assert_eq!(outcome.counted, [(expected.to_owned(), 1)].into(), "{len} bytes from {}", family.vip);
            assert_eq!(outcome.action == XDP_TX, expected == "send too_big", "it goes back to the backend");
        }
    }
    Ok(())
}
