//! Packets that are for no service.

use anyhow::Result;
use nlb::model::ForwardMode;

use crate::packet::Transport;
use crate::rig::{Rig, XDP_PASS, families};

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
