//! The parser on valid packets, damaged ones and noise.

use nlb_common::frame::Frame;
use nlb_common::net::{Addr, L4};
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::verdict::{DropReason, Verdict};
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestCaseError;

use super::packet::{Spec, spec};

/// The headers of a frame, behind any extension headers, as the data path parses them.
pub fn headers(frame: &[u8]) -> Result<(Ip, Segment), Verdict> {
    let ip = parse::ip(frame)?;
    if !parse::has_extensions(&ip) {
        return Ok((ip, parse::segment(frame, &ip)?));
    }
    let walked = parse::skip_extensions(frame, ip.protocol, ip.next, ip.end);
    let (protocol, next, more_fragments) = walked.map_err(Verdict::Drop)?;
    let ip = Ip { protocol, next, more_fragments, ..ip };
    Ok((ip, parse::segment(frame, &ip)?))
}

proptest! {
    #[test]
    fn a_sound_packet_is_read_as_it_was_built(spec in spec()) {
        let frame = spec.frame();
        let (ip, segment) = headers(&frame).map_err(|verdict| TestCaseError::fail(format!("{verdict:?}")))?;
        let l3 = 14 + 4 * spec.tags.len();
        prop_assert_eq!((ip.l3, ip.end), (l3, l3 + spec.ip_packet().len()));
        prop_assert_eq!((ip.v6, ip.protocol, ip.ttl), (spec.is_v6(), spec.protocol(), spec.ttl));
        prop_assert_eq!((ip.src, ip.dst), (Addr::from(spec.src), Addr::from(spec.dst)));
        prop_assert!(!ip.later_fragment);
        prop_assert_eq!(segment.l4, spec.l4);
        prop_assert_eq!(segment.offset, ip.end - l4_len(&spec));
        prop_assert_eq!((segment.sport.get(), segment.dport.get()), (spec.sport, spec.dport));
        prop_assert_eq!(segment.flags.0, if spec.l4 == L4::Tcp { spec.tcp_flags } else { 0 });
    }

    #[test]
    fn noise_is_never_read_beyond_its_end(frame in vec(any::<u8>(), 0..200)) {
        stays_inside(&frame)?;
    }

    /// Noise behind a known ethertype is parsed further.
    #[test]
    fn noise_that_says_it_is_ip_is_never_read_beyond_its_end(
        v6: bool,
        mut frame in vec(any::<u8>(), 14..300),
    ) {
        frame[0] &= !1;
        frame[12..14].copy_from_slice(if v6 { &[0x86, 0xdd] } else { &[0x08, 0x00] });
        if let Some(version) = frame.get_mut(14) {
            *version = if v6 { 0x60 } else { 0x40 } | *version & 0x0f;
        }
        stays_inside(&frame)?;
    }

    #[test]
    fn a_damaged_packet_is_never_read_beyond_its_end(
        spec in spec(),
        damage in vec((any::<Index>(), any::<u8>()), 0..6),
        cut in prop::option::of(any::<Index>()),
    ) {
        let mut frame = spec.frame();
        // Damage to headers has an effect.
        let headers = frame.len().min(100);
        for (at, byte) in damage {
            frame[at.index(headers)] = byte;
        }
        if let Some(cut) = cut {
            frame.truncate(cut.index(frame.len() + 1));
        }
        stays_inside(&frame)?;
    }

    #[test]
    fn a_packet_cut_anywhere_before_its_end_is_refused(spec in spec(), cut: Index) {
        let frame = spec.frame();
        let end = frame.len() - spec.padding.len();
        prop_assert!(headers(&frame[..cut.index(end)]).is_err());
    }

    #[test]
    fn lengths_that_contradict_each_other_are_refused(spec in spec(), too_much in 1..100_u16, too_few in 0..5_u8) {
        let sound = spec.frame();
        let l3 = 14 + 4 * spec.tags.len();
        let l4 = l3 + spec.ip_packet().len() - l4_len(&spec);
        let packet = sound.len() - l3;
        let refused = |what: &str, reason: DropReason, damage: &dyn Fn(&mut [u8])| {
            let mut frame = sound.clone();
            damage(&mut frame);
            let verdict = headers(&frame).err();
            prop_assert_eq!(verdict, Some(Verdict::Drop(reason)), "{}", what);
            Ok(())
        };
        let set = |at: usize, value: usize| {
            move |frame: &mut [u8]| frame[at..at + 2].copy_from_slice(&(value as u16).to_be_bytes())
        };
        if spec.is_v6() {
            let beyond = packet - 40 + usize::from(too_much);
            refused("payload length beyond the frame", DropReason::IpHeader, &set(l3 + 4, beyond))?;
            refused("a version of 4", DropReason::IpHeader, &|frame| frame[l3] = 0x45)?;
        } else {
            let beyond = packet + usize::from(too_much);
            refused("total length beyond the frame", DropReason::IpHeader, &set(l3 + 2, beyond))?;
            refused("total length below the header's", DropReason::IpHeader, &set(l3 + 2, 19))?;
            refused("IHL below 5", DropReason::IpHeader, &|frame| frame[l3] = 0x40 | too_few)?;
            refused("a version of 6", DropReason::IpHeader, &|frame| frame[l3] = 0x65)?;
        }
        let l4_len = l4_len(&spec);
        match spec.l4 {
            L4::Udp => {
                let beyond = l4_len + usize::from(too_much);
                refused("UDP length beyond the packet", DropReason::L4Header, &set(l4 + 4, beyond))?;
                refused("UDP length below 8", DropReason::L4Header, &set(l4 + 4, usize::from(too_few)))?;
            }
            L4::Tcp => {
                refused("data offset below 5", DropReason::L4Header, &|frame| frame[l4 + 12] = too_few << 4)?;
                if l4_len < 60 {
                    let beyond = |frame: &mut [u8]| frame[l4 + 12] = 0xf0;
                    refused("data offset beyond the packet", DropReason::L4Header, &beyond)?;
                }
            }
        }
    }

    #[test]
    fn extensions_are_walked_to_their_end_or_refused(
        headers in vec((prop_oneof![Just(0_u8), Just(43), Just(51), Just(60)], any::<u8>()), 1..12),
    ) {
        let mut bytes = Vec::new();
        let kinds: Vec<u8> = headers.iter().map(|(kind, _)| *kind).chain([17]).collect();
        for (i, (kind, len)) in headers.iter().enumerate() {
            let len = len % 4;
            bytes.extend([kinds[i + 1], len]);
            let total = if *kind == 51 { (usize::from(len) + 2) * 4 } else { (usize::from(len) + 1) * 8 };
            bytes.resize(bytes.len() + total - 2, 0);
        }
        let walked = parse::skip_extensions(&bytes[..], kinds[0], 0, bytes.len());
        if headers.len() <= 8 {
            prop_assert_eq!(walked, Ok((17, bytes.len(), false)));
        } else {
            prop_assert!(walked.is_err());
        }
    }

    #[test]
    fn reading_and_writing_stop_at_the_end(mut bytes in vec(any::<u8>(), 0..40), at in 0..60_usize, word: u64) {
        let before = bytes.clone();
        let fits = at + 8 <= bytes.len();
        let frame: &mut [u8] = &mut bytes;
        prop_assert_eq!(frame.write(at, word).is_some(), fits);
        prop_assert_eq!(frame.read::<u64>(at), fits.then_some(word));
        prop_assert!(fits || bytes == before);
        prop_assert_eq!(bytes[..].read::<u64>(usize::MAX - 3), None);
    }
}

fn l4_len(spec: &Spec) -> usize {
    let header = match spec.l4 {
        L4::Tcp => 20 + spec.tcp_options.len(),
        L4::Udp => 8,
    };
    header + spec.payload.len()
}

/// Every offset lies inside the frame, in order.
fn stays_inside(frame: &[u8]) -> Result<(), TestCaseError> {
    if let Ok(ip) = parse::ip(frame) {
        prop_assert!(ip.l3 < ip.next && ip.next <= ip.end && ip.end <= frame.len(), "{ip:?}");
    }
    if let Ok((ip, segment)) = headers(frame) {
        let least = match segment.l4 {
            L4::Tcp => 20,
            L4::Udp => 8,
        };
        prop_assert!(ip.next <= segment.offset && segment.offset + least <= ip.end, "{ip:?} {segment:?}");
    }
    Ok(())
}
