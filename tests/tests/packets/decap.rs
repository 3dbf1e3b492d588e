//! `nlb decap`, which decapsulates packets of dsr-ipip and gue.

use anyhow::Result;
use aya::maps::lpm_trie::Key;
use ipnet::IpNet;
use nlb::datapath::loader::Datapath;
use nlb::datapath::maps::bpf;
use nlb::model::prefix::Addr128;

use crate::packet::{Outer, OuterUdp, Packet, UdpChecksum};
use crate::rig::{Family, GUE_PORT, XDP_DROP, XDP_PASS, families, test_run};

/// A decapsulator that trusts the families' source addresses.
fn decapsulator() -> Result<Datapath> {
    decapsulator_at(GUE_PORT)
}

fn decapsulator_at(gue_port: u16) -> Result<Datapath> {
    trusting(gue_port, &families().map(|family| family.source.into()))
}

pub fn trusting(gue_port: u16, peers: &[IpNet]) -> Result<Datapath> {
    let mut datapath = Datapath::load_decap(gue_port)?;
    let mut trusted = bpf::peers(&mut datapath.bpf)?;
    for peer in peers {
        let prefix = Addr128::from(*peer);
        trusted.insert(&Key::new(prefix.bits as u32, prefix.addr), 1, 0)?;
    }
    Ok(datapath)
}

fn encapsulated(packet: &Packet, outer: Outer) -> Packet {
    packet.with(|p| p.outer = Some(outer))
}

#[test]
fn every_pair_of_families_is_decapsulated() -> Result<()> {
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
                for outer in tunnels(&outer) {
                    let (action, frame) =
                        test_run(datapath.decapsulator()?, &encapsulated(&packet, outer).bytes())?;
                    assert_eq!((action, frame), (XDP_PASS, packet.bytes()));
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_28_tunnel_packets_of_other_sources_pass_unchanged() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        passes_unchanged(&mut datapath, &family.syn().bytes())?;
        for outer in tunnels(&family) {
            let outer = Outer { src: family.stranger, ..outer };
            passes_unchanged(&mut datapath, &encapsulated(&family.syn(), outer).bytes())?;
        }
    }
    Ok(())
}

#[test]
fn malformed_inner_packet_is_dropped() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        for outer in tunnels(&family) {
            let ip_end = if family.vip.is_ipv4() { 34 } else { 54 };
            let inner_at = ip_end + if outer.udp.is_some() { 8 } else { 0 };
            let good = encapsulated(&family.syn(), outer).bytes();
            let mut wrong_version = good.clone();
            // In IP, a version other than the outer header's; in UDP, an unknown one.
            wrong_version[inner_at] ^= if outer.udp.is_some() { 0x10 } else { 0x20 };
            let mut too_long = good.clone();
            let length_at = inner_at + if family.vip.is_ipv4() { 3 } else { 5 };
            too_long[length_at] += 1;
            let mut broken = vec![wrong_version, too_long];
            if outer.udp.is_some() {
                // The datagram is shorter than the inner packet, or longer than the outer one.
                for by in [-1, 1] {
                    let mut frame = good.clone();
                    frame[ip_end + 5] = frame[ip_end + 5].wrapping_add_signed(by);
                    broken.push(frame);
                }
            }
            for frame in broken {
                assert_eq!(test_run(datapath.decapsulator()?, &frame)?.0, XDP_DROP);
            }
        }
    }
    Ok(())
}

/// The inner packet has a checksum of its own.
#[test]
fn wrong_outer_udp_checksum_is_ignored() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        let packet = family.ack();
        let mut frame = encapsulated(&packet, in_udp(&family, UdpChecksum::Computed)).bytes();
        frame[if family.vip.is_ipv4() { 34 } else { 54 } + 6] ^= 0x55;
        assert_eq!(test_run(datapath.decapsulator()?, &frame)?, (XDP_PASS, packet.bytes()));
    }
    Ok(())
}

/// Datagrams that are not GUE variant 1, also from a peer and to GUE's port.
#[test]
fn other_datagrams_pass_unchanged() -> Result<()> {
    let mut datapath = decapsulator()?;
    for family in families() {
        let good = encapsulated(&family.syn(), in_udp(&family, UdpChecksum::Zero)).bytes();
        let udp_at = if family.vip.is_ipv4() { 34 } else { 54 };
        let changed = |at: usize, bytes: &[u8]| {
            let mut frame = good.clone();
            frame[at..at + bytes.len()].copy_from_slice(bytes);
            frame
        };
        passes_unchanged(&mut datapath, &changed(udp_at + 2, &53_u16.to_be_bytes()))?;
        // Variant 0, with a header of four bytes before an IPv4 packet, and unknown variants.
        for first in [0x00, 0x80, 0xc0] {
            passes_unchanged(&mut datapath, &changed(udp_at + 8, &[first, 4, 0, 0]))?;
        }
        if family.vip.is_ipv4() {
            for fragment in [[0x20, 0], [0, 3]] {
                passes_unchanged(&mut datapath, &changed(20, &fragment))?;
            }
        }
        let mut empty = good[..udp_at + 8].to_vec();
        let length_at = if family.vip.is_ipv4() { 16 } else { 18 };
        empty[length_at..length_at + 2].copy_from_slice(&if family.vip.is_ipv4() { [0, 28] } else { [0, 8] });
        empty[udp_at + 4..udp_at + 6].copy_from_slice(&[0, 8]);
        passes_unchanged(&mut datapath, &empty)?;
    }
    Ok(())
}

#[test]
fn gue_port_is_configurable() -> Result<()> {
    let mut datapath = decapsulator_at(7777)?;
    for family in families() {
        let outer = in_udp(&family, UdpChecksum::Zero);
        passes_unchanged(&mut datapath, &encapsulated(&family.syn(), outer).bytes())?;
        let udp = outer.udp.map(|udp| OuterUdp { dport: 7777, ..udp });
        let frame = encapsulated(&family.syn(), Outer { udp, ..outer }).bytes();
        assert_eq!(test_run(datapath.decapsulator()?, &frame)?, (XDP_PASS, family.syn().bytes()));
    }
    Ok(())
}

/// The outer headers towards that family's backend.
fn tunnels(family: &Family) -> [Outer; 3] {
    [Outer::of(family, 7), in_udp(family, UdpChecksum::Zero), in_udp(family, UdpChecksum::Computed)]
}

fn in_udp(family: &Family, checksum: UdpChecksum) -> Outer {
    Outer { udp: Some(OuterUdp { sport: 50_000, dport: GUE_PORT, checksum }), ..Outer::of(family, 7) }
}

#[track_caller]
fn passes_unchanged(datapath: &mut Datapath, frame: &[u8]) -> Result<()> {
    assert_eq!(test_run(datapath.decapsulator()?, frame)?, (XDP_PASS, frame.to_vec()));
    Ok(())
}
