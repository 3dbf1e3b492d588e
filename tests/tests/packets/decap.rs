//! `nlb decap`: the receiving end of dsr-ipip.

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use nlb::compile::Addr128;
use nlb::loader::Datapath;
use nlb::maps::bpf;

use crate::packet::{Outer, Packet};
use crate::rig::{XDP_DROP, XDP_PASS, families, test_run};

/// A decapsulator that trusts the families' source addresses.
fn decapsulator() -> Result<Datapath> {
    let mut datapath = Datapath::load_decap()?;
    let mut peers = bpf::peers(&mut datapath.bpf)?;
    for family in families() {
        let prefix = Addr128::from(Some(ipnet::IpNet::from(family.source)));
        peers.insert(&Key::new(prefix.bits as u32, prefix.addr), 1, 0)?;
    }
    Ok(datapath)
}

fn wrapped(packet: &Packet, outer: Outer) -> Packet {
    packet.with(|p| p.outer = Some(outer))
}

#[test]
fn every_pair_of_families_is_unwrapped() -> Result<()> {
    let mut datapath = decapsulator()?;
    for inner in families() {
        for outer in families() {
            for packet in [
                inner.syn(),
                inner.udp(),
                inner.ack().with(|p| p.tags = vec![(0x8100, 42)]),
                inner.ack().with(|p| p.tags = vec![(0x88a8, 42), (0x8100, 7)]),
                inner.ack().with(|p| p.padding = vec![0xee; 5]),
            ] {
                let (action, frame) =
                    test_run(datapath.decapsulator()?, &wrapped(&packet, Outer::of(&outer, 7)).bytes())?;
                assert_eq!((action, frame), (XDP_PASS, packet.bytes()));
            }
        }
    }
    Ok(())
}

#[test]
fn row_28_strangers_tunnels_are_left_alone() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        let outer = Outer { src: family.stranger, ..Outer::of(&family, 7) };
        for packet in [wrapped(&family.syn(), outer), family.syn()] {
            let (action, frame) = test_run(datapath.decapsulator()?, &packet.bytes())?;
            assert_eq!((action, frame), (XDP_PASS, packet.bytes()));
        }
    }
    Ok(())
}

#[test]
fn a_broken_inner_packet_is_dropped() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        let inner_at = if family.vip.is_ipv4() { 34 } else { 54 };
        let good = wrapped(&family.syn(), Outer::of(&family, 7)).bytes();
        let mut wrong_version = good.clone();
        wrong_version[inner_at] ^= 0x20;
        let mut too_long = good.clone();
        let length_at = inner_at + if family.vip.is_ipv4() { 3 } else { 5 };
        too_long[length_at] += 1;
        for frame in [wrong_version, too_long] {
            assert_eq!(test_run(datapath.decapsulator()?, &frame)?.0, XDP_DROP);
        }
    }
    Ok(())
}
