//! Direct server return: by MAC address, and by encapsulation.

use anyhow::Result;
use nlb::model::ForwardMode;
use nlb_common::hash;
use nlb_common::net::Be16;

use crate::packet::{Outer, Packet};
use crate::rig::{
    BACK_MTU, BACKEND_MAC, Family, OUR_BACK_MAC, Rig, XDP_DROP, XDP_REDIRECT, families, module,
};

fn sends(rig: &mut Rig, packet: &Packet, expected: &Packet) -> Result<()> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into());
    assert_eq!(outcome.frame, expected.bytes(), "{packet:?}");
    Ok(())
}

fn handed_on(packet: &Packet) -> Packet {
    packet.with(|p| {
        (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
        p.ttl -= 1;
    })
}

fn samples(family: &Family) -> Vec<Packet> {
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
            sends(&mut rig, &packet, &handed_on(&packet))?;
        }
    }
    Ok(())
}

#[test]
fn dsr_ipip_wraps_4in4_and_6in6() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrIpip)?;
    for family in families() {
        for packet in samples(&family) {
            let outer = Outer::of(&family, flow_label(&packet));
            sends(&mut rig, &packet, &handed_on(&packet).with(|p| p.outer = Some(outer)))?;
        }
    }
    Ok(())
}

#[test]
fn dsr_ipip_wraps_across_families() -> Result<()> {
    let [v4, v6] = families();
    for (vip_family, backend_family) in [(v4, v6), (v6, v4)] {
        let mut rig = Rig::new(ForwardMode::DsrIpip)?;
        let mut only = module(ForwardMode::DsrIpip, 2);
        if backend_family.vip.is_ipv4() {
            only.data.v6 = None
        } else {
            only.data.v4 = None
        }
        rig.desired.modules.insert("m1".to_owned(), only.into());
        rig.apply()?;
        for packet in samples(&vip_family) {
            let outer = Outer::of(&backend_family, flow_label(&packet));
            sends(&mut rig, &packet, &handed_on(&packet).with(|p| p.outer = Some(outer)))?;
        }
    }
    Ok(())
}

/// The flow label that a flow's outer IPv6 headers carry: it is part of no protocol how, only that it varies by flow.
fn flow_label(p: &Packet) -> u32 {
    let l4 = match p.l4 {
        crate::packet::Transport::Udp { .. } => 17,
        _ => 6,
    };
    hash::flow(p.src.into(), p.dst.into(), Be16::new(p.sport), Be16::new(p.dport), l4) as u32 & 0xf_ffff
}

#[test]
fn a_packet_too_big_to_wrap_is_dropped_and_counted() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrIpip)?;
    for family in families() {
        let outer = if family.vip.is_ipv4() { 20 } else { 40 };
        let headers = if family.vip.is_ipv4() { 40 } else { 60 };
        let room = BACK_MTU as usize - outer - headers;
        let fits = family.ack().with(|p| p.payload = vec![1; room]);
        assert_eq!(rig.run(&fits)?.action, XDP_REDIRECT);
        let outcome = rig.run(&family.ack().with(|p| p.payload = vec![1; room + 1]))?;
        assert_eq!(outcome.action, XDP_DROP);
        assert_eq!(outcome.counted, [("drop too_big".to_owned(), 1)].into());
    }
    Ok(())
}

#[test]
fn row_29_our_own_packet_coming_back_is_dropped() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::DsrIpip] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            let outcome = rig.run(&family.syn().with(|p| p.src_mac = OUR_BACK_MAC))?;
            assert_eq!(outcome.action, XDP_DROP, "{mode:?}");
            assert_eq!(outcome.counted, [("drop loop".to_owned(), 1)].into(), "{mode:?}");
        }
    }
    Ok(())
}
