//! Fuzzes the packet logic: no input may cause a panic or an access out of bounds, and results are verified.
//!
//! libFuzzer derives frames from inputs that reached new code. Parsed headers are compared with those of
//! another library, and edited packets with checksums over the whole packet.

#![no_main]

mod sum;

use etherparse::{NetSlice, SlicedPacket, TcpSlice, TransportSlice};
use libfuzzer_sys::{Corpus, fuzz_target};
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::quic::{self, Lengths, Server};
use nlb_common::refusal::{self, Error};
use nlb_common::rewrite::{self, Outer, Tuple};
use nlb_common::verdict::Verdict;
use nlb_common::{fragment, gue, icmp};

fuzz_target!(|frame: &[u8]| -> Corpus {
    let Ok(ip) = parse::ip(frame) else { return Corpus::Keep };
    assert!(ip.l3 < ip.next && ip.next <= ip.end && ip.end <= frame.len(), "{ip:?}");
    fragments(frame, &ip);
    if ip.ttl > 1 {
        encapsulated(frame, &ip);
        in_udp(frame, &ip);
        icmp_error(frame, &ip);
    }
    let answered = refusal::may_be_answered(frame, &ip);
    if answered {
        refused_by_icmp(frame, &ip);
    }
    if let Ok((ip, segment)) = headers(frame, ip) {
        parsed_alike(frame, &ip, &segment);
        if ip.ttl > 1 {
            translated(frame, &ip, &segment);
        }
        match segment.l4 {
            L4::Tcp if answered => refused_by_reset(frame, &ip, &segment),
            L4::Tcp => {}
            L4::Udp => named_by_connection_id(frame, &ip, &segment),
        }
    }
    Corpus::Keep
});

/// The headers of a frame behind any IPv6 extension headers, as the data path parses them.
fn headers(frame: &[u8], ip: Ip) -> Result<(Ip, Segment), Verdict> {
    if !parse::has_extensions(&ip) {
        return Ok((ip, parse::segment(frame, &ip)?));
    }
    let walked = parse::skip_extensions(frame, ip.protocol, ip.next, ip.end);
    let (protocol, next, more_fragments) = walked.map_err(Verdict::Drop)?;
    assert!(next <= ip.end, "the walk ends at {next}, beyond {ip:?}");
    let ip = Ip { protocol, next, more_fragments, ..ip };
    Ok((ip, parse::segment(frame, &ip)?))
}

/// Where another library finds TCP or UDP, the parser has to find the same.
fn parsed_alike(frame: &[u8], ip: &Ip, segment: &Segment) {
    let least = if segment.l4 == L4::Tcp { 20 } else { 8 };
    assert!(ip.next <= segment.offset && segment.offset + least <= ip.end, "{ip:?} {segment:?}");
    let Ok(other) = SlicedPacket::from_ethernet(frame) else { return };
    let addresses = match &other.net {
        Some(NetSlice::Ipv4(v4)) => (Addr::v4(v4.header().source()), Addr::v4(v4.header().destination())),
        Some(NetSlice::Ipv6(v6)) => (Addr::v6(v6.header().source()), Addr::v6(v6.header().destination())),
        _ => panic!("{other:?} is no IP, and was read as {ip:?}"),
    };
    assert_eq!((ip.src, ip.dst), addresses, "{other:?}");
    let (l4, sport, dport) = match &other.transport {
        Some(TransportSlice::Tcp(tcp)) => (L4::Tcp, tcp.source_port(), tcp.destination_port()),
        Some(TransportSlice::Udp(udp)) => (L4::Udp, udp.source_port(), udp.destination_port()),
        // The other library does not parse first fragments.
        None if segment.more_fragments => return,
        _ => panic!("{other:?} was read as {segment:?}"),
    };
    assert_eq!((segment.l4, segment.sport.get(), segment.dport.get()), (l4, sport, dport), "{other:?}");
}

/// Translation leaves a correct checksum correct, a wrong one wrong, and none none, and can be reversed.
fn translated(frame: &[u8], ip: &Ip, segment: &Segment) {
    let to = Tuple { src: other_addr(ip, 1), dst: other_addr(ip, 2), sport: port(1), dport: port(2) };
    let mut after = frame.to_vec();
    rewrite::translate(&mut after[..], ip, segment, &to).expect("a packet that was parsed can be edited");
    let (new_ip, new) = parse::ip(&after[..]).and_then(|ip| headers(&after, ip)).expect("it stays valid");
    assert_eq!((new_ip.src, new_ip.dst, new.sport, new.dport), (to.src, to.dst, to.sport, to.dport));
    assert_eq!(new_ip.ttl, ip.ttl - 1);
    assert_eq!(sum::ip_header(&after, &new_ip), sum::ip_header(frame, ip));
    let check = segment.offset + if segment.l4 == L4::Tcp { 16 } else { 6 };
    let unchecked = segment.l4 == L4::Udp && frame[check..check + 2] == [0, 0];
    if unchecked {
        assert_eq!(after[check..check + 2], [0, 0]);
    } else {
        assert_eq!(sum::segment(&after, &new_ip, new.offset), sum::segment(frame, ip, segment.offset));
        assert!(segment.l4 == L4::Tcp || after[check..check + 2] != [0, 0], "a packet lost its checksum");
    }
}

/// Decapsulation returns the packet that was encapsulated.
fn encapsulated(frame: &[u8], ip: &Ip) {
    for v6 in [false, true] {
        let outer = Outer { src: any_addr(v6, 1), dst: any_addr(v6, 2), flow_label: 0xabcde };
        let grown = Outer::len(v6);
        if ip.end - ip.l3 + grown > usize::from(u16::MAX) {
            continue;
        }
        let mut after = vec![0; grown];
        after.extend_from_slice(frame);
        rewrite::encapsulate(&mut after[..], ip, grown, &outer).expect("there is room");
        let read = parse::ip(&after[..]).expect("an outer header is valid");
        assert_eq!((read.v6, read.src, read.dst, read.end), (v6, outer.src, outer.dst, ip.end + grown));
        assert!(v6 || sum::ip_header(&after, &read) == sum::CORRECT);
        rewrite::decapsulate(&mut after[..], &read, grown, ip.v6).expect("it can be removed");
        assert_eq!(&after[grown..], frame);
    }
}

/// Decapsulation from UDP returns the packet that was encapsulated. The outer checksum is correct if the
/// inner one is.
fn in_udp(frame: &[u8], ip: &Ip) {
    let mut aged = frame.to_vec();
    rewrite::decrement_ttl(&mut aged[..], ip).expect("it has a TTL");
    for v6 in [false, true] {
        let outer = Outer { src: any_addr(v6, 1), dst: any_addr(v6, 2), flow_label: 0xabcde };
        let grown = Outer::len(v6) + gue::HEADER;
        if ip.end - ip.l3 + grown > usize::from(u16::MAX) {
            continue;
        }
        let mut after = vec![0; grown];
        after.extend_from_slice(&aged);
        gue::encapsulate(&mut after[..], ip, grown, &outer, (port(1), port(2))).expect("there is room");
        let read = parse::ip(&after[..]).expect("an outer header is valid");
        let udp = parse::segment(&after[..], &read).expect("its UDP header is valid");
        assert_eq!((udp.l4, udp.sport, udp.dport), (L4::Udp, port(1), port(2)));
        let inner = gue::inner(&after[..], &read, port(2)).expect("an inner packet");
        assert_eq!(
            (inner.at, inner.end, inner.version),
            (ip.l3 + grown, read.end, if ip.v6 { 6 } else { 4 })
        );
        if after[udp.offset + 6..udp.offset + 8] != [0, 0] {
            assert!(v6);
            let inside = match ip.protocol {
                1 => sum::icmp(&aged, ip),
                _ => sum::segment(&aged, ip, ip.next),
            };
            let both = (u32::from(sum::ip_header(&aged, ip)) + u32::from(inside)) % 0xffff;
            assert_eq!(u32::from(sum::segment(&after, &read, udp.offset)), both);
        }
        rewrite::decapsulate(&mut after[..], &read, grown, ip.v6).expect("it can be removed");
        assert_eq!(&after[grown..], aged);
    }
}

/// The server id that is found is in the octets of the connection id.
fn named_by_connection_id(frame: &[u8], ip: &Ip, segment: &Segment) {
    let server = Server::new(0, &[1, 2, 3]).expect("three octets");
    let lengths = Lengths::default().with(&server).with(&Server { config: 5, len: 8, id: 0 });
    let Some(found) = quic::server(frame, segment.offset, ip.end, lengths) else { return };
    let id = &found.id.to_be_bytes()[..usize::from(found.len)];
    assert!(matches!((found.config, found.len), (0, 3) | (5, 8)));
    assert!(frame[segment.offset + 8..ip.end].windows(id.len()).any(|octets| octets == id), "{found:?}");
}

/// Translation of an ICMP error leaves its checksum correct or wrong as it was, and that of the quoted header
/// too.
fn icmp_error(frame: &[u8], ip: &Ip) {
    // Random bytes would rarely quote a packet of the error's receiver.
    let mut frame = frame.to_vec();
    let (dst, quoted_src) = if ip.v6 { (24..40, 8) } else { (16..20, 12) };
    let quoted_src = ip.next + 8 + quoted_src;
    if icmp::is_icmp(ip) && quoted_src + dst.len() <= frame.len() {
        frame.copy_within(ip.l3 + dst.start..ip.l3 + dst.end, quoted_src);
    }
    let frame = &frame[..];
    let Some(quote) = icmp::quote(frame, ip) else { return };
    assert!(quote.l3 + 20 <= quote.offset && quote.offset + 8 <= ip.end, "{ip:?} {quote:?}");
    let inner = Tuple { src: other_addr(ip, 3), dst: other_addr(ip, 4), sport: port(3), dport: port(4) };
    let outer = (other_addr(ip, 5), inner.src);
    let mut after = frame.to_vec();
    icmp::translate(&mut after[..], ip, &quote, outer, &inner).expect("what was found can be edited");
    let new_ip = parse::ip(&after[..]).expect("it stays valid");
    let new = icmp::quote(&after[..], &new_ip).expect("it stays an ICMP error");
    assert_eq!((new.src, new.dst, new.sport, new.dport), (inner.src, inner.dst, inner.sport, inner.dport));
    assert_eq!((new_ip.src, new_ip.dst), outer);
    assert_eq!(sum::ip_header(&after, &new_ip), sum::ip_header(frame, ip));
    assert_eq!(sum::icmp(&after, &new_ip), sum::icmp(frame, ip));
}

/// A refusal by ICMP is a valid packet to the sender.
fn refused_by_icmp(frame: &[u8], ip: &Ip) {
    let grown = refusal::ICMP_GROWTH[usize::from(ip.v6)];
    for error in [Error::PortUnreachable, Error::TtlExceeded, Error::TooBig(1400)] {
        let mut after = vec![0; grown];
        after.extend_from_slice(frame);
        let Some(len) = refusal::icmp_error(&mut after[..], ip, grown, error) else { continue };
        after.truncate(len);
        let answer = parse::ip(&after[..]).expect("an answer is valid");
        assert_eq!((answer.src, answer.dst, answer.end), (ip.dst, ip.src, len));
        assert!(answer.v6 || sum::ip_header(&after, &answer) == sum::CORRECT);
        assert_eq!(sum::icmp(&after, &answer), sum::CORRECT);
    }
}

fn refused_by_reset(frame: &[u8], ip: &Ip, segment: &Segment) {
    let mut after = frame.to_vec();
    let Some(len) = refusal::reset(&mut after[..], ip, segment) else { return };
    after.truncate(len);
    let (answer, reset) = parse::ip(&after[..]).and_then(|ip| headers(&after, ip)).expect("a reset is valid");
    assert_eq!(
        (answer.src, answer.dst, reset.sport, reset.dport),
        (ip.dst, ip.src, segment.dport, segment.sport)
    );
    assert!(answer.v6 || sum::ip_header(&after, &answer) == sum::CORRECT);
    assert_eq!(sum::segment(&after, &answer, reset.offset), sum::CORRECT);
    let (asked, told) = (SlicedPacket::from_ethernet(frame), SlicedPacket::from_ethernet(&after));
    if let (Some(asked), Some(told)) = (tcp(&asked), tcp(&told))
        && !asked.ack()
    {
        let taken = asked.payload().len() as u32 + u32::from(asked.syn()) + u32::from(asked.fin());
        let next = asked.sequence_number().wrapping_add(taken);
        assert_eq!((told.acknowledgment_number(), told.sequence_number()), (next, 0));
    }
}

fn tcp<'a, E>(packet: &'a Result<SlicedPacket<'a>, E>) -> Option<&'a TcpSlice<'a>> {
    match packet.as_ref().ok()?.transport.as_ref()? {
        TransportSlice::Tcp(tcp) => Some(tcp),
        _ => None,
    }
}

/// Later fragments are distinguished from first ones.
fn fragments(frame: &[u8], ip: &Ip) {
    if ip.v6 {
        fragment::v6(frame, ip.protocol, ip.next);
    } else if ip.is_fragment() {
        let found = fragment::v4(frame, ip).expect("a fragment has an id");
        assert_eq!(found.later, ip.later_fragment);
    }
}

fn other_addr(ip: &Ip, number: u8) -> Addr {
    any_addr(ip.v6, number)
}

fn any_addr(v6: bool, number: u8) -> Addr {
    if v6 {
        Addr::v6([0xfd, 7, 0, 9, 200, 3, 0, 0, 0, 77, 0, 0, 0, 0, 1, number])
    } else {
        Addr::v4([10, 200, 7, number])
    }
}

fn port(number: u16) -> Be16 {
    Be16::new(40_000 + number)
}
