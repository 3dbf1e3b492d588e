//! The frames that the model expects, with every checksum computed in full.
//!
//! A wrong checksum has to stay wrong by as much, so that the receiver detects the error. In ones' complement
//! arithmetic, the difference to the right sum is carried over from the old checksum to the new one.

use std::fmt;
use std::net::IpAddr;

use etherparse::checksum::Sum16BitWords;
use etherparse::{IpNumber, Ipv4Header, Ipv6Header, TcpHeader, UdpHeader};
use nlb::model::L4;

use super::headers::{Ip, Segment, Tcp};
use crate::packet::Mac;

/// The ICMP errors that a sender gets.
#[derive(Clone, Copy, Debug)]
pub enum IcmpError {
    PortUnreachable,
    TtlExceeded,
    /// With the MTU.
    TooBig(u16),
}

/// An expected frame. A wrong checksum that comes to zero has two equal forms.
pub struct Frame {
    pub bytes: Vec<u8>,
    pub either_zero: Vec<usize>,
}

impl fmt::Debug for Frame {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", hex(&self.bytes))
    }
}

/// Bytes in hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Frame {
    pub fn of(bytes: &[u8]) -> Frame {
        Frame { bytes: bytes.to_vec(), either_zero: Vec::new() }
    }

    pub fn is(&self, other: &[u8]) -> bool {
        let mut other = other.to_vec();
        for at in &self.either_zero {
            if let Some(word) = other.get_mut(*at..at + 2).filter(|word| **word == [0xff; 2]) {
                word.fill(0);
            }
        }
        self.bytes == other
    }

    pub fn macs(mut self, dst: Mac, src: Mac) -> Frame {
        self.bytes[..6].copy_from_slice(&dst);
        self.bytes[6..12].copy_from_slice(&src);
        self
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Replaces the checksum at `at` by the new one, with the old one's difference.
    fn carry(&mut self, at: usize, old_full: u16, new_full: u16) {
        let stored = u16::from_be_bytes([self.bytes[at], self.bytes[at + 1]]);
        if stored == old_full {
            return self.put(at, &new_full.to_be_bytes());
        }
        let carried = (u32::from(new_full) + u32::from(stored) + 0xffff - u32::from(old_full)) % 0xffff;
        self.put(at, &(carried as u16).to_be_bytes());
        if carried == 0 {
            self.either_zero.push(at);
        }
    }
}

/// The frame with the TTL decremented.
pub fn decremented(frame: &[u8], ip: &Ip) -> Frame {
    let mut changed = Frame::of(frame);
    changed.bytes[ip.l3 + if ip.v6 { 7 } else { 8 }] = ip.ttl - 1;
    if !ip.v6 {
        let (old, new) = (header_sum(frame, ip), header_sum(&changed.bytes, ip));
        changed.carry(ip.l3 + 10, old, new);
    }
    changed
}

/// The frame with other addresses and the TTL decremented. The bytes after the IP header are unchanged.
pub fn readdressed(frame: &[u8], ip: &Ip, src: IpAddr, dst: IpAddr) -> Frame {
    let mut new = Frame::of(frame);
    new.bytes[ip.l3 + if ip.v6 { 7 } else { 8 }] = ip.ttl - 1;
    let (addresses, len) = if ip.v6 { (ip.l3 + 8, 16) } else { (ip.l3 + 12, 4) };
    new.put(addresses, &octets(src));
    new.put(addresses + len, &octets(dst));
    if !ip.v6 {
        let (old, sum) = (header_sum(frame, ip), header_sum(&new.bytes, ip));
        new.carry(ip.l3 + 10, old, sum);
    }
    new
}

/// The frame with this source and destination and the TTL decremented.
pub fn translated(frame: &[u8], ip: &Ip, segment: &Segment, src: (IpAddr, u16), dst: (IpAddr, u16)) -> Frame {
    let mut new = readdressed(frame, ip, src.0, dst.0);
    new.put(segment.at, &src.1.to_be_bytes());
    new.put(segment.at + 2, &dst.1.to_be_bytes());
    let at = segment.at + if segment.l4 == L4::Tcp { 16 } else { 6 };
    let none = segment.l4 == L4::Udp && frame[at..at + 2] == [0, 0];
    if !none {
        let old = segment_sum(frame, segment, ip.src, ip.dst);
        let sum = segment_sum(&new.bytes, segment, src.0, dst.0);
        new.carry(at, old, sum);
        if segment.l4 == L4::Udp {
            // Zero would mean that there is no checksum.
            new.either_zero.retain(|zero| *zero != at);
            if new.bytes[at..at + 2] == [0, 0] {
                new.put(at, &[0xff; 2]);
            }
        }
    }
    new
}

/// The outer headers of a packet.
pub struct Outer {
    pub src: IpAddr,
    pub dst: IpAddr,
    /// The ports of the outer UDP header, if there is one.
    pub ports: Option<(u16, u16)>,
}

/// The frame with outer headers and the inner TTL decremented.
pub fn wrapped(frame: &[u8], ip: &Ip, outer: &Outer, flow_label: u32) -> Frame {
    let mut changed = decremented(frame, ip);
    let udp = outer.ports.map(|ports| outer_udp(&changed.bytes, ip, outer, ports));
    let udp = udp.map_or(Vec::new(), |header| header.to_bytes().to_vec());
    let inner_len = (ip.end - ip.l3 + udp.len()) as u16;
    let protocol = IpNumber(if outer.ports.is_some() {
        17
    } else if ip.v6 {
        41
    } else {
        4
    });
    let (kind, mut header) = match (outer.src, outer.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut outer =
                Ipv4Header::new(inner_len, 64, protocol, src.octets(), dst.octets()).expect("short");
            outer.dont_fragment = true;
            outer.dscp = (ip.tos >> 2).try_into().expect("6 bits");
            outer.ecn = (ip.tos & 3).try_into().expect("2 bits");
            outer.header_checksum = outer.calc_header_checksum();
            ([0x08, 0x00], outer.to_bytes().to_vec())
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let outer = Ipv6Header {
                traffic_class: ip.tos,
                flow_label: flow_label.try_into().expect("20 bits"),
                payload_length: inner_len,
                next_header: protocol,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
            };
            ([0x86, 0xdd], outer.to_bytes().to_vec())
        }
        (src, dst) => panic!("{src} and {dst} are of two families"),
    };
    header.extend(udp);
    changed.put(ip.l3 - 2, &kind);
    let inner = changed.bytes.split_off(ip.l3);
    changed.bytes.extend(&header);
    changed.bytes.extend(inner);
    for at in &mut changed.either_zero {
        *at += header.len();
    }
    changed
}

/// The UDP header of GUE. Over IPv6 it has a checksum if the inner checksums cover all of the inner packet.
/// It is computed with correct inner checksums, so that an error in them makes it wrong.
fn outer_udp(frame: &[u8], ip: &Ip, outer: &Outer, (source_port, destination_port): (u16, u16)) -> UdpHeader {
    let mut inner = frame.to_vec();
    let length = (ip.end - ip.l3 + 8) as u16;
    let mut udp = UdpHeader { source_port, destination_port, length, checksum: 0 };
    let (IpAddr::V6(src), IpAddr::V6(dst)) = (outer.src, outer.dst) else { return udp };
    let bare = ip.next - ip.l3 == if ip.v6 { 40 } else { 20 };
    let Ok(segment) = super::headers::segment(frame, ip) else { return udp };
    let at = segment.at + if segment.l4 == L4::Tcp { 16 } else { 6 };
    let none = segment.l4 == L4::Udp && frame[at..at + 2] == [0, 0];
    let whole = segment.at == ip.next && segment.at + segment.len == ip.end && ip.fragment == (0, false);
    if bare && whole && !none {
        if !ip.v6 {
            inner[ip.l3 + 10..ip.l3 + 12].copy_from_slice(&header_sum(frame, ip).to_be_bytes());
        }
        inner[at..at + 2].copy_from_slice(&segment_sum(frame, &segment, ip.src, ip.dst).to_be_bytes());
        let sum = udp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &inner[ip.l3..ip.end]);
        udp.checksum = sum.expect("short");
    }
    udp
}

/// The reset for a segment without a connection (RFC 9293 section 3.10.7.1).
pub fn reset(frame: &[u8], ip: &Ip, segment: &Segment, tcp: &Tcp) -> Frame {
    let mut answer = TcpHeader::new(segment.dport, segment.sport, 0, 0);
    answer.rst = true;
    if tcp.ack {
        answer.sequence_number = tcp.ack_number;
    } else {
        let data = (segment.len - tcp.header_len) as u32;
        answer.ack = true;
        answer.acknowledgment_number = tcp.seq.wrapping_add(data + u32::from(tcp.syn) + u32::from(tcp.fin));
    }
    let header = match (ip.dst, ip.src) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut header =
                Ipv4Header::new(20, 64, IpNumber::TCP, src.octets(), dst.octets()).expect("short");
            header.dont_fragment = false;
            header.header_checksum = header.calc_header_checksum();
            answer.checksum = answer.calc_checksum_ipv4(&header, &[]).expect("short");
            header.to_bytes().to_vec()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let header = Ipv6Header {
                payload_length: 20,
                next_header: IpNumber::TCP,
                hop_limit: 64,
                source: src.octets(),
                destination: dst.octets(),
                ..Default::default()
            };
            answer.checksum = answer.calc_checksum_ipv6(&header, &[]).expect("short");
            header.to_bytes().to_vec()
        }
        _ => unreachable!("one header has one family"),
    };
    let mut bytes = [&frame[6..12], &frame[..6], &frame[12..ip.l3]].concat();
    bytes.extend(header);
    bytes.extend(&answer.to_bytes()[..]);
    Frame::of(&bytes)
}

/// Whether `out` is this ICMP error to the sender of `frame` (RFC 792, RFC 1191 section 4, RFC 4443 sections
/// 3.1 to 3.3).
pub fn is_icmp_error(frame: &[u8], ip: &Ip, error: IcmpError, out: &[u8]) -> bool {
    let Ok(answer) = super::headers::ip(out) else { return false };
    let icmp = &out[answer.next..answer.end];
    let (protocol, kind, rest) = match (error, ip.v6) {
        (IcmpError::PortUnreachable, false) => (1, [3, 3], 0),
        (IcmpError::PortUnreachable, true) => (58, [1, 4], 0),
        (IcmpError::TtlExceeded, false) => (1, [11, 0], 0),
        (IcmpError::TtlExceeded, true) => (58, [3, 0], 0),
        (IcmpError::TooBig(mtu), false) => (1, [3, 4], mtu),
        (IcmpError::TooBig(mtu), true) => (58, [2, 0], mtu),
    };
    let rest = u32::from(rest).to_be_bytes();
    if icmp.len() < 8 + 8 || answer.protocol != protocol || icmp[..2] != kind || icmp[4..8] != rest {
        return false;
    }
    let pseudo = if ip.v6 {
        Sum16BitWords::new().add_slice(&octets(answer.src)).add_slice(&octets(answer.dst)).add_slice(&[
            0,
            0,
            (icmp.len() >> 8) as u8,
            icmp.len() as u8,
            0,
            0,
            0,
            58,
        ])
    } else {
        Sum16BitWords::new()
    };
    // The quoted packet: its header with options, and at least 8 bytes more.
    let quoted = &icmp[8..];
    let whole = quoted.len() >= ip.next - ip.l3 + 8 && frame[ip.l3..ip.end].starts_with(quoted);
    whole
        && out[..12] == [&frame[6..12], &frame[..6]].concat()
        && out[12..answer.l3] == frame[12..ip.l3]
        && (answer.src, answer.dst) == (ip.dst, ip.src)
        && (ip.v6 || out[answer.l3 + 10..answer.l3 + 12] == header_sum(out, &answer).to_be_bytes())
        && pseudo.add_slice(icmp).ones_complement() == 0
        && answer.end == out.len()
}

fn header_sum(frame: &[u8], ip: &Ip) -> u16 {
    let header = &frame[ip.l3..ip.next];
    let sum = Sum16BitWords::new().add_slice(&header[..10]).add_slice(&header[12..]);
    sum.ones_complement().to_be()
}

fn segment_sum(frame: &[u8], segment: &Segment, src: IpAddr, dst: IpAddr) -> u16 {
    let bytes = &frame[segment.at..segment.at + segment.len];
    let (at, protocol) = if segment.l4 == L4::Tcp { (16, 6) } else { (6, 17) };
    let sum = Sum16BitWords::new()
        .add_slice(&octets(src))
        .add_slice(&octets(dst))
        .add_slice(&[0, protocol])
        .add_slice(&(segment.len as u16).to_be_bytes())
        .add_slice(&bytes[..at])
        .add_slice(&bytes[at + 2..])
        .ones_complement()
        .to_be();
    if segment.l4 == L4::Udp && sum == 0 { 0xffff } else { sum }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
