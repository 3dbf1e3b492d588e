//! Edits of packet headers. Checksums are updated incrementally (see [`crate::checksum`]).
//!
//! The caller has parsed the packet, so every offset is inside it; the verifier wants the checks of `Frame`
//! all the same. An edit returns `None` if such a check fails, and the caller drops the packet.

use network_types::ip::{Ipv4Hdr, Ipv6Hdr};
use network_types::udp::UdpHdr;

use crate::checksum::Delta;
use crate::frame::Frame;
use crate::net::{Addr, Be16, Mac};
use crate::parse::{Ip, Segment};
use crate::protocol::{
    DEFAULT_TTL, ETH_LEN, IPV4_LEN, IPV6_LEN, VLAN_TAG_LEN, ethertype, fragment, ip as protocol,
};

/// The addresses and ports of a packet after translation.
#[derive(Clone, Copy)]
pub struct Tuple {
    pub src: Addr,
    pub dst: Addr,
    pub sport: Be16,
    pub dport: Be16,
}

/// Translates addresses and ports, and takes one off the TTL.
#[inline(always)]
pub fn translate<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, segment: &Segment, to: &Tuple) -> Option<()> {
    let addresses = if ip.v6 {
        Delta::new().addr(ip.src, to.src).addr(ip.dst, to.dst)
    } else {
        Delta::new().word32(ip.src.words()[3], to.src.words()[3]).word32(ip.dst.words()[3], to.dst.words()[3])
    };
    let ports = Delta::new().port(segment.sport, to.sport).port(segment.dport, to.dport);
    frame.amend_checksum(segment.l4, segment.offset, ip.v6, addresses, ports)?;
    // The ports are at the same offsets in TCP and UDP.
    let head: &mut UdpHdr = frame.edit(segment.offset)?;
    (head.src, head.dst) = (to.sport.bytes(), to.dport.bytes());
    readdress(frame, ip, to.src, to.dst)
}

/// Translates the addresses of an IP header and takes one off the TTL; the L4 header stays as it is.
#[inline(always)]
pub fn readdress<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, src: Addr, dst: Addr) -> Option<()> {
    if ip.v6 {
        let header: &mut Ipv6Hdr = frame.edit(ip.l3)?;
        (header.src_addr, header.dst_addr) = (src.v6_bytes(), dst.v6_bytes());
        header.hop_limit = ip.ttl - 1;
    } else {
        let header: &mut Ipv4Hdr = frame.edit(ip.l3)?;
        (header.src_addr, header.dst_addr) = (src.v4_bytes(), dst.v4_bytes());
        let addresses =
            Delta::new().word32(ip.src.words()[3], src.words()[3]).word32(ip.dst.words()[3], dst.words()[3]);
        ipv4_ttl(header, ip, addresses);
    }
    Some(())
}

/// Takes one off the TTL or hop limit, which must be above 1.
#[inline(always)]
pub fn decrement_ttl<F: Frame + ?Sized>(frame: &mut F, ip: &Ip) -> Option<()> {
    if ip.v6 {
        frame.edit::<Ipv6Hdr>(ip.l3)?.hop_limit = ip.ttl - 1;
    } else {
        ipv4_ttl(frame.edit(ip.l3)?, ip, Delta::new());
    }
    Some(())
}

#[inline(always)]
fn ipv4_ttl(header: &mut Ipv4Hdr, ip: &Ip, addresses: Delta) {
    let word = |ttl: u8| u16::from_ne_bytes([ttl, ip.protocol]);
    let delta = addresses.word16(word(ip.ttl), word(ip.ttl - 1));
    header.check = delta.apply(Be16::from_bytes(header.check)).bytes();
    header.ttl = ip.ttl - 1;
}

/// Writes the MAC addresses.
#[inline(always)]
pub fn ethernet<F: Frame + ?Sized>(frame: &mut F, dst: Mac, src: Mac) -> Option<()> {
    let macs: &mut [[u8; 6]; 2] = frame.edit(0)?;
    *macs = [dst.bytes(), src.bytes()];
    Some(())
}

/// The destination MAC address.
#[inline(always)]
pub fn destination_mac<F: Frame + ?Sized>(frame: &F) -> Option<Mac> {
    Some(Mac { first: frame.read(0)?, last: frame.read(4)? })
}

/// The source MAC address.
#[inline(always)]
pub fn source_mac<F: Frame + ?Sized>(frame: &F) -> Option<Mac> {
    Some(Mac { first: frame.read(6)?, last: frame.read(10)? })
}

/// The outer header of an encapsulated packet.
#[derive(Clone, Copy)]
pub struct Outer {
    pub src: Addr,
    pub dst: Addr,
    /// The IPv6 flow label (20 bits), by which routers and receivers spread flows (RFC 6438).
    pub flow_label: u32,
}

impl Outer {
    /// The length of the header.
    #[inline(always)]
    pub const fn len(v6: bool) -> usize {
        if v6 { IPV6_LEN } else { IPV4_LEN }
    }
}

/// Puts an outer IP header in front of the packet (RFC 2003 for IPv4, RFC 2473 for IPv6).
///
/// The frame has just grown by `Outer::len` bytes at its front: the Ethernet header with its tags is still at
/// its old place, `grown` bytes into the frame, and `ip` was parsed before.
#[inline(always)]
pub fn encapsulate<F: Frame + ?Sized>(frame: &mut F, ip: &Ip, grown: usize, outer: &Outer) -> Option<()> {
    let number = if ip.v6 { protocol::IPV6 } else { protocol::IPIP };
    wrap(frame, ip, grown, outer, number, Be16::new(ip.total_len() as u16))
}

/// Puts the outer IP header in front of `len` bytes of `protocol`.
#[inline(always)]
pub(crate) fn wrap<F: Frame + ?Sized>(
    frame: &mut F,
    ip: &Ip,
    grown: usize,
    outer: &Outer,
    protocol: u8,
    len: Be16,
) -> Option<()> {
    let v6 = !outer.dst.is_v4();
    // The traffic class is copied to the outer header, ECN included (RFC 6040 section 4.1, normal mode).
    let inner: [u8; 2] = frame.read(ip.l3 + grown)?;
    let traffic_class = if ip.v6 { inner[0] << 4 | inner[1] >> 4 } else { inner[1] };

    move_link_header(frame, ip.l3, grown, v6)?;
    if v6 {
        let vcf = 6 << 28 | (traffic_class as u32) << 20 | outer.flow_label & 0xf_ffff;
        frame.write(
            ip.l3,
            Ipv6Hdr {
                vcf: vcf.to_be_bytes(),
                payload_len: len.bytes(),
                next_hdr: protocol,
                hop_limit: DEFAULT_TTL,
                src_addr: outer.src.v6_bytes(),
                dst_addr: outer.dst.v6_bytes(),
            },
        )
    } else {
        let total_len = len.get() + IPV4_LEN as u16;
        let (src, dst) = (outer.src.words()[3], outer.dst.words()[3]);
        // DF with an id of 0, as RFC 6864 defines it for packets that are never fragmented.
        const DONT_FRAGMENT: [u8; 2] = fragment::DONT.to_be_bytes();
        let sum = Delta::new()
            .word16(0, u16::from_ne_bytes([0x45, traffic_class]))
            .word16(0, total_len.to_be())
            .word16(0, u16::from_ne_bytes(DONT_FRAGMENT))
            .word16(0, u16::from_ne_bytes([DEFAULT_TTL, protocol]))
            .word32(0, src)
            .word32(0, dst);
        frame.write(
            ip.l3,
            Ipv4Hdr {
                vihl: 0x45,
                tos: traffic_class,
                tot_len: total_len.to_be_bytes(),
                id: [0, 0],
                frags: DONT_FRAGMENT,
                ttl: DEFAULT_TTL,
                proto: protocol,
                check: sum.apply(Be16::from_bytes([0xff, 0xff])).bytes(),
                src_addr: outer.src.v4_bytes(),
                dst_addr: outer.dst.v4_bytes(),
            },
        )
    }
}

/// Moves the Ethernet header and its tags back by `by` bytes, over an outer header of that length. The caller
/// cuts off the bytes in front of it.
#[inline(always)]
pub fn decapsulate<F: Frame + ?Sized>(frame: &mut F, outer: &Ip, by: usize, inner_v6: bool) -> Option<()> {
    LinkHeader::read(frame, 0, outer.l3)?.write(frame, by, inner_v6)
}

/// Moves the Ethernet header and its tags, `len` bytes in all, from `from` to the front of the frame.
#[inline(always)]
pub(crate) fn move_link_header<F: Frame + ?Sized>(
    frame: &mut F,
    len: usize,
    from: usize,
    v6: bool,
) -> Option<()> {
    LinkHeader::read(frame, from, len)?.write(frame, 0, v6)
}

/// An Ethernet header with up to two VLAN tags, in memory words, so that it stays in registers.
struct LinkHeader {
    macs: (u64, u32),
    ethertype: u16,
    tags: (u32, u32),
    len: usize,
}

impl LinkHeader {
    /// An IP header follows in every such frame, so bytes for two tags can be read even if there are fewer
    /// tags.
    #[inline(always)]
    fn read<F: Frame + ?Sized>(frame: &F, at: usize, len: usize) -> Option<Self> {
        Some(LinkHeader {
            macs: (frame.read(at)?, frame.read(at + 8)?),
            ethertype: frame.read(at + 12)?,
            tags: (frame.read(at + ETH_LEN)?, frame.read(at + ETH_LEN + VLAN_TAG_LEN)?),
            len,
        })
    }

    /// Writes the header with the ethertype of an IP version after its last tag.
    #[inline(always)]
    fn write<F: Frame + ?Sized>(self, frame: &mut F, at: usize, v6: bool) -> Option<()> {
        let ip = if v6 { ethertype::IPV6 } else { ethertype::IPV4 }.to_be();
        frame.write(at, self.macs.0)?;
        frame.write(at + 8, self.macs.1)?;
        if self.len == ETH_LEN {
            return frame.write(at + 12, ip);
        }
        frame.write(at + 12, self.ethertype)?;
        frame.write(at + ETH_LEN, self.tags.0)?;
        if self.len == ETH_LEN + VLAN_TAG_LEN {
            return frame.write(at + ETH_LEN + 2, ip);
        }
        frame.write(at + ETH_LEN + VLAN_TAG_LEN, self.tags.1)?;
        frame.write(at + ETH_LEN + VLAN_TAG_LEN + 2, ip)
    }
}
