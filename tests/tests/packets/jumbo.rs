//! Packets that are longer than the next link's MTU.

use anyhow::Result;
use nlb::model::ForwardMode;

use crate::icmp::is_error;
use crate::packet::{ACK, Packet, Transport};
use crate::rig::{
    BACK_MTU, BACKEND_MAC, CLIENT_MAC, Family, OUR_BACK_MAC, OUR_MAC, Rig, XDP_DROP, XDP_REDIRECT, XDP_TX,
    families, source_port,
};

/// Longer than Ethernet's default MTU.
const LONG: usize = 2000;

#[test]
fn row_9_a_request_too_long_for_the_backends_link_is_answered() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            let fits = segment_of(&family, BACK_MTU);
            assert_eq!(rig.run(&fits)?.action, XDP_REDIRECT);
            let outcome = rig.run(&fits.with(|p| p.payload.push(1)))?;
            assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send too_big".to_owned(), 1)].into()));
            let packet = fits.with(|p| p.payload.push(1));
            is_error(&outcome.frame, &too_big_error(&packet, BACK_MTU, (CLIENT_MAC, OUR_MAC)));
        }
        // A sender that allows fragmentation gets no error.
        let mut frame = segment_of(&families()[0], BACK_MTU + 4).bytes();
        frame[20] = 0;
        let outcome = rig.run_bytes(&frame)?;
        let dropped = [("drop too_big".to_owned(), 1)].into();
        assert_eq!((outcome.action, outcome.counted), (XDP_DROP, dropped), "may be fragmented");
    }
    Ok(())
}

/// The kernel's FIB has the MTU towards the client.
#[test]
fn row_9_an_answer_too_long_for_the_clients_link_is_answered() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        let port = source_port(&rig.run(&family.syn())?.frame);
        let answer = long_answer(&family, port);
        let outcome = rig.run(&answer)?;
        assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send too_big".to_owned(), 1)].into()));
        is_error(&outcome.frame, &too_big_error(&answer, 1500, (BACKEND_MAC, OUR_BACK_MAC)));
    }
    Ok(())
}

fn long_answer(family: &Family, port: u16) -> Packet {
    let request = family.translated(&family.ack(), port);
    family.answer(&request, Transport::Tcp { flags: ACK, seq: 7000 }).with(|p| p.payload = vec![0x5a; LONG])
}

/// A segment in an IP packet of so many bytes.
fn segment_of(family: &Family, len: u16) -> Packet {
    let headers = if family.vip.is_ipv4() { 40 } else { 60 };
    family.ack().with(|p| p.payload = vec![1; len as usize - headers])
}

/// The ICMP error about a packet with this MTU, between the MAC addresses of its sender and of the NLB.
fn too_big_error(packet: &Packet, mtu: u16, (sender, receiver): ([u8; 6], [u8; 6])) -> Packet {
    let v4 = packet.src.is_ipv4();
    let quoted = packet.bytes()[14..14 + if v4 { 28 } else { 88 }].to_vec();
    let rest = u32::from(mtu).to_be_bytes();
    packet.with(|p| {
        (p.dst_mac, p.src_mac) = (sender, receiver);
        (p.src, p.dst, p.ttl) = (packet.dst, packet.src, 64);
        p.l4 = Transport::Other(if v4 { 1 } else { 58 });
        p.payload = [&[if v4 { 3 } else { 2 }, if v4 { 4 } else { 0 }, 0, 0], &rest[..], &quoted].concat();
    })
}
