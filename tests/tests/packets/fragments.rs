//! Fragments (row 7): the first is balanced and recorded, later ones go to the same backend.

use anyhow::Result;
use nlb::model::{ForwardMode, Health, LimitTarget, LimitUnit, RateLimit, Snat, Texts};

use crate::packet::{Outer, Packet, Transport, UdpChecksum};
use crate::rig::{
    BACKEND_MAC, CLIENT_MAC, Family, OUR_BACK_MAC, OUR_MAC, Outcome, Rig, XDP_DROP, XDP_PASS, XDP_REDIRECT,
    families,
};

const FRAGMENT: u8 = 44;

/// The first fragment of a packet, with this id.
pub fn first(packet: &Packet, id: u8) -> Packet {
    packet.with(|p| {
        if p.src.is_ipv4() {
            (p.fragment, p.id) = ((0, true), id.into());
        } else {
            p.extensions.push((FRAGMENT, vec![0, 0, 1, 0, 0, 0, id]));
        }
    })
}

/// A later one, which has no L4 header.
pub fn later(packet: &Packet, id: u8) -> Packet {
    packet.with(|p| {
        let protocol = if matches!(p.l4, Transport::Udp { .. }) { 17 } else { 6 };
        (p.l4, p.payload) = (Transport::Other(protocol), b"the rest of the data".to_vec());
        if p.src.is_ipv4() {
            (p.fragment, p.id) = ((3, false), id.into());
        } else {
            p.extensions.push((FRAGMENT, vec![0, 0, 3 << 3, 0, 0, 0, id]));
        }
    })
}

fn samples(family: &Family) -> [Packet; 2] {
    [family.udp().with(|p| p.payload = vec![7; 24]), family.ack().with(|p| p.payload = vec![8; 24])]
}

/// The source port of a forwarded first fragment.
fn port_of(outcome: &Outcome) -> u16 {
    let l4 = if outcome.frame[12..14] == [8, 0] { 34 } else { 54 + 8 };
    u16::from_be_bytes([outcome.frame[l4], outcome.frame[l4 + 1]])
}

#[track_caller]
fn sent(outcome: &Outcome, reason: &str, expected: &Packet) {
    assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
    assert_eq!(outcome.counted, [(format!("send {reason}"), 1)].into());
    assert_eq!(outcome.frame, expected.bytes(), "{expected:?}");
}

#[track_caller]
fn dropped(outcome: &Outcome, reason: &str) {
    assert_eq!((outcome.action, &outcome.counted), (XDP_DROP, &[(format!("drop {reason}"), 1)].into()));
}

fn forwarded(packet: &Packet) -> Packet {
    packet.with(|p| {
        (p.dst_mac, p.src_mac) = (BACKEND_MAC, OUR_BACK_MAC);
        p.ttl -= 1;
    })
}

#[test]
fn row_7_nat_translates_later_fragments_both_ways() -> Result<()> {
    for snat in [Snat::Always, Snat::Never] {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        rig.module("m1").snat = snat;
        rig.apply()?;
        for family in families() {
            for (request, id) in samples(&family).iter().zip(1..) {
                let source = if snat == Snat::Never { family.client } else { family.source };
                let towards = forwarded(request).with(|p| (p.src, p.dst) = (source, family.backend));

                let opened = rig.run(&first(request, id))?;
                let port = port_of(&opened);
                let expected = first(&towards, id).with(|p| (p.sport, p.dport) = (port, 8080));
                sent(&opened, "forward", &expected);
                sent(&rig.run(&later(request, id))?, "forward", &later(&towards, id));

                let answer = towards.with(|p| {
                    (p.dst_mac, p.src_mac, p.ttl) = (OUR_BACK_MAC, BACKEND_MAC, 64);
                    (p.src, p.dst) = (family.backend, source);
                    (p.sport, p.dport) = (8080, port);
                });
                let towards_client = request.with(|p| {
                    (p.dst_mac, p.src_mac, p.ttl) = (CLIENT_MAC, OUR_MAC, 63);
                    (p.src, p.dst) = (family.vip, family.client);
                    (p.sport, p.dport) = (request.dport, request.sport);
                });
                let unknown = later(&answer, 9);
                let outcome = rig.run(&unknown)?;
                assert_eq!(
                    (outcome.action, outcome.counted),
                    (XDP_PASS, [("pass no_flow".to_owned(), 1)].into())
                );
                sent(&rig.run(&first(&answer, id))?, "reply", &first(&towards_client, id));
                sent(&rig.run(&later(&answer, id))?, "reply", &later(&towards_client, id));
            }
        }
    }
    Ok(())
}

#[test]
fn row_7_dsr_sends_later_fragments_to_the_same_backend() -> Result<()> {
    for mode in [ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            for (request, id) in samples(&family).iter().zip(1..) {
                let opened = rig.run(&first(request, id))?;
                let wrapped = |packet: &Packet| {
                    let outer = crate::dsr::outer(mode, &family, request);
                    forwarded(packet).with(|p| p.outer = outer.map(Outer::without_udp_checksum))
                };
                sent(&opened, "forward", &wrapped(&first(request, id)));
                sent(&rig.run(&later(request, id))?, "forward", &wrapped(&later(request, id)));
                // A duplicate is sent to the same backend.
                sent(&rig.run(&later(request, id))?, "forward", &wrapped(&later(request, id)));
            }
        }
    }
    Ok(())
}

#[test]
fn row_7_fragments_of_other_packets_are_dropped() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    for family in families() {
        let [udp, tcp] = samples(&family);
        rig.run(&first(&udp, 1))?;
        dropped(&rig.run(&later(&udp, 2))?, "fragment");
        dropped(&rig.run(&later(&udp.with(|p| p.dst = family.vip2), 1))?, "fragment");
        dropped(&rig.run(&later(&udp.with(|p| p.src = family.stranger), 1))?, "fragment");
        if family.vip.is_ipv4() {
            dropped(&rig.run(&later(&tcp, 1))?, "fragment");
        }
        dropped(&rig.run(&later(&udp, 1).with(|p| p.ttl = 1))?, "ttl_exceeded");
        dropped(&rig.run(&later(&udp, 1).with(|p| p.src_mac = OUR_BACK_MAC))?, "loop");
    }
    Ok(())
}

/// The first fragment has gone to a module that drains now. Later ones are of use there only.
#[test]
fn row_7_later_fragments_reach_a_draining_backend_and_not_a_removed_one() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let family = families()[0];
    let [udp, _] = samples(&family);
    rig.run(&first(&udp, 1))?;
    rig.module("m1").health = Health::Stopping;
    rig.apply()?;
    sent(&rig.run(&later(&udp, 1))?, "forward", &forwarded(&later(&udp, 1)));
    rig.desired.modules.clear();
    rig.desired.learn_routes = true;
    rig.apply()?;
    dropped(&rig.run(&later(&udp, 1))?, "fragment");
    Ok(())
}

#[test]
fn row_7_fragments_are_counted_and_rate_limited() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::DsrL2)?;
    let few = RateLimit {
        target: LimitTarget::All,
        unit: LimitUnit::Packets,
        per_second: 0,
        per_minute: 0,
        per_hour: 3,
        burst: 3,
        enabled: true,
        metadata: Texts::new(),
    };
    rig.desired.rate_limits.insert("few".to_owned(), few.into());
    rig.apply()?;
    let family = families()[1];
    let [udp, _] = samples(&family);
    rig.run(&first(&udp, 1))?;
    for _ in 0..2 {
        assert_eq!(rig.run(&later(&udp, 1))?.action, XDP_REDIRECT);
    }
    dropped(&rig.run(&later(&udp, 1))?, "rate_limit");
    let counts = rig.traffic(0)?.instance("m1");
    let bytes = first(&udp, 1).ip_len() + 2 * later(&udp, 1).ip_len();
    assert_eq!((counts.new_flows, counts.packets, counts.bytes), (1, 3, bytes));
    Ok(())
}

/// Datagrams without a checksum, with another extension header, and with VLAN tags.
#[test]
fn row_7_fragments_with_tags_extensions_or_without_a_checksum() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let [v4, v6] = families();
    let bare = v4.udp().with(|p| p.l4 = Transport::Udp { checksum: UdpChecksum::Zero });
    assert_eq!(rig.run(&first(&bare, 1))?.action, XDP_REDIRECT);
    let towards = forwarded(&bare).with(|p| (p.src, p.dst) = (v4.source, v4.backend));
    sent(&rig.run(&later(&bare, 1))?, "forward", &later(&towards, 1));

    let extended = v6.udp().with(|p| p.extensions.push((60, vec![0, 1, 4, 0, 0, 0, 0])));
    assert_eq!(rig.run(&first(&extended, 1))?.action, XDP_REDIRECT);
    let towards = forwarded(&extended).with(|p| (p.src, p.dst) = (v6.source, v6.backend));
    sent(&rig.run(&later(&extended, 1))?, "forward", &later(&towards, 1));
    let tagged = v6.udp().with(|p| p.tags = vec![(0x88a8, 42), (0x8100, 7)]);
    rig.run(&first(&tagged, 2))?;
    let towards = forwarded(&tagged).with(|p| (p.src, p.dst) = (v6.source, v6.backend));
    sent(&rig.run(&later(&tagged, 2))?, "forward", &later(&towards, 2));
    Ok(())
}
