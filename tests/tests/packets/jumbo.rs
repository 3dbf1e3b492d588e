//! Packets that are longer than the next link's MTU.

use anyhow::Result;
use nlb::datapath::{fragmentation, loader};
use nlb::model::ForwardMode;
use nlb_common::abi::Punted;
use nlb_common::checksum::full;

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
            let outcome = rig.run(&packet.with(|p| p.src_mac[0] |= 1))?;
            let dropped = [("drop too_big".to_owned(), 1)].into();
            assert_eq!((outcome.action, outcome.counted), (XDP_DROP, dropped), "from a group's MAC address");
        }
    }
    Ok(())
}

/// A sender that does not forbid fragments gets no error.
#[test]
fn row_9_a_packet_that_may_be_fragmented_goes_to_user_space() -> Result<()> {
    let [v4, _] = families();
    for (mode, fits) in [(ForwardMode::Nat, BACK_MTU), (ForwardMode::DsrIpip, BACK_MTU - 20)] {
        let mut rig = Rig::new(mode)?;
        let longest = loader::MAX_RUN as u16 - 14;
        for len in [fits + 1, fits + 2, 2034, 2035, longest] {
            let frame = may_be_fragmented(segment_of(&v4, len).bytes());
            let outcome = rig.run_bytes(&frame)?;
            let punted = [("park fragment".to_owned(), 1)].into();
            assert_eq!((outcome.action, outcome.counted), (XDP_DROP, punted), "{mode:?}, {len} bytes");
            assert_eq!(outcome.frame, frame);
            let (head, bytes) = rig.punted_with_heads().pop().expect("a punted frame");
            assert_eq!((head.task, head.mtu, head.at_tc), (Punted::FRAGMENT, fits, 0));
            assert_eq!(bytes, frame);
        }
        assert_eq!(rig.run_bytes(&may_be_fragmented(segment_of(&v4, fits).bytes()))?.action, XDP_REDIRECT);
    }
    Ok(())
}

#[test]
fn row_9_an_answer_that_may_be_fragmented_goes_to_user_space() -> Result<()> {
    let [v4, _] = families();
    let mut rig = Rig::new(ForwardMode::Nat)?;
    let port = source_port(&rig.run(&v4.syn())?.frame);
    let frame = may_be_fragmented(long_answer(&v4, port).bytes());
    assert_eq!(rig.run_bytes(&frame)?.counted, [("park fragment".to_owned(), 1)].into());
    let (head, bytes) = rig.punted_with_heads().pop().expect("a punted frame");
    assert_eq!((head.task, head.mtu, bytes), (Punted::FRAGMENT, 1500, frame));
    Ok(())
}

/// Later fragments follow the first one into user space, whatever their length, until that one went on.
#[test]
fn rows_7_and_9_fragments_follow_a_first_fragment_that_is_too_long() -> Result<()> {
    let [v4, _] = families();
    let mut rig = Rig::new(ForwardMode::DsrIpip)?;
    let first = v4.udp().with(|p| {
        p.fragment = (0, true);
        p.payload = vec![1; 1472];
    });
    let later = first.with(|p| {
        p.fragment = (185, false);
        p.l4 = Transport::Other(17);
        p.payload = vec![2; 100];
    });
    let other = later.with(|p| p.id += 1);
    for packet in [&first, &later] {
        assert_eq!(rig.run(packet)?.counted, [("park fragment".to_owned(), 1)].into());
        assert_eq!(rig.punted(), [packet.bytes()]);
    }
    assert_eq!(rig.run(&other)?.counted, [("drop fragment".to_owned(), 1)].into(), "of another packet");
    // User space sends the first one in two.
    let fragments = fragmentation::fragments(&first.bytes(), 1480).expect("fragments");
    assert_eq!(fragments.len(), 2);
    for fragment in &fragments {
        assert_eq!(rig.run_bytes(fragment)?.action, XDP_REDIRECT);
    }
    assert_eq!(rig.run(&later)?.action, XDP_REDIRECT);
    Ok(())
}

/// The frame of an IPv4 packet without "do not fragment".
fn may_be_fragmented(mut frame: Vec<u8>) -> Vec<u8> {
    frame[20] = 0;
    frame[24..26].fill(0);
    let sum = full(&frame[14..34]);
    frame[24..26].copy_from_slice(&sum.bytes());
    frame
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
