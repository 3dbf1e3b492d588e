//! Packets that are not for us.

use anyhow::Result;
use nlb::model::ForwardMode;

use crate::packet::Transport;
use crate::rig::{Rig, XDP_PASS, families};

/// Runs a frame and expects it passed, byte for byte, with this exit counted.
fn passes(rig: &mut Rig, what: &str, frame: &[u8], exit: &str) -> Result<()> {
    let outcome = rig.run_bytes(frame)?;
    assert_eq!(outcome.action, XDP_PASS, "{what}");
    assert_eq!(outcome.frame, frame, "{what}: passed packets are untouched");
    assert_eq!(outcome.counted, [(exit.to_owned(), 1)].into(), "{what}");
    Ok(())
}

#[test]
fn row_1_what_is_for_no_service_passes_untouched() -> Result<()> {
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
