//! Generic UDP Encapsulation, variant 1: the inner IP packet lies directly behind a UDP header (draft-ietf-intarea-gue).
//! Its first bits, an IP version, tell it from variant 0, which has a header of its own.
//!
//! A UDP header in front lets networks and receivers tell flows apart by ports, as they do anyway: the source port is the
//! flow's. Over IPv6 it wants a checksum over the whole inner packet, which nobody sums up here: a segment whose own checksum is
//! right sums up to the complement of its pseudo header (the kernel calls that local checksum offload), so the headers tell
//! the rest. Where the inner checksum is wrong, the outer one is wrong by the same amount.

use network_types::udp::UdpHdr;

use crate::checksum::{Delta, pseudo_header};
use crate::frame::Frame;
use crate::net::Be16;
use crate::parse::Ip;
use crate::protocol::{UDP_LEN, ip as protocol};
use crate::rewrite::{self, Outer};

/// The port that IANA has assigned.
pub const PORT: u16 = 6080;

/// Bytes that GUE takes behind the outer IP header.
pub const HEADER: usize = UDP_LEN;

/// The source port of a flow's outer headers: one of IANA's dynamic ports, 49152 to 65535 (RFC 6335 section 6), by the upper
/// bits of a hash of which the flow label has the lower ones.
#[inline(always)]
pub const fn source_port(hash: u32) -> Be16 {
    Be16::new(0xc000 | (hash >> 18) as u16)
}

/// Puts outer IP and UDP headers in front of the packet. Everything else is as [`rewrite::encapsulate`] has it; the frame has
/// grown by [`HEADER`] more, and the inner TTL is already one less than in `ip`.
#[inline(always)]
pub fn encapsulate<F: Frame + ?Sized>(
    frame: &mut F,
    ip: &Ip,
    grown: usize,
    outer: &Outer,
    (sport, dport): (Be16, Be16),
) -> Option<()> {
    let v6 = !outer.dst.is_v4();
    let len = Be16::new((ip.total_len() + HEADER) as u16);
    // RFC 768 lets a tunnel do without over IPv4, RFC 6935 over IPv6.
    let mut check = Be16::new(0);
    if v6 && let Some(inner) = inner_sum(frame, ip, grown) {
        let ports = Delta::new().word16(0, sport.word()).word16(0, dport.word());
        let all = inner.and(ports).and(pseudo_header(outer.src, outer.dst, protocol::UDP, len));
        check = all.word16(0, len.word()).apply(Be16::new(0xffff));
        if check.is_zero() {
            check = Be16::new(0xffff);
        }
    }
    rewrite::wrap(frame, ip, grown, outer, protocol::UDP, len)?;
    frame.write(
        ip.l3 + Outer::len(v6),
        UdpHdr { src: sport.bytes(), dst: dport.bytes(), len: len.bytes(), check: check.bytes() },
    )
}

/// What the inner packet adds to a sum, from its headers alone. `None` where they do not tell: a fragment has only a part of
/// what its checksum covers, a UDP datagram may have no checksum or be followed by bytes that it does not cover, and options or
/// extension headers (source routes, home addresses) may say that a checksum was made with other addresses.
#[inline(always)]
fn inner_sum<F: Frame + ?Sized>(frame: &F, ip: &Ip, grown: usize) -> Option<Delta> {
    let len = ip.end - ip.next;
    if ip.is_fragment() || ip.next - ip.l3 != Outer::len(ip.v6) {
        return None;
    }
    if ip.protocol == protocol::UDP {
        let udp: UdpHdr = frame.read(ip.next + grown)?;
        if udp.check == [0, 0] || Be16::from_bytes(udp.len).get() as usize != len {
            return None;
        }
    }
    if ip.v6 {
        if !matches!(ip.protocol, protocol::TCP | protocol::UDP | protocol::ICMPV6) {
            return None;
        }
        // The pseudo header of the segment takes addresses and length out again.
        let first: u32 = frame.read(ip.l3 + grown)?;
        let next_header = |hops: u8| u16::from_ne_bytes([ip.protocol, hops]);
        let taken_out = u16::from_ne_bytes([0, ip.protocol]);
        return Some(Delta::new().word32(0, first).word16(taken_out, next_header(ip.ttl - 1)));
    }
    // A header of IPv4 sums up to nothing, for its own checksum, and so does an ICMP message.
    match ip.protocol {
        protocol::ICMP => Some(Delta::new()),
        protocol::TCP | protocol::UDP => {
            let pseudo = pseudo_header(ip.src, ip.dst, ip.protocol, Be16::new(len as u16));
            Some(Delta::new().word16(pseudo.folded(), 0))
        }
        _ => None,
    }
}

/// A tunnel's payload.
pub struct Inner {
    /// Offset of the inner IP header.
    pub at: usize,
    /// Offset behind the datagram.
    pub end: usize,
    pub version: u8,
}

/// The IP packet that a UDP datagram to `port` carries. `None` if it is to another port or has a GUE header (variant 0), which
/// are the kernel's to take; and of fragments, which the kernel may put together.
#[inline(always)]
pub fn inner<F: Frame + ?Sized>(frame: &F, outer: &Ip, port: Be16) -> Option<Inner> {
    if outer.is_fragment() {
        return None;
    }
    let udp: UdpHdr = frame.read(outer.next)?;
    let at = outer.next + HEADER;
    let [first, _]: [u8; 2] = frame.read(at)?;
    let end = outer.next + Be16::from_bytes(udp.len).get() as usize;
    let direct = first >> 6 == 1;
    (direct && udp.dst == port.bytes()).then_some(Inner { at, end, version: first >> 4 })
}
