//! Packets that are for no service.

use anyhow::Result;
use nlb::model::ForwardMode;
use nlb_common::abi::{AcceptedMac, LOOPBACK};

use crate::packet::{ACK, Mac, SYN, Transport};
use crate::rig::{BACKEND_MAC, CLIENT_MAC, OUR_BACK_MAC, OUR_MAC, Rig, XDP_PASS, families, source_port};

/// Checks that a frame passes unchanged, and that this exit is counted.
fn passes(rig: &mut Rig, what: &str, frame: &[u8], exit: &str) -> Result<()> {
    let outcome = rig.run_bytes(frame)?;
    assert_eq!(outcome.action, XDP_PASS, "{what}");
    assert_eq!(outcome.frame, frame, "{what}: passed packets are untouched");
    assert_eq!(outcome.counted, [(exit.to_owned(), 1)].into(), "{what}");
    Ok(())
}

#[test]
fn row_1_packets_without_a_service_pass_unchanged() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let stray = family.syn().with(|p| p.dst = family.stranger);
        passes(&mut rig, "to another host", &stray.bytes(), "pass not_ours")?;
        let gre = stray.with(|p| p.l4 = Transport::Other(47));
        passes(&mut rig, "GRE to another host", &gre.bytes(), "pass not_ours")?;
        let closed = family.syn().with(|p| p.dport = 81);
        passes(&mut rig, "to a port of the VIP without a service", &closed.bytes(), "pass closed_port")?;
        // TCP 53 and UDP 80 are other services than UDP 53 and TCP 80.
        let tcp53 = family.syn().with(|p| p.dport = 53);
        passes(&mut rig, "row 33: TCP to a UDP service", &tcp53.bytes(), "pass closed_port")?;
        let udp80 = family.udp().with(|p| p.dport = 80);
        passes(&mut rig, "row 33: UDP to a TCP service", &udp80.bytes(), "pass closed_port")?;
        let ours = family.syn().with(|p| p.dst = family.source);
        passes(&mut rig, "to our own address, in no flow", &ours.bytes(), "pass no_flow")?;
    }
    Ok(())
}

#[test]
fn row_26_arp_multicast_and_broadcast_pass() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let mut arp = [[0xff; 6], [2, 0, 0, 0, 0, 0xc1]].concat();
    arp.extend([0x08, 0x06]);
    arp.extend([0; 46]);
    passes(&mut rig, "a broadcast ARP request", &arp, "pass group")?;
    arp[..6].copy_from_slice(&[2, 0, 0, 0, 0, 1]);
    passes(&mut rig, "a unicast ARP request", &arp, "pass not_ip")?;
    for family in families() {
        let multicast = family.syn().with(|p| p.dst_mac = [0x33, 0x33, 0, 0, 0, 1]);
        passes(&mut rig, "multicast by its MAC, even to a VIP", &multicast.bytes(), "pass group")?;
    }
    Ok(())
}

#[test]
fn row_34_unknown_protocols_to_a_vip_pass() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        for (name, number) in [("SCTP", 132), ("GRE", 47), ("ESP", 50), ("ICMP", 1), ("ICMPv6", 58)] {
            let packet = family.syn().with(|p| {
                p.l4 = Transport::Other(number);
                p.payload = vec![8; 32];
            });
            passes(&mut rig, name, &packet.bytes(), "pass protocol")?;
        }
    }
    Ok(())
}

/// The stack removes the tag of such a VLAN. Other tags stay, also inside that of another VLAN.
#[test]
fn row_8_packets_of_a_vlan_device_of_the_host_pass_to_the_stack() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = Rig::new(mode)?;
        rig.end_vlan(42)?;
        for family in families() {
            for (tags, local) in [
                (vec![(0x8100, 42)], true),
                (vec![(0x8100, 0x6000 | 42)], true),
                (vec![(0x88a8, 42), (0x8100, 7)], true),
                (vec![(0x8100, 43)], false),
                (vec![(0x88a8, 7), (0x8100, 42)], false),
                (vec![], false),
            ] {
                for packet in [family.syn(), family.ack(), family.udp()] {
                    let packet = packet.with(|p| p.tags = tags.clone());
                    let outcome = rig.run(&packet)?;
                    if local {
                        assert_eq!(outcome.counted, [("pass local".to_owned(), 1)].into());
                        assert_eq!((outcome.action, outcome.frame), (XDP_PASS, packet.bytes()));
                    } else {
                        assert_eq!(outcome.counted, [("send forward".to_owned(), 1)].into(), "{tags:?}");
                        assert_eq!(
                            outcome.frame[12..][..4 * tags.len()],
                            packet.bytes()[12..][..4 * tags.len()]
                        );
                    }
                }
            }
            let stranger = family.syn().with(|p| (p.dst, p.tags) = (family.stranger, vec![(0x8100, 42)]));
            assert_eq!(rig.run(&stranger)?.counted, [("pass not_ours".to_owned(), 1)].into());
        }
    }
    Ok(())
}

/// A switch sends frames to every port while it does not know the port of an address.
#[test]
fn row_36_frames_to_other_hosts_pass_unchanged() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            let request = family.syn();
            assert!(rig.run(&request)?.counted.contains_key("send forward"));
            let to_port = |dport| family.syn().with(|p| p.dport = dport);
            let echo = family.syn().with(|p| p.l4 = Transport::Other(if p.src.is_ipv4() { 1 } else { 58 }));
            for packet in [request, family.ack(), family.udp(), to_port(81), echo] {
                for mac in [BACKEND_MAC, CLIENT_MAC, [0, 0, 0x5e, 0, 1, 51], [2, 0, 0, 0, 0, 3]] {
                    let stray = packet.with(|p| p.dst_mac = mac).bytes();
                    passes(&mut rig, "to another host", &stray, "pass other_host")?;
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_36_replies_to_other_hosts_pass_unchanged() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let sent = rig.run(&family.syn())?;
        let request = family.translated(&family.syn(), source_port(&sent.frame));
        let answer = family.answer(&request, Transport::Tcp { flags: SYN | ACK, seq: 7 });
        let stray = answer.with(|p| p.dst_mac = BACKEND_MAC).bytes();
        passes(&mut rig, "an answer to another host", &stray, "pass other_host")?;
        assert!(rig.run(&answer)?.counted.contains_key("send reply"));
    }
    Ok(())
}

#[test]
fn row_36_configured_addresses_are_accepted() -> Result<()> {
    const VRRP: Mac = [0, 0, 0x5e, 0, 1, 51];
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let to = |mac| families()[0].syn().with(|p| p.dst_mac = mac);
    let exit = |rig: &mut Rig, mac| Ok::<_, anyhow::Error>(rig.run(&to(mac))?.counted);
    let (passed, sent) = (("pass other_host".to_owned(), 1), ("send forward".to_owned(), 1));
    rig.accept(AcceptedMac::any(LOOPBACK + 1))?;
    assert_eq!(exit(&mut rig, VRRP)?, [passed.clone()].into(), "another interface accepts it");
    rig.accept(AcceptedMac::new(LOOPBACK, nlb_common::net::Mac::new(VRRP)))?;
    assert_eq!(exit(&mut rig, VRRP)?, [sent.clone()].into());
    assert_eq!(exit(&mut rig, BACKEND_MAC)?, [passed].into());
    rig.accept(AcceptedMac::any(LOOPBACK))?;
    assert_eq!(exit(&mut rig, BACKEND_MAC)?, [sent].into());
    Ok(())
}

#[test]
fn row_36_the_address_of_the_only_interface_is_accepted() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    rig.accept_only(AcceptedMac::new(LOOPBACK, nlb_common::net::Mac::new(OUR_MAC)))?;
    for family in families() {
        assert!(rig.run(&family.syn())?.counted.contains_key("send forward"));
        let stray = family.syn().with(|p| p.dst_mac = OUR_BACK_MAC).bytes();
        passes(&mut rig, "to another host", &stray, "pass other_host")?;
    }
    Ok(())
}
