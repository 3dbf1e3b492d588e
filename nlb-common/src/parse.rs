//! The parser of packet headers, for the kernel and the host.
//!
//! It works in two steps, because most packets on an interface do not concern the balancer: [`ip`] reads the
//! IP header, whose addresses show whether a packet does, and [`segment`] checks the L4 header of such
//! packets alone.

use network_types::eth::EthHdr;
use network_types::ip::{Ipv4Hdr, Ipv6Hdr};

use crate::frame::Frame;
use crate::net::{Addr, Be16, L4};
use crate::protocol::{
    ETH_LEN, IPV4_LEN, IPV6_LEN, TCP_LEN, UDP_LEN, VLAN_TAG_LEN, ethertype, extension, fragment,
    ip as protocol,
};
use crate::verdict::{DropReason, PassReason, Verdict};

const MAX_VLAN_TAGS: usize = 2;

/// The most IPv6 extension headers that are walked.
pub(crate) const MAX_EXTENSIONS: usize = 8;

/// An IP header.
#[derive(Clone, Copy, Debug)]
pub struct Ip {
    /// The offset of the IP header in the frame.
    pub l3: usize,
    /// The offset behind the fixed header and, for IPv4, its options.
    pub next: usize,
    /// The offset of the end of the IP packet; the frame may be longer (padding).
    pub end: usize,
    pub v6: bool,
    /// The type of what is at `next`: an L4 protocol or, for IPv6, an extension header.
    pub protocol: u8,
    /// TTL or hop limit.
    pub ttl: u8,
    /// A later fragment of an IPv4 packet, which has no L4 header.
    pub later_fragment: bool,
    /// IPv6, or IPv4 with the DF flag: the sender expects an error if the packet is too long.
    pub dont_fragment: bool,
    /// More fragments follow, so the length in an L4 header may exceed this packet.
    pub more_fragments: bool,
    pub src: Addr,
    pub dst: Addr,
}

/// The fields of a TCP or UDP header that steering needs.
#[derive(Clone, Copy, Debug)]
pub struct Segment {
    pub l4: L4,
    /// The offset of the L4 header in the frame.
    pub offset: usize,
    pub sport: Be16,
    pub dport: Be16,
    /// TCP flags; 0 for UDP.
    pub flags: TcpFlags,
    /// More fragments of the packet follow.
    pub more_fragments: bool,
}

/// The low six flag bits of a TCP header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: u8 = 0x01;
    pub const SYN: u8 = 0x02;
    pub const RST: u8 = 0x04;
    pub const ACK: u8 = 0x10;

    #[inline(always)]
    pub const fn has(self, flag: u8) -> bool {
        self.0 & flag != 0
    }

    /// The first packet of a connection.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN | Self::ACK | Self::RST) == Self::SYN
    }
}

/// The IP header of a frame, or the verdict on a frame without a valid one.
#[inline(always)]
pub fn ip<F: Frame + ?Sized>(frame: &F) -> Result<Ip, Verdict> {
    let eth: EthHdr = frame.read(0).ok_or(Verdict::Drop(DropReason::Truncated))?;
    // The group bit of the destination MAC (IEEE 802.3): the kernel receives multicast and broadcast.
    if eth.dst_addr[0] & 1 != 0 {
        return Err(Verdict::Pass(PassReason::Group));
    }
    let mut ethertype = Be16::from_bytes(eth.ether_type.to_ne_bytes()).get();
    let mut l3 = ETH_LEN;
    for _ in 0..MAX_VLAN_TAGS {
        if ethertype != ethertype::VLAN && ethertype != ethertype::QINQ {
            break;
        }
        let tag: [u8; VLAN_TAG_LEN] = frame.read(l3).ok_or(Verdict::Drop(DropReason::Truncated))?;
        ethertype = Be16::from_bytes([tag[2], tag[3]]).get();
        l3 += VLAN_TAG_LEN;
    }
    match ethertype {
        ethertype::IPV4 => ipv4(frame, l3).map_err(Verdict::Drop),
        ethertype::IPV6 => ipv6(frame, l3).map_err(Verdict::Drop),
        _ => Err(Verdict::Pass(PassReason::NotIp)),
    }
}

impl Ip {
    /// Whether the fixed header marks the packet as a fragment. False for IPv6, whose fixed header has no
    /// such mark.
    #[inline(always)]
    pub const fn is_fragment(&self) -> bool {
        self.later_fragment | self.more_fragments
    }

    /// The length of the packet, header included.
    #[inline(always)]
    pub const fn total_len(&self) -> usize {
        self.end - self.l3
    }

    /// The verdict on a packet whose TTL or hop limit does not allow forwarding (RFC 1812 section 5.3.1).
    #[inline(always)]
    pub const fn check_ttl(&self) -> Result<(), Verdict> {
        if self.ttl <= 1 { Err(Verdict::Drop(DropReason::TtlExceeded)) } else { Ok(()) }
    }
}

/// The TCP or UDP header, or the verdict on a packet without a valid one.
#[inline(always)]
pub fn segment<F: Frame + ?Sized>(frame: &F, ip: &Ip) -> Result<Segment, Verdict> {
    if ip.later_fragment {
        return Err(Verdict::Drop(DropReason::Fragment));
    }
    match ip.protocol {
        protocol::TCP => tcp(frame, ip.next, ip.end, ip.more_fragments).map_err(Verdict::Drop),
        protocol::UDP => udp(frame, ip.next, ip.end, ip.more_fragments).map_err(Verdict::Drop),
        unknown if ip.v6 && is_unknown_extension(unknown) => Err(Verdict::Drop(DropReason::Ipv6Extensions)),
        _ => Err(Verdict::Pass(PassReason::Protocol)),
    }
}

/// Whether the packet has extension headers that [`skip_extensions`] must walk before [`segment`].
#[inline(always)]
pub const fn has_extensions(ip: &Ip) -> bool {
    ip.v6 && is_extension(ip.protocol)
}

#[inline(always)]
pub(crate) const fn is_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        extension::HOP_BY_HOP
            | extension::ROUTING
            | extension::FRAGMENT
            | extension::AUTHENTICATION
            | extension::DESTINATION
    )
}

#[inline(always)]
fn ipv4<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Ip, DropReason> {
    let h: Ipv4Hdr = frame.read(l3).ok_or(DropReason::Truncated)?;
    let header_len = ((h.vihl & 0x0f) as usize) * 4;
    let total_len = Be16::from_bytes(h.tot_len).get() as usize;
    if h.vihl >> 4 != 4 || header_len < IPV4_LEN || total_len < header_len {
        return Err(DropReason::IpHeader);
    }
    let end = l3 + total_len;
    if end > frame.len() {
        return Err(DropReason::IpHeader);
    }
    let frags = Be16::from_bytes(h.frags).get();
    Ok(Ip {
        l3,
        next: l3 + header_len,
        end,
        v6: false,
        protocol: h.proto,
        ttl: h.ttl,
        later_fragment: frags & fragment::OFFSET != 0,
        dont_fragment: frags & fragment::DONT != 0,
        more_fragments: frags & fragment::MORE != 0,
        src: Addr::v4(h.src_addr),
        dst: Addr::v4(h.dst_addr),
    })
}

#[inline(always)]
fn ipv6<F: Frame + ?Sized>(frame: &F, l3: usize) -> Result<Ip, DropReason> {
    let h: Ipv6Hdr = frame.read(l3).ok_or(DropReason::Truncated)?;
    let next = l3 + IPV6_LEN;
    let end = next + Be16::from_bytes(h.payload_len).get() as usize;
    if h.vcf[0] >> 4 != 6 || end > frame.len() {
        return Err(DropReason::IpHeader);
    }
    Ok(Ip {
        l3,
        next,
        end,
        v6: true,
        protocol: h.next_hdr,
        ttl: h.hop_limit,
        later_fragment: false,
        dont_fragment: true,
        more_fragments: false,
        src: Addr::v6(h.src_addr),
        dst: Addr::v6(h.dst_addr),
    })
}

/// Whether the number is that of an IPv6 extension header that [`skip_extensions`] does not walk: Mobility,
/// HIP, Shim6 and those for experiments, as IANA lists them. (ESP is an extension header too, but its payload
/// is encrypted.)
#[inline(always)]
const fn is_unknown_extension(protocol: u8) -> bool {
    matches!(
        protocol,
        extension::MOBILITY
            | extension::HIP
            | extension::SHIM6
            | extension::EXPERIMENT_1
            | extension::EXPERIMENT_2
    )
}

/// Walks IPv6 extension headers (RFC 8200 section 4) from the one of type `protocol` at `offset`. Returns the
/// L4 protocol, its offset, which is at most `end`, and whether more fragments follow.
#[inline(always)]
pub fn skip_extensions<F: Frame + ?Sized>(
    frame: &F,
    mut protocol: u8,
    mut offset: usize,
    end: usize,
) -> Result<(u8, usize, bool), DropReason> {
    let mut walked = 0;
    let mut more_fragments = false;
    while walked < MAX_EXTENSIONS {
        let h: [u8; 4] = frame.read(offset).ok_or(DropReason::Truncated)?;
        if protocol == extension::FRAGMENT {
            let frags = Be16::from_bytes([h[2], h[3]]).get();
            if frags & fragment::V6_OFFSET != 0 {
                return Err(DropReason::Fragment);
            }
            more_fragments |= frags & fragment::V6_MORE != 0;
        }
        offset += extension_len(protocol, h[1]);
        if offset > end {
            return Err(DropReason::IpHeader);
        }
        protocol = h[0];
        if !is_extension(protocol) {
            return Ok((protocol, offset, more_fragments));
        }
        walked += 1;
    }
    Err(DropReason::Ipv6Extensions)
}

/// The length of an extension header with this length field.
#[inline(always)]
pub(crate) const fn extension_len(protocol: u8, field: u8) -> usize {
    match protocol {
        extension::FRAGMENT => 8,
        // RFC 4302 section 2.2 counts words of 4 bytes, less 2; the others count words of 8, less 1.
        extension::AUTHENTICATION => (field as usize + 2) * 4,
        _ => (field as usize + 1) * 8,
    }
}

#[inline(always)]
fn tcp<F: Frame + ?Sized>(
    frame: &F,
    offset: usize,
    end: usize,
    more_fragments: bool,
) -> Result<Segment, DropReason> {
    if offset + TCP_LEN > end {
        return Err(DropReason::Truncated);
    }
    let h: [u8; 14] = frame.read(offset).ok_or(DropReason::Truncated)?;
    let data_offset = ((h[12] >> 4) as usize) * 4;
    if data_offset < TCP_LEN || offset + data_offset > end {
        return Err(DropReason::L4Header);
    }
    Ok(Segment {
        l4: L4::Tcp,
        offset,
        sport: Be16::from_bytes([h[0], h[1]]),
        dport: Be16::from_bytes([h[2], h[3]]),
        flags: TcpFlags(h[13] & 0x3f),
        more_fragments,
    })
}

/// The timestamp of a TCP header (RFC 7323 section 3.2); 0 if it has none.
#[inline(always)]
pub fn tcp_timestamp<F: Frame + ?Sized>(frame: &F, offset: usize) -> u32 {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const TIMESTAMP: u8 = 8;
    const TIMESTAMP_LEN: usize = 10;
    // No header has more options: at least two bytes each, apart from padding.
    const MOST: usize = 20;

    let Some(words) = frame.read::<u8>(offset + 12) else { return 0 };
    let len = (words >> 4) as usize * 4;
    let mut at = TCP_LEN;
    let mut step = 0;
    while step < MOST {
        step += 1;
        if at + TIMESTAMP_LEN > len {
            break;
        }
        let Some([kind, size]) = frame.read::<[u8; 2]>(offset + at) else { break };
        at += match kind {
            END => break,
            NO_OPERATION => 1,
            TIMESTAMP => return frame.read::<u32>(offset + at + 2).map_or(0, u32::from_be),
            _ if size < 2 => break,
            _ => size as usize,
        };
    }
    0
}

#[inline(always)]
fn udp<F: Frame + ?Sized>(
    frame: &F,
    offset: usize,
    end: usize,
    more_fragments: bool,
) -> Result<Segment, DropReason> {
    if offset + UDP_LEN > end {
        return Err(DropReason::Truncated);
    }
    let h: [u8; 8] = frame.read(offset).ok_or(DropReason::Truncated)?;
    let len = Be16::from_bytes([h[4], h[5]]).get() as usize;
    // The first fragment has the length of the whole datagram.
    if len < UDP_LEN || offset + len > end && !more_fragments {
        return Err(DropReason::L4Header);
    }
    Ok(Segment {
        l4: L4::Udp,
        offset,
        sport: Be16::from_bytes([h[0], h[1]]),
        dport: Be16::from_bytes([h[2], h[3]]),
        flags: TcpFlags(0),
        more_fragments,
    })
}
