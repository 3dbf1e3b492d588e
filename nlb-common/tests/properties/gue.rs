//! GUE, compared with headers that are built from scratch, with an outer checksum that is summed over the
//! whole packet.

use nlb_common::gue;
use nlb_common::net::Be16;
use nlb_common::parse;
use nlb_common::rewrite::{self, Outer};
use proptest::prelude::*;

use super::packet::{self, Ip, Spec, spec};

fn tunnel() -> impl Strategy<Value = (Ip, Ip, u32, u16)> {
    any::<bool>().prop_flat_map(|v6| (packet::ip(v6), packet::ip(v6), any::<u32>(), any::<u16>()))
}

/// The packet of `inner` with a TTL less 1, behind outer headers.
fn wrap(inner: &Spec, src: Ip, dst: Ip, hash: u32, dport: u16) -> Vec<u8> {
    let plain = inner.frame();
    let ip = parse::ip(&plain[..]).expect("a sound packet");
    let grown = Outer::len(matches!(dst, Ip::V6(_))) + gue::HEADER;
    let mut frame = vec![0xaa; grown];
    frame.extend(Spec { ttl: inner.ttl - 1, ..inner.clone() }.frame());
    let outer = Outer { src: src.into(), dst: dst.into(), flow_label: hash };
    let ports = (gue::source_port(hash), Be16::new(dport));
    gue::encapsulate(&mut frame[..], &ip, grown, &outer, ports).expect("inside the frame");
    frame
}

/// The outer UDP header and all that follows it in the outer IP packet.
fn datagram(inner: &Spec, src: Ip, dst: Ip, hash: u32, dport: u16) -> Vec<u8> {
    let packet = Spec { ttl: inner.ttl - 1, ..inner.clone() }.ip_packet();
    let len = 8 + packet.len() as u16;
    let ports = [0xc000 | (hash >> 18) as u16, dport].map(u16::to_be_bytes).concat();
    let mut datagram = [&ports[..], &len.to_be_bytes(), &[0, 0], &packet].concat();
    let covered = inner.options.is_empty() && !inner.unchecked_udp();
    if matches!(dst, Ip::V6(_)) && covered {
        let pseudo = [src.bytes(), dst.bytes(), &u32::from(len).to_be_bytes(), &[0, 0, 0, 17]].concat();
        let sum = match packet::checksum(&[&pseudo, &datagram]) {
            0 => 0xffff,
            sum => sum,
        };
        datagram[6..8].copy_from_slice(&sum.to_be_bytes());
    }
    datagram
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn outer_headers_are_sound_and_come_off_again(inner in spec(), (src, dst, hash, dport) in tunnel()) {
        let mut frame = wrap(&inner, src, dst, hash, dport);
        let around = parse::ip(&frame[..]).expect("a sound outer header");
        prop_assert_eq!((around.src, around.dst), (src.into(), dst.into()));
        prop_assert_eq!((around.protocol, around.ttl, around.dont_fragment), (17, 64, true));
        prop_assert_eq!(&frame[around.next..around.end], &datagram(&inner, src, dst, hash, dport)[..]);
        prop_assert_eq!(&frame[around.end..], &inner.padding[..]);

        let found = gue::inner(&frame[..], &around, Be16::new(dport)).expect("variant 1 to that port");
        prop_assert_eq!((found.at, found.end), (around.next + 8, around.end));
        prop_assert_eq!(found.version, if inner.is_v6() { 6 } else { 4 });
        prop_assert!(gue::inner(&frame[..], &around, Be16::new(dport ^ 1)).is_none());
        let by = found.at - around.l3;
        rewrite::decapsulate(&mut frame[..], &around, by, inner.is_v6()).expect("inside the frame");
        prop_assert_eq!(&frame[by..], &Spec { ttl: inner.ttl - 1, ..inner }.frame()[..]);
    }

    #[test]
    fn source_ports_are_dynamic_ones(hash: u32) {
        prop_assert!(gue::source_port(hash).get() >= 49_152);
    }
}
