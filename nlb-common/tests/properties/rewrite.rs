//! Every edit, compared with the packet built from scratch: frames must be equal to the last byte.

use nlb_common::net::{Addr, Be16, Mac};
use nlb_common::parse;
use nlb_common::rewrite::{self, Outer, Tuple};
use proptest::prelude::*;

use super::packet::{self, Ip, Spec, spec};
use super::parse::headers;

/// A packet, and its translation.
fn translation() -> impl Strategy<Value = (Spec, Spec)> {
    spec().prop_flat_map(|spec| {
        let v6 = spec.is_v6();
        let to = (packet::ip(v6), packet::ip(v6), any::<(u16, u16)>());
        (Just(spec), to).prop_map(|(before, (src, dst, (sport, dport)))| {
            let after = Spec { src, dst, sport, dport, ttl: before.ttl - 1, ..before.clone() };
            (before, after)
        })
    })
}

fn outer() -> impl Strategy<Value = (Ip, Ip, u32)> {
    any::<bool>().prop_flat_map(|v6| (packet::ip(v6), packet::ip(v6), any::<u32>()))
}

fn translate(before: &Spec, after: &Spec) -> Vec<u8> {
    let mut frame = before.frame();
    let (ip, segment) = headers(&frame).expect("a sound packet");
    let to = Tuple {
        src: after.src.into(),
        dst: after.dst.into(),
        sport: Be16::new(after.sport),
        dport: Be16::new(after.dport),
    };
    rewrite::translate(&mut frame[..], &ip, &segment, &to).expect("inside the frame");
    frame
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    #[test]
    fn translation_gives_the_packet_that_the_new_addresses_make((before, after) in translation()) {
        prop_assert_eq!(translate(&before, &after), after.frame());
    }

    /// A computed UDP checksum of 0 is sent as 0xffff, before and after.
    #[test]
    fn translation_from_and_to_a_checksum_of_zero((before, after) in translation()) {
        let (before, after) = (Spec { unchecked: false, ..before }, Spec { unchecked: false, ..after });
        let from = before.clone().with_checksum_of_zero();
        let to = Spec { payload: from.payload.clone(), ..after.clone() };
        prop_assert_eq!(translate(&from, &to), to.frame());
        let to = after.with_checksum_of_zero();
        let from = Spec { payload: to.payload.clone(), ..before };
        prop_assert_eq!(translate(&from, &to), to.frame());
    }

    #[test]
    fn translation_to_the_same_addresses_changes_the_ttl_alone(before in spec()) {
        let after = Spec { ttl: before.ttl - 1, ..before.clone() };
        prop_assert_eq!(translate(&before, &after), after.frame());
    }

    #[test]
    fn a_ttl_less_one_gives_the_packet_built_with_it(before in spec()) {
        let mut frame = before.frame();
        let (ip, _) = headers(&frame).expect("a sound packet");
        rewrite::decrement_ttl(&mut frame[..], &ip).expect("inside the frame");
        prop_assert_eq!(frame, Spec { ttl: before.ttl - 1, ..before }.frame());
    }

    #[test]
    fn an_outer_header_is_sound_and_comes_off_again(inner in spec(), (src, dst, flow_label) in outer()) {
        let plain = inner.frame();
        let ip = parse::ip(&plain[..]).expect("a sound packet");
        let outer = Outer { src: src.into(), dst: dst.into(), flow_label };
        let outer_v6 = matches!(dst, Ip::V6(_));
        let grown = Outer::len(outer_v6);
        let mut frame = vec![0xaa; grown];
        frame.extend(&plain);
        rewrite::encapsulate(&mut frame[..], &ip, grown, &outer).expect("inside the frame");

        let mut expected = inner.link_header(outer_v6);
        expected.extend(outer_header(&inner, src, dst, flow_label));
        expected.extend(inner.ip_packet());
        expected.extend(&inner.padding);
        prop_assert_eq!(&frame, &expected);

        let around = parse::ip(&frame[..]).expect("a sound outer header");
        prop_assert_eq!((around.src, around.dst), (Addr::from(src), Addr::from(dst)));
        let by = around.next - around.l3;
        rewrite::decapsulate(&mut frame[..], &around, by, inner.is_v6()).expect("inside the frame");
        prop_assert_eq!(&frame[by..], &plain[..]);
    }

    #[test]
    fn a_next_hop_changes_the_mac_addresses_alone(before in spec(), dst: [u8; 6], src: [u8; 6]) {
        let mut frame = before.frame();
        rewrite::ethernet(&mut frame[..], Mac::new(dst), Mac::new(src)).expect("inside the frame");
        prop_assert_eq!(rewrite::source_mac(&frame[..]), Some(Mac::new(src)));
        prop_assert_eq!(&frame[..12], &[dst, src].concat()[..]);
        prop_assert_eq!(&frame[12..], &before.frame()[12..]);
    }
}

/// RFC 2003 and RFC 2473: the inner packet's traffic class, a length that covers the inner packet, and no
/// fragmentation.
fn outer_header(inner: &Spec, src: Ip, dst: Ip, flow_label: u32) -> Vec<u8> {
    let len = inner.ip_packet().len() as u16;
    let protocol = if inner.is_v6() { 41 } else { 4 };
    let mut header = Vec::new();
    if matches!(dst, Ip::V6(_)) {
        let first = 6 << 28 | u32::from(inner.traffic_class) << 20 | flow_label & 0xf_ffff;
        header.extend(first.to_be_bytes());
        header.extend(len.to_be_bytes());
        header.extend([protocol, 64]);
        header.extend([src.bytes(), dst.bytes()].concat());
    } else {
        header.extend([0x45, inner.traffic_class]);
        header.extend((len + 20).to_be_bytes());
        header.extend([0, 0, 0x40, 0, 64, protocol, 0, 0]);
        header.extend([src.bytes(), dst.bytes()].concat());
        let sum = packet::checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    header
}
