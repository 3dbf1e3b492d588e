//! The headers of a frame, parsed with a packet library. The model shares no code with the program's parser.

use std::net::IpAddr;

use etherparse::{
    EtherType, Ethernet2HeaderSlice, IpAuthHeaderSlice, Ipv4HeaderSlice, Ipv6FragmentHeaderSlice,
    Ipv6HeaderSlice, Ipv6RawExtHeaderSlice, SingleVlanHeaderSlice, TcpHeaderSlice, UdpHeaderSlice,
};
use nlb::model::L4;

use crate::packet::Mac;

/// The exits that are allowed for a frame: more than one if docs/datapath.md does not order its faults.
pub type Exits = &'static [&'static str];

/// The IP header of a frame, and its offset.
#[derive(Clone, Debug)]
pub struct Ip {
    pub l3: usize,
    /// The offset after the fixed header and IPv4's options.
    pub next: usize,
    /// The offset after the IP packet; padding may follow.
    pub end: usize,
    pub v6: bool,
    pub protocol: u8,
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// The offset in 8-byte units, and whether more fragments follow.
    pub fragment: (u16, bool),
    /// IPv4 without "do not fragment".
    pub may_be_fragmented: bool,
    pub src: IpAddr,
    pub dst: IpAddr,
}

/// A fragment's place in its packet.
#[derive(Clone, Copy, Debug)]
pub struct Fragment {
    pub id: u32,
    pub later: bool,
    pub more: bool,
}

#[derive(Clone, Debug)]
pub struct Segment {
    pub l4: L4,
    pub at: usize,
    pub sport: u16,
    pub dport: u16,
    pub tcp: Option<Tcp>,
    /// Bytes that the L4 checksum covers.
    pub len: usize,
}

#[derive(Clone, Copy, Debug)]
pub struct Tcp {
    pub fin: bool,
    pub syn: bool,
    pub rst: bool,
    pub ack: bool,
    pub seq: u32,
    pub ack_number: u32,
    pub header_len: usize,
}

impl Tcp {
    /// The first packet of a connection.
    pub fn opens(&self) -> bool {
        self.syn && !self.ack && !self.rst
    }
}

/// The destination MAC address of a frame that [`ip`] has read.
pub fn destination_mac(frame: &[u8]) -> Mac {
    frame[..6].try_into().expect("six bytes")
}

pub fn ip(frame: &[u8]) -> Result<Ip, Exits> {
    let eth = Ethernet2HeaderSlice::from_slice(frame).map_err(|_| &["drop truncated"][..])?;
    if eth.destination()[0] & 1 == 1 {
        return Err(&["pass group"]);
    }
    let (mut kind, mut l3) = (eth.ether_type(), 14);
    for _ in 0..2 {
        if kind == EtherType::VLAN_TAGGED_FRAME || kind == EtherType::PROVIDER_BRIDGING {
            let tag = SingleVlanHeaderSlice::from_slice(&frame[l3..]).map_err(|_| &["drop truncated"][..])?;
            (kind, l3) = (tag.ether_type(), l3 + 4);
        }
    }
    match kind {
        EtherType::IPV4 => ipv4(frame, l3),
        EtherType::IPV6 => ipv6(frame, l3),
        _ => Err(&["pass not_ip"]),
    }
}

fn ipv4(frame: &[u8], l3: usize) -> Result<Ip, Exits> {
    if frame.len() < l3 + 20 {
        return Err(&["drop truncated"]);
    }
    let broken = |_| &["drop ip_header"][..];
    let header = Ipv4HeaderSlice::from_slice(&frame[l3..]).map_err(|_| ()).map_err(broken)?;
    let (header_len, total_len) = (header.slice().len(), header.total_len() as usize);
    if total_len < header_len || l3 + total_len > frame.len() {
        return Err(&["drop ip_header"]);
    }
    Ok(Ip {
        l3,
        next: l3 + header_len,
        end: l3 + total_len,
        v6: false,
        protocol: header.protocol().0,
        ttl: header.ttl(),
        tos: header.dcp().value() << 2 | header.ecn().value(),
        fragment: (header.fragments_offset().value(), header.more_fragments()),
        may_be_fragmented: !header.dont_fragment(),
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
    })
}

fn ipv6(frame: &[u8], l3: usize) -> Result<Ip, Exits> {
    if frame.len() < l3 + 40 {
        return Err(&["drop truncated"]);
    }
    let header = Ipv6HeaderSlice::from_slice(&frame[l3..]).map_err(|_| &["drop ip_header"][..])?;
    let end = l3 + 40 + header.payload_length() as usize;
    if end > frame.len() {
        return Err(&["drop ip_header"]);
    }
    Ok(Ip {
        l3,
        next: l3 + 40,
        end,
        v6: true,
        protocol: header.next_header().0,
        ttl: header.hop_limit(),
        tos: header.traffic_class(),
        fragment: (0, false),
        may_be_fragmented: false,
        src: header.source_addr().into(),
        dst: header.destination_addr().into(),
    })
}

/// The fragment in a packet. Of several fragment headers, which IPv6 forbids, the first has the offset, and
/// any may have the flag of more fragments.
pub fn fragment(frame: &[u8], ip: &Ip) -> Option<Fragment> {
    if !ip.v6 {
        let header = Ipv4HeaderSlice::from_slice(&frame[ip.l3..]).ok()?;
        let (offset, more) = ip.fragment;
        let id = header.identification().into();
        return (offset != 0 || more).then_some(Fragment { id, later: offset != 0, more });
    }
    let (mut protocol, mut at, mut found) = (ip.protocol, ip.next, None::<Fragment>);
    for _ in 0..MOST_EXTENSIONS {
        // The bound is that of the frame: in a truncated packet, padding may look like the end of a header.
        let rest = frame.get(at..)?;
        if protocol == 44 {
            let header = Ipv6FragmentHeaderSlice::from_slice(rest).ok()?;
            let (later, id) = (header.fragment_offset().value() != 0, header.identification());
            found.get_or_insert(Fragment { id, later, more: false }).more |= header.more_fragments();
        }
        if !EXTENSIONS.contains(&protocol) {
            break;
        }
        let len = usize::from(*rest.get(1)?);
        at += match protocol {
            44 => 8,
            51 => 4 * (len + 2),
            _ => 8 * (len + 1),
        };
        if at > ip.end {
            break;
        }
        protocol = rest[0];
    }
    found.filter(|fragment| fragment.later || fragment.more)
}

const EXTENSIONS: [u8; 5] = [0, 43, 44, 51, 60];
/// The most extension headers that are parsed (row 6).
const MOST_EXTENSIONS: usize = 8;

pub fn segment(frame: &[u8], ip: &Ip) -> Result<Segment, Exits> {
    let (protocol, at, (offset, more)) =
        if ip.v6 { extensions(frame, ip)? } else { (ip.protocol, ip.next, ip.fragment) };
    if offset != 0 {
        return Err(&["drop fragment"]);
    }
    let bytes = &frame[at..ip.end];
    match protocol {
        6 => tcp(bytes, at),
        17 => udp(bytes, at, more),
        135 | 139 | 140 | 253 | 254 if ip.v6 => Err(&["drop ipv6_extensions"]),
        _ => Err(&["pass protocol"]),
    }
}

/// The protocol after the extension headers, its offset, and the fragment.
fn extensions(frame: &[u8], ip: &Ip) -> Result<(u8, usize, (u16, bool)), Exits> {
    const BROKEN: Exits = &["drop ip_header", "drop truncated"];
    let (mut protocol, mut at, mut fragment) = (ip.protocol, ip.next, (0, false));
    for _ in 0..MOST_EXTENSIONS {
        if !EXTENSIONS.contains(&protocol) {
            return Ok((protocol, at, fragment));
        }
        let rest = &frame[at..ip.end];
        let (next, len) = match protocol {
            44 => {
                // A truncated fragment header may be counted as either fault.
                let header = Ipv6FragmentHeaderSlice::from_slice(rest)
                    .map_err(|_| &["drop ip_header", "drop truncated", "drop fragment"][..])?;
                fragment = (header.fragment_offset().value(), fragment.1 | header.more_fragments());
                if fragment.0 != 0 {
                    return Err(&["drop fragment"]);
                }
                (header.next_header().0, 8)
            }
            51 if rest.get(1) == Some(&0) => (rest[0], 8),
            51 => {
                let header = IpAuthHeaderSlice::from_slice(rest).map_err(|_| BROKEN)?;
                (header.next_header().0, header.slice().len())
            }
            _ => {
                let header = Ipv6RawExtHeaderSlice::from_slice(rest).map_err(|_| BROKEN)?;
                (header.next_header().0, header.slice().len())
            }
        };
        if len > rest.len() {
            return Err(BROKEN);
        }
        (protocol, at) = (next, at + len);
    }
    if EXTENSIONS.contains(&protocol) {
        return Err(&["drop ipv6_extensions"]);
    }
    Ok((protocol, at, fragment))
}

fn tcp(bytes: &[u8], at: usize) -> Result<Segment, Exits> {
    if bytes.len() < 20 {
        return Err(&["drop truncated"]);
    }
    let header = TcpHeaderSlice::from_slice(bytes).map_err(|_| &["drop l4_header"][..])?;
    Ok(Segment {
        l4: L4::Tcp,
        at,
        sport: header.source_port(),
        dport: header.destination_port(),
        tcp: Some(Tcp {
            fin: header.fin(),
            syn: header.syn(),
            rst: header.rst(),
            ack: header.ack(),
            seq: header.sequence_number(),
            ack_number: header.acknowledgment_number(),
            header_len: header.slice().len(),
        }),
        len: bytes.len(),
    })
}

fn udp(bytes: &[u8], at: usize, first_of_several: bool) -> Result<Segment, Exits> {
    let header = UdpHeaderSlice::from_slice(bytes).map_err(|_| &["drop truncated"][..])?;
    let len = header.length() as usize;
    // The first fragment has the length of the whole datagram.
    if len < 8 || len > bytes.len() && !first_of_several {
        return Err(&["drop l4_header"]);
    }
    Ok(Segment {
        l4: L4::Udp,
        at,
        sport: header.source_port(),
        dport: header.destination_port(),
        tcp: None,
        len: len.min(bytes.len()),
    })
}
