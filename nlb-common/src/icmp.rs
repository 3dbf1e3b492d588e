//! ICMP errors: the packet that one quotes, and the translation of both.
//!
//! An error quotes the packet that it is about: the IP header and at least 8 bytes more (RFC 792, RFC 4443
//! section 2.4), which hold the ports. A node that translated that packet has to translate the quote back, or
//! the sender does not recognise its packet (RFC 5508 section 4).

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::checksum::{Delta, amended};
use crate::frame::Frame;
use crate::net::{Addr, Be16, L4};
use crate::parse::{Ip, Segment, TcpFlags};
use crate::protocol::{ICMP_LEN, ICMP_QUOTE_LEN, IPV4_LEN, IPV6_LEN, fragment, ip as protocol};
use crate::rewrite::{self, Tuple};

/// The fields of the quoted packet by which its flow is looked up.
#[derive(Clone, Copy, Debug)]
pub struct Quote {
    /// The offset of the quoted IP header in the frame.
    pub l3: usize,
    /// The offset of the quoted L4 header.
    pub offset: usize,
    pub l4: L4,
    pub src: Addr,
    pub dst: Addr,
    pub sport: Be16,
    pub dport: Be16,
}

/// Whether a packet is ICMP of its own IP version.
#[inline(always)]
pub const fn is_icmp(ip: &Ip) -> bool {
    ip.protocol == if ip.v6 { protocol::ICMPV6 } else { protocol::ICMP }
}

/// The TCP or UDP packet that an ICMP error quotes, if the destination of the error sent it.
#[inline(always)]
pub fn quote<F: Frame + ?Sized>(frame: &F, ip: &Ip) -> Option<Quote> {
    if !is_icmp(ip) || ip.is_fragment() {
        return None;
    }
    let [kind, _]: [u8; 2] = frame.read(ip.next)?;
    let l3 = ip.next + ICMP_LEN;
    let quote = if ip.v6 {
        // Destination unreachable, packet too big, time exceeded, parameter problem.
        if !matches!(kind, 1..=4) {
            return None;
        }
        let h: Ipv6Hdr = frame.read(l3)?;
        let offset = l3 + IPV6_LEN;
        quoted(frame, l3, offset, h.next_hdr, Addr::v6(h.src_addr), Addr::v6(h.dst_addr))?
    } else {
        // Destination unreachable, time exceeded, parameter problem.
        if !matches!(kind, 3 | 11 | 12) {
            return None;
        }
        let h: Ipv4Hdr = frame.read(l3)?;
        let header_len = ((h.vihl & 0x0f) as usize) * 4;
        let later_fragment = Be16::from_bytes(h.frags).get() & fragment::OFFSET != 0;
        if h.vihl >> 4 != 4 || header_len < IPV4_LEN || later_fragment {
            return None;
        }
        quoted(frame, l3, l3 + header_len, h.proto, Addr::v4(h.src_addr), Addr::v4(h.dst_addr))?
    };
    (quote.src == ip.dst && quote.offset + ICMP_QUOTE_LEN <= ip.end).then_some(quote)
}

/// Whether a packet is an ICMP error about a tunnel packet (IPIP, GUE) that its destination sent: the
/// tunnel's end, or a router on the way there, cannot take or forward it.
#[inline(always)]
pub fn is_about_tunnel<F: Frame + ?Sized>(frame: &F, ip: &Ip, gue_port: Be16) -> bool {
    quotes_tunnel(frame, ip, gue_port).unwrap_or(false)
}

#[inline(always)]
fn quotes_tunnel<F: Frame + ?Sized>(frame: &F, ip: &Ip, gue_port: Be16) -> Option<bool> {
    if !is_icmp(ip) || ip.is_fragment() {
        return None;
    }
    let [kind, _]: [u8; 2] = frame.read(ip.next)?;
    let l3 = ip.next + ICMP_LEN;
    let (sender, number, offset) = if ip.v6 {
        let h: Ipv6Hdr = frame.read(l3)?;
        (Addr::v6(h.src_addr), h.next_hdr, l3 + IPV6_LEN)
    } else {
        // Outer headers have no options.
        let h: Ipv4Hdr = frame.read(l3)?;
        (Addr::v4(h.src_addr), h.proto, l3 + IPV4_LEN)
    };
    let is_error = matches!((ip.v6, kind), (false, 3 | 11 | 12) | (true, 1..=4));
    let is_tunnel = match number {
        protocol::IPIP | protocol::IPV6 => true,
        protocol::UDP => frame.read::<u16>(offset + 2)? == gue_port.word(),
        _ => false,
    };
    Some(is_error && is_tunnel && sender == ip.dst)
}

#[inline(always)]
fn quoted<F: Frame + ?Sized>(
    frame: &F,
    l3: usize,
    offset: usize,
    number: u8,
    src: Addr,
    dst: Addr,
) -> Option<Quote> {
    let l4 = match number {
        protocol::TCP => L4::Tcp,
        protocol::UDP => L4::Udp,
        _ => return None,
    };
    let ports: [u8; ICMP_QUOTE_LEN] = frame.read(offset)?;
    let [a, b, c, d, ..] = ports;
    Some(Quote { l3, offset, l4, src, dst, sport: Be16::from_bytes([a, b]), dport: Be16::from_bytes([c, d]) })
}

impl Quote {
    /// A packet of the quoted flow in the other direction, which is the direction of the error. The flow is
    /// looked up by it.
    #[inline(always)]
    pub fn reversed(&self, ip: &Ip) -> (Ip, Segment) {
        let segment = Segment {
            l4: self.l4,
            offset: self.offset,
            sport: self.dport,
            dport: self.sport,
            flags: TcpFlags(0),
            more_fragments: false,
        };
        (Ip { src: self.dst, dst: self.src, ..*ip }, segment)
    }
}

/// Translates the addresses of an error, and translates the quoted packet back; takes one off the TTL.
#[inline(always)]
pub fn translate<F: Frame + ?Sized>(
    frame: &mut F,
    ip: &Ip,
    quote: &Quote,
    (src, dst): (Addr, Addr),
    inner: &Tuple,
) -> Option<()> {
    let addresses = Delta::new().addr(quote.src, inner.src).addr(quote.dst, inner.dst);
    let ports = Delta::new().port(quote.sport, inner.sport).port(quote.dport, inner.dport);
    let mut icmp = ports;

    // The checksum of TCP is beyond the 8 bytes that are always quoted.
    let at = quote.offset + if matches!(quote.l4, L4::Tcp) { 16 } else { 6 };
    if at + 2 <= ip.end
        && let Some(old) = frame.read::<u16>(at)
    {
        let old = Be16::from_word(old);
        let new = amended(quote.l4, old, addresses.and(ports));
        frame.write(at, new.word())?;
        icmp = icmp.port(old, new);
    }
    frame.write(quote.offset, inner.sport.word())?;
    frame.write(quote.offset + 2, inner.dport.word())?;

    if ip.v6 {
        let header: &mut Ipv6Hdr = frame.edit(quote.l3)?;
        (header.src_addr, header.dst_addr) = (inner.src.v6_bytes(), inner.dst.v6_bytes());
        // The quoted header has no checksum that compensates for its new addresses, and the checksum of the
        // error covers a pseudo header.
        icmp = icmp.addr(quote.src, inner.src).addr(quote.dst, inner.dst).addr(ip.src, src).addr(ip.dst, dst);
    } else {
        // The checksum of the quoted header compensates for its new addresses, so the checksum of the error
        // does not change.
        let header: &mut Ipv4Hdr = frame.edit(quote.l3)?;
        header.check = addresses.apply(Be16::from_bytes(header.check)).bytes();
        (header.src_addr, header.dst_addr) = (inner.src.v4_bytes(), inner.dst.v4_bytes());
    }
    let sum: u16 = frame.read(ip.next + 2)?;
    frame.write(ip.next + 2, icmp.apply(Be16::from_word(sum)).word())?;
    rewrite::readdress(frame, ip, src, dst)
}
