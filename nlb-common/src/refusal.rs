//! Refusals: a TCP reset, an ICMP error.
//!
//! Both overwrite the packet that they answer, with addresses and ports swapped. They have no options or
//! extension headers, so that the verifier knows their length.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::checksum::{Delta, pseudo_header};
use crate::frame::Frame;
use crate::net::{Addr, Be16};
use crate::parse::{Ip, Segment, TcpFlags};
use crate::protocol::{DEFAULT_TTL, ICMP_LEN, ICMP_QUOTE_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN, ip as protocol};
use crate::rewrite::{destination_mac, ethernet, move_link_header, source_mac};

/// The checksum field of a header whose whole sum is in the delta: the complement of 0.
const EMPTY: Be16 = Be16::new(0xffff);

/// Whether a packet may be answered: not if its source is a group or unspecified (RFC 1122 sections 3.2.1.3
/// and 3.2.2; RFC 4443 section 2.4). Such an answer would go to many hosts, or in a loop.
#[inline(always)]
pub fn may_be_answered<F: Frame + ?Sized>(frame: &F, ip: &Ip) -> bool {
    ip.src.is_one_host() && source_mac(frame).is_some_and(|mac| !mac.is_group())
}

/// Turns a TCP segment that may be answered into its reset (RFC 9293 section 3.10.7.1). Returns the new
/// length of the frame; `None` if the segment is a reset itself.
#[inline(always)]
pub fn reset<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, segment: &Segment) -> Option<usize> {
    if segment.flags.has(TcpFlags::RST) {
        return None;
    }
    let h: [u32; 4] = [
        frame.read(segment.offset)?,
        frame.read(segment.offset + 4)?,
        frame.read(segment.offset + 8)?,
        frame.read(segment.offset + 12)?,
    ];
    let data_offset = ((u32::from_be(h[3]) >> 28) * 4) as usize;
    let (seq, ack, flags) = if segment.flags.has(TcpFlags::ACK) {
        (h[2], 0, TcpFlags::RST)
    } else {
        // SYN and FIN take a sequence number each.
        let marks = segment.flags.has(TcpFlags::SYN) as u32 + segment.flags.has(TcpFlags::FIN) as u32;
        let taken = (ip.end - segment.offset).wrapping_sub(data_offset) as u32 + marks;
        (0, u32::from_be(h[1]).wrapping_add(taken).to_be(), TcpFlags::RST | TcpFlags::ACK)
    };
    // Data offset 5, the flags, window 0.
    let tail = ((5_u32 << 28) | (flags as u32) << 16).to_be();
    let ports = segment.dport.word() as u32 | (segment.sport.word() as u32) << 16;
    let sum = pseudo_header(ip.src, ip.dst, protocol::TCP, Be16::new(TCP_LEN as u16))
        .word32(0, ports)
        .word32(0, seq)
        .word32(0, ack)
        .word32(0, tail);

    swap_macs(frame)?;
    let l4 = write_ip(frame, ip, ip.l3, TCP_LEN, protocol::TCP)?;
    frame.write(l4, ports)?;
    frame.write(l4 + 4, seq)?;
    frame.write(l4 + 8, ack)?;
    frame.write(l4 + 12, tail)?;
    frame.write(l4 + 16, sum.apply(EMPTY).word())?;
    frame.write(l4 + 18, 0_u16)?;
    Some(l4 + TCP_LEN)
}

/// How much a frame grows at its front for an ICMP error, for IPv4 and IPv6: an IP header and an ICMP header.
pub const ICMP_GROWTH: [usize; 2] = [IPV4_LEN + ICMP_LEN, IPV6_LEN + ICMP_LEN];

/// An ICMP error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// No process listens on the port (RFC 792; RFC 4443 section 3.1).
    PortUnreachable,
    /// The TTL or hop limit does not allow forwarding (RFC 1812 section 5.3.1; RFC 4443 section 3.3).
    TtlExceeded,
    /// The packet is longer than this MTU (RFC 1191 section 4; RFC 4443 section 3.2).
    TooBig(u32),
}

impl Error {
    /// Type and code in memory order.
    #[inline(always)]
    fn kind(self, v6: bool) -> u16 {
        u16::from_ne_bytes(match (self, v6) {
            (Error::PortUnreachable, false) => [3, 3],
            (Error::PortUnreachable, true) => [1, 4],
            (Error::TtlExceeded, false) => [11, 0],
            (Error::TtlExceeded, true) => [3, 0],
            (Error::TooBig(_), false) => [3, 4],
            (Error::TooBig(_), true) => [2, 0],
        })
    }

    /// The second half of the header in memory order.
    #[inline(always)]
    fn rest(self) -> u32 {
        match self {
            Error::PortUnreachable | Error::TtlExceeded => 0,
            Error::TooBig(mtu) => mtu.to_be(),
        }
    }
}

/// The least that an ICMP error quotes: the IP header without options, and 8 bytes more (RFC 792).
const QUOTED: [usize; 2] = [IPV4_LEN + ICMP_QUOTE_LEN, IPV6_LEN + ICMP_QUOTE_LEN];

/// The most that it quotes beyond that: all options of IPv4; for IPv6, where as much as fits should be quoted
/// (RFC 4443 section 2.4), enough to include the ports behind the extension headers of a fragment.
const MORE: usize = 40;

/// Turns a packet that may be answered into an ICMP error about it. The frame has just grown by `grown` bytes
/// at its front; `ip` was parsed before. Returns the new length of the frame.
#[inline(always)]
pub fn icmp_error<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, grown: usize, error: Error) -> Option<usize> {
    let least = QUOTED[ip.v6 as usize];
    let more = if !ip.v6 {
        ip.next - ip.l3 - IPV4_LEN
    } else {
        let rest = ip.total_len().saturating_sub(least);
        if rest < MORE { rest & !3 } else { MORE }
    };
    let quoted = least + more;
    let number = if ip.v6 { protocol::ICMPV6 } else { protocol::ICMP };
    let (head, rest) = (error.kind(ip.v6), error.rest());
    let icmp_len = ICMP_LEN + quoted;
    let sum =
        if ip.v6 { pseudo_header(ip.src, ip.dst, number, Be16::new(icmp_len as u16)) } else { Delta::new() };
    let sum = sum.word16(0, head).word32(0, rest);
    // Word by word: the verifier does not follow the arithmetic of a compiled loop over the packet.
    let at = ip.l3 + grown;
    let sum = add(frame, add(frame, add(frame, sum, at)?, at + 8)?, at + 16)?;
    let mut sum = if ip.v6 {
        add(frame, add(frame, add(frame, sum, at + 24)?, at + 32)?, at + 40)?
    } else {
        sum.word32(0, frame.read(at + 24)?)
    };
    let mut beyond = 0;
    while beyond < MORE {
        if beyond < more {
            sum = sum.word32(0, frame.read(at + least + beyond)?);
        }
        beyond += 4;
    }
    move_link_header(frame, ip.l3, grown, ip.v6)?;
    swap_macs(frame)?;
    let icmp = write_ip(frame, ip, ip.l3, icmp_len, number)?;
    frame.write(icmp, head)?;
    frame.write(icmp + 2, sum.apply(EMPTY).word())?;
    frame.write(icmp + 4, rest)?;
    Some(icmp + icmp_len)
}

/// Adds 8 bytes of the frame to a sum.
#[inline(always)]
fn add<F: Frame + ?Sized>(frame: &F, sum: Delta, at: usize) -> Option<Delta> {
    let word: u64 = frame.read(at)?;
    Some(sum.word32(0, word as u32).word32(0, (word >> 32) as u32))
}

/// Addresses the frame to the MAC address that it came from.
#[inline(always)]
fn swap_macs<F: Frame + ?Sized>(frame: &mut F) -> Option<()> {
    let (us, them) = (destination_mac(frame)?, source_mac(frame)?);
    ethernet(frame, them, us)
}

/// Writes an IP header at `l3`, from the destination of `ip` to its source, in front of `len` bytes of
/// `protocol`. Returns the offset behind it.
#[inline(always)]
fn write_ip<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, l3: usize, len: usize, protocol: u8) -> Option<usize> {
    if ip.v6 {
        let header = Ipv6Hdr {
            vcf: [0x60, 0, 0, 0],
            payload_len: (len as u16).to_be_bytes(),
            next_hdr: protocol,
            hop_limit: DEFAULT_TTL,
            src_addr: ip.dst.v6_bytes(),
            dst_addr: ip.src.v6_bytes(),
        };
        frame.write(l3, header)?;
        return Some(l3 + IPV6_LEN);
    }
    let total = ((IPV4_LEN + len) as u16).to_be_bytes();
    let sum = Delta::new()
        .word16(0, u16::from_ne_bytes([0x45, 0]))
        .word16(0, u16::from_ne_bytes(total))
        .word16(0, u16::from_ne_bytes([DEFAULT_TTL, protocol]))
        .addr(Addr::UNSPECIFIED, ip.src)
        .addr(Addr::UNSPECIFIED, ip.dst);
    let header = Ipv4Hdr {
        vihl: 0x45,
        tos: 0,
        tot_len: total,
        id: [0, 0],
        frags: [0, 0],
        ttl: DEFAULT_TTL,
        proto: protocol,
        check: sum.apply(EMPTY).bytes(),
        src_addr: ip.dst.v4_bytes(),
        dst_addr: ip.src.v4_bytes(),
    };
    frame.write(l3, header)?;
    Some(l3 + IPV4_LEN)
}
