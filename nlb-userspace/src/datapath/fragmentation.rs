//! Fragmentation of IPv4 packets (RFC 791 section 3.2), for packets that are longer than the next link's MTU
//! and whose senders allow it.
//!
//! A packet is fragmented before it is balanced: the program runs on each fragment as on those that hosts
//! send. Tunnels therefore carry fragments and are not fragmented themselves, so that the end of a tunnel has
//! nothing to reassemble.

use nlb_common::abi::FragmentKey;
use nlb_common::checksum::{full, pseudo_header};
use nlb_common::fragment;
use nlb_common::frame::Frame as _;
use nlb_common::net::Be16;
use nlb_common::parse;
use nlb_common::protocol::{IPV4_LEN, fragment as flags, ip as protocol};

/// The fragments of a frame with an IPv4 packet, each with an IP packet of up to `mtu` bytes and the frame's
/// own link header. A packet that fits is its only fragment. `None` for a frame that cannot be fragmented.
pub fn fragments(frame: &[u8], mtu: usize) -> Option<Vec<Vec<u8>>> {
    let ip = parse::ip(frame).ok().filter(|ip| !ip.v6)?;
    let header = frame.get(..ip.next)?;
    let data = frame.get(ip.next..ip.end)?;
    let header_len = ip.next - ip.l3;
    if header_len + data.len() <= mtu {
        return Some(vec![frame.get(..ip.end)?.to_vec()]);
    }
    // Offsets count in units of 8 bytes.
    let room = mtu.checked_sub(header_len)? & !7;
    if room == 0 {
        return None;
    }
    let old = Be16::from_word(frame.read(ip.l3 + 6)?).get();
    let (first, more) = (old & flags::OFFSET, old & flags::MORE != 0);
    let pieces = data.chunks(room);
    let last = pieces.len() - 1;
    let mut made = Vec::with_capacity(pieces.len());
    for (number, piece) in pieces.enumerate() {
        let mut fragment = [header, piece].concat();
        let offset = first + (number * room / 8) as u16;
        let more = if number < last || more { flags::MORE } else { 0 };
        let options = fragment.get_mut(ip.l3 + IPV4_LEN..ip.next)?;
        if number > 0 {
            remove_options_of_the_first(options);
        }
        fragment[..].write(ip.l3 + 2, ((header_len + piece.len()) as u16).to_be())?;
        fragment[..].write(ip.l3 + 6, (offset | more).to_be())?;
        fragment[..].write(ip.l3 + 10, 0_u16)?;
        let sum = full(fragment.get(ip.l3..ip.next)?);
        fragment[..].write(ip.l3 + 10, sum.word())?;
        made.push(fragment);
    }
    Some(made)
}

/// Options whose type has the copied flag are in every fragment, the others in the first one only. They are
/// overwritten with no-operations, so that the header's length stays.
fn remove_options_of_the_first(options: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut at = 0;
    while let Some(&kind) = options.get(at) {
        let len = match kind {
            END => return,
            NO_OPERATION => 1,
            _ => options.get(at + 1).map_or(0, |len| usize::from(*len)),
        };
        let Some(option) = options.get_mut(at..at + len).filter(|option| !option.is_empty()) else { return };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        at += len;
    }
}

/// What the fragments of the frame's packet have in common, if it is a fragment itself.
pub fn key(frame: &[u8]) -> Option<FragmentKey> {
    let ip = parse::ip(frame).ok().filter(|ip| !ip.v6 && ip.is_fragment())?;
    let id = fragment::v4(frame, &ip)?.id;
    Some(FragmentKey { src: ip.src, dst: ip.dst, id, protocol: ip.protocol.into() })
}

/// Completes a partial checksum, the sum of the pseudo header, which a local stack leaves to the interface. A
/// fragment has no interface that could complete it.
pub fn complete_checksum(frame: &mut [u8]) -> Option<()> {
    let ip = parse::ip(frame).ok().filter(|ip| !ip.is_fragment())?;
    let field = ip.next
        + match ip.protocol {
            protocol::TCP => 16,
            protocol::UDP => 6,
            _ => return None,
        };
    let pseudo = pseudo_header(ip.src, ip.dst, ip.protocol, Be16::new((ip.end - ip.next) as u16));
    if frame.read::<u16>(field)? != pseudo.folded() {
        return None;
    }
    frame.write(field, 0_u16)?;
    let sum = pseudo.apply(full(frame.get(ip.next..ip.end)?));
    // A UDP checksum of 0 means that there is none (RFC 768).
    let sum = if ip.protocol == protocol::UDP && sum.is_zero() { Be16::new(0xffff) } else { sum };
    frame.write(field, sum.word())
}

#[cfg(test)]
mod tests {
    use nlb_common::net::Addr;

    use super::*;

    const SRC: [u8; 4] = [192, 0, 2, 1];
    const DST: [u8; 4] = [192, 0, 2, 2];

    /// A frame with a UDP packet that carries these options and data, with these flags and offset.
    fn frame(options: &[u8], flags: u16, data: &[u8]) -> Vec<u8> {
        let header_len = IPV4_LEN + options.len();
        let [a, b] = ((header_len + data.len()) as u16).to_be_bytes();
        let [c, d] = flags.to_be_bytes();
        let mut ip = vec![0x40 | (header_len / 4) as u8, 0, a, b, 0x12, 0x34, c, d, 64, 17, 0, 0];
        ip.extend([SRC, DST].concat());
        ip.extend(options);
        let sum = full(&ip);
        ip[10..12].copy_from_slice(&sum.bytes());
        [&[2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0][..], &ip, data].concat()
    }

    /// The options, the flags with the offset, and the data of each fragment, all of which have to be valid.
    fn parts(fragments: &[Vec<u8>], mtu: usize) -> Vec<(Vec<u8>, u16, Vec<u8>)> {
        let part = |fragment: &Vec<u8>| {
            let ip = parse::ip(&fragment[..]).expect("a valid packet");
            assert!(ip.total_len() <= mtu && ip.end == fragment.len());
            assert!(full(&fragment[ip.l3..ip.next]).is_zero(), "the header's checksum");
            assert_eq!(fragment[ip.l3 + 4..ip.l3 + 6], [0x12, 0x34], "the identification");
            let flags = u16::from_be_bytes([fragment[ip.l3 + 6], fragment[ip.l3 + 7]]);
            (fragment[ip.l3 + IPV4_LEN..ip.next].to_vec(), flags, fragment[ip.next..].to_vec())
        };
        fragments.iter().map(part).collect()
    }

    fn data(len: usize) -> Vec<u8> {
        (0..len).map(|n| n as u8).collect()
    }

    #[test]
    fn fragments_fill_the_mtu_in_units_of_eight_bytes() {
        for (len, mtu, pieces) in [(1481, 1500, 2), (3000, 1399, 3), (100, 28, 13), (65_515, 1500, 45)] {
            let whole = data(len);
            let made = parts(&fragments(&frame(&[], 0, &whole), mtu).expect("fragments"), mtu);
            assert_eq!(made.len(), pieces);
            let mut at = 0;
            for (number, (_, fragment, piece)) in made.iter().enumerate() {
                let more = if number + 1 < pieces { flags::MORE } else { 0 };
                assert_eq!(*fragment, more | (at / 8) as u16);
                assert_eq!(piece[..], whole[at..at + piece.len()]);
                at += piece.len();
            }
            assert_eq!(at, len);
        }
    }

    #[test]
    fn a_packet_that_fits_stays_as_it_is_without_its_padding() {
        let fits = frame(&[], 0, &data(1480));
        let padded = [&fits[..], &[0; 6]].concat();
        assert_eq!(fragments(&padded, 1500), Some(vec![fits]));
    }

    #[test]
    fn a_fragment_is_fragmented_again() {
        let made = fragments(&frame(&[], flags::MORE | 185, &data(1480)), 1400).expect("fragments");
        let found: Vec<u16> = parts(&made, 1400).iter().map(|(_, fragment, _)| *fragment).collect();
        assert_eq!(
            found,
            [flags::MORE | 185, flags::MORE | (185 + 172)],
            "more fragments follow the last one"
        );
        let made = fragments(&frame(&[], 185, &data(1480)), 1400).expect("fragments");
        let found: Vec<u16> = parts(&made, 1400).iter().map(|(_, fragment, _)| *fragment).collect();
        assert_eq!(found, [flags::MORE | 185, 185 + 172]);
    }

    #[test]
    fn options_with_the_copied_flag_are_in_every_fragment() {
        // Record route, router alert, no-operation, end.
        let options = [7, 7, 4, 0, 0, 0, 0, 0x94, 4, 0, 0, 1, 1, 0, 9, 9];
        let later = [1, 1, 1, 1, 1, 1, 1, 0x94, 4, 0, 0, 1, 1, 0, 9, 9];
        let made = parts(&fragments(&frame(&options, 0, &data(3000)), 1500).expect("fragments"), 1500);
        let found: Vec<&[u8]> = made.iter().map(|(options, _, _)| &options[..]).collect();
        assert_eq!(found, [&options[..], &later, &later]);
        for broken in [[7, 0, 0, 0], [7, 1, 0, 0], [7, 9, 0, 0], [7, 4, 4, 7]] {
            assert!(fragments(&frame(&broken, 0, &data(3000)), 1500).is_some(), "{broken:?}");
        }
    }

    #[test]
    fn an_mtu_without_room_for_data_makes_no_fragments() {
        assert_eq!(fragments(&frame(&[], 0, &data(100)), 27), None);
        assert_eq!(fragments(&frame(&[], 0, &data(100)), 0), None);
        assert_eq!(fragments(&[0; 10], 1500), None);
    }

    #[test]
    fn only_a_partial_checksum_is_completed() {
        let datagram = |sum: Be16| {
            let mut udp = [&[0, 1, 0, 2, 0, 0, 0, 0][..], &data(101)].concat();
            let len = udp.len() as u16;
            udp[4..6].copy_from_slice(&len.to_be_bytes());
            udp[6..8].copy_from_slice(&sum.bytes());
            udp
        };
        let pseudo = pseudo_header(Addr::v4(SRC), Addr::v4(DST), 17, Be16::new(109));
        let correct = pseudo.apply(full(&datagram(Be16::new(0))));
        let partial = Be16::from_word(pseudo.folded());
        for (before, after) in [
            (partial, correct),
            (correct, correct),
            (Be16::new(0), Be16::new(0)),
            (Be16::new(correct.get() ^ 1), Be16::new(correct.get() ^ 1)),
        ] {
            let mut sent = frame(&[], 0, &datagram(before));
            complete_checksum(&mut sent);
            assert_eq!(sent, frame(&[], 0, &datagram(after)), "{before:?}");
        }
    }
}
