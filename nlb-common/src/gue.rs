//! Generic UDP Encapsulation, variant 1: the inner IP packet follows the UDP header (draft-ietf-intarea-gue).
//! The first bits of the payload, an IP version, distinguish it from variant 0, which has a header of its
//! own.
//!
//! By the outer source port, which depends on the flow, networks and receivers spread flows as usual. Over
//! IPv6 the UDP header needs a checksum over the whole inner packet, which is not summed here: the sum of a
//! segment with a correct checksum is the complement of its pseudo header (local checksum offload in the
//! kernel), so the headers determine the rest. If the inner checksum is wrong, the outer one is wrong by the
//! same amount.

use network_types::udp::UdpHdr;

use crate::checksum::{Delta, pseudo_header};
use crate::frame::Frame;
use crate::net::Be16;
use crate::parse::Ip;
use crate::protocol::{UDP_LEN, ip as protocol};
use crate::rewrite::{self, Outer};

/// GUE's port, as IANA has assigned it.
pub const PORT: u16 = 6080;

/// The bytes of GUE behind the outer IP header.
pub const HEADER: usize = UDP_LEN;

/// The source port of a flow's outer headers: one of IANA's dynamic ports, 49152 to 65535 (RFC 6335 section
/// 6), by the upper bits of the hash whose lower bits are the flow label.
#[inline(always)]
pub const fn source_port(hash: u32) -> Be16 {
    Be16::new(0xc000 | (hash >> 18) as u16)
}

/// Puts outer IP and UDP headers in front of the packet, otherwise as [`rewrite::encapsulate`]. The frame has
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
    // RFC 768 allows a UDP checksum of 0 over IPv4, RFC 6935 one of tunnels over IPv6.
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

/// What the inner packet adds to a sum, from its headers alone. `None` if the headers do not determine it: a
/// fragment has only a part of what its checksum covers; a UDP datagram may have no checksum, or bytes behind
/// it that the checksum does not cover; with options or extension headers (source routes, home addresses) the
/// checksum may cover other addresses.
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
        // The sum of the segment is the complement of its pseudo header, so the addresses and the length
        // cancel out. The first word remains, and the difference of next header and hop limit to the pseudo
        // header.
        let first: u32 = frame.read(ip.l3 + grown)?;
        let next_header = |hops: u8| u16::from_ne_bytes([ip.protocol, hops]);
        let taken_out = u16::from_ne_bytes([0, ip.protocol]);
        return Some(Delta::new().word32(0, first).word16(taken_out, next_header(ip.ttl - 1)));
    }
    // An IPv4 header with its checksum adds nothing, and neither does an ICMP message.
    match ip.protocol {
        protocol::ICMP => Some(Delta::new()),
        protocol::TCP | protocol::UDP => {
            let pseudo = pseudo_header(ip.src, ip.dst, ip.protocol, Be16::new(len as u16));
            Some(Delta::new().word16(pseudo.folded(), 0))
        }
        _ => None,
    }
}

/// The payload of a tunnel.
pub struct Inner {
    /// The offset of the inner IP header.
    pub at: usize,
    /// The offset of the end of the datagram.
    pub end: usize,
    pub version: u8,
}

/// The IP packet in a UDP datagram to `port`. `None` for another port, for a GUE header (variant 0), and for
/// fragments: the kernel receives those.
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
