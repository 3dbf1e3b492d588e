//! Direct server return: by MAC address, and by encapsulation.

use anyhow::Result;
use nlb::model::ForwardMode;
use nlb_common::hash;
use nlb_common::net::Be16;

use crate::packet::{Outer, Packet};
use crate::rig::{BACKEND_MAC, Family, OUR_BACK_MAC, Rig, XDP_DROP, XDP_REDIRECT, families, module};

pub fn sends(rig: &mut Rig, packet: &Packet, expected: &Packet) -> Result<()> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into());
    assert_eq!(outcome.frame, expected.bytes(), "{packet:?}");
    Ok(())
}

pub fn forwarded(packet: &Packet) -> Packet {
    packet.with(|p| {
        (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
        p.ttl -= 1;
    })
}

pub fn samples(family: &Family) -> Vec<Packet> {
    vec![
        family.syn(),
        family.ack(),
        family.udp(),
        family.syn().with(|p| p.tags = vec![(0x8100, 42)]),
        family.syn().with(|p| p.tags = vec![(0x88a8, 42), (0x8100, 7)]),
        family.ack().with(|p| p.tos = 0xb9),
        family.udp().with(|p| p.padding = vec![0xee; 9]),
    ]
}

#[test]
fn dsr_l2_changes_only_macs_and_ttl() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    for family in families() {
        for packet in samples(&family) {
            sends(&mut rig, &packet, &forwarded(&packet))?;
        }
    }
    Ok(())
}

#[test]
fn dsr_ipip_wraps_4in4_and_6in6() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrIpip)?;
    for family in families() {
        for packet in samples(&family) {
            let outer = outer(ForwardMode::DsrIpip, &family, &packet);
            sends(&mut rig, &packet, &forwarded(&packet).with(|p| p.outer = outer))?;
        }
    }
    Ok(())
}

#[test]
fn dsr_ipip_wraps_across_families() -> Result<()> {
    let [v4, v6] = families();
    for (vip_family, backend_family) in [(v4, v6), (v6, v4)] {
        let mut rig = rig_of_one_family(ForwardMode::DsrIpip, &backend_family)?;
        for packet in samples(&vip_family) {
            let outer = outer(ForwardMode::DsrIpip, &backend_family, &packet);
            sends(&mut rig, &packet, &forwarded(&packet).with(|p| p.outer = outer))?;
        }
    }
    Ok(())
}

/// A rig whose module has an address of that family only.
pub fn rig_of_one_family(mode: ForwardMode, family: &Family) -> Result<Rig> {
    of_one_family(Rig::new(mode)?, mode, family)
}

/// Gives the rig's module an address of that family only.
pub fn of_one_family(mut rig: Rig, mode: ForwardMode, family: &Family) -> Result<Rig> {
    let mut only = module(mode, 2);
    if family.vip.is_ipv4() {
        only.data.v6 = None
    } else {
        only.data.v4 = None
    }
    rig.desired.modules.insert("m1".to_owned(), only.into());
    rig.apply()?;
    Ok(rig)
}

/// The outer headers of a flow's packets to a backend of that family.
pub fn outer(mode: ForwardMode, backend: &Family, request: &Packet) -> Option<Outer> {
    let outer = Outer::of(backend, flow_label(request));
    match mode {
        ForwardMode::Nat | ForwardMode::DsrL2 => None,
        ForwardMode::DsrIpip => Some(outer),
        ForwardMode::Gue => Some(outer.in_udp(outer_port(request))),
    }
}

/// The flow label of a flow's outer IPv6 headers. No protocol defines the value, only that it varies by flow.
fn flow_label(p: &Packet) -> u32 {
    flow_hash(p) & 0xf_ffff
}

/// The source port of a flow's outer UDP headers, likewise.
pub fn outer_port(p: &Packet) -> u16 {
    49_152 + (flow_hash(p) >> 18) as u16
}

fn flow_hash(p: &Packet) -> u32 {
    let l4 = match p.l4 {
        crate::packet::Transport::Udp { .. } => 17,
        _ => 6,
    };
    hash::flow(p.src.into(), p.dst.into(), Be16::new(p.sport), Be16::new(p.dport), l4) as u32
}

#[test]
fn row_29_our_own_packet_coming_back_is_dropped() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            let outcome = rig.run(&family.syn().with(|p| p.src_mac = OUR_BACK_MAC))?;
            assert_eq!(outcome.action, XDP_DROP, "{mode:?}");
            assert_eq!(outcome.counted, [("drop loop".to_owned(), 1)].into(), "{mode:?}");
        }
    }
    Ok(())
}
