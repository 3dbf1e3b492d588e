//! Packets that are described field by field, and built with checksums that other code than the crate's own
//! computes over the whole packet.

use nlb_common::net::{Addr, L4};
use proptest::collection::vec;
use proptest::prelude::*;

/// The fields of a packet. Two specs that differ in one field build frames that differ in that field and in
/// checksums.
#[derive(Clone, Debug)]
pub struct Spec {
    /// TPID and TCI of each VLAN tag.
    pub tags: Vec<(u16, u16)>,
    pub traffic_class: u8,
    pub ttl: u8,
    pub src: Ip,
    pub dst: Ip,
    /// IPv4 options, or the contents of IPv6 destination options; in whole words of 4 or 8 bytes.
    pub options: Vec<u8>,
    pub l4: L4,
    pub sport: u16,
    pub dport: u16,
    pub tcp_flags: u8,
    pub tcp_options: Vec<u8>,
    /// A UDP checksum of 0: the sender computed none.
    pub unchecked: bool,
    pub payload: Vec<u8>,
    /// Bytes after the end of the IP packet.
    pub padding: Vec<u8>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ip {
    V4([u8; 4]),
    V6([u8; 16]),
}

const TCP: u8 = 6;
const UDP: u8 = 17;
const DESTINATION_OPTIONS: u8 = 60;

/// Any valid packet.
pub fn spec() -> impl Strategy<Value = Spec> {
    any::<bool>().prop_flat_map(spec_of)
}

fn spec_of(v6: bool) -> impl Strategy<Value = Spec> {
    let tags = vec((prop_oneof![Just(0x8100_u16), Just(0x88a8)], any::<u16>()), 0..=2);
    // Contents of destination options count in words of 8 less 2; those of IPv4 in words of 4.
    let options = prop_oneof![
        2 => Just(Vec::new()),
        1 => (1..=if v6 { 5_usize } else { 10 }).prop_flat_map(move |words| {
            let bytes = if v6 { 8 * words - 2 } else { 4 * words };
            vec(any::<u8>(), bytes)
        }),
    ];
    let link = (tags, any::<u8>(), 2..=u8::MAX, vec(any::<u8>(), 0..20));
    let l4 = (
        prop_oneof![Just(L4::Tcp), Just(L4::Udp)],
        any::<(u16, u16)>(),
        0..0x40_u8,
        (0..=10_usize).prop_flat_map(|words| vec(any::<u8>(), 4 * words)),
        any::<bool>(),
        vec(any::<u8>(), 0..200),
    );
    (link, ip(v6), ip(v6), options, l4).prop_map(|(link, src, dst, options, l4)| {
        let (tags, traffic_class, ttl, padding) = link;
        let (l4, (sport, dport), tcp_flags, tcp_options, unchecked, payload) = l4;
        Spec {
            tags,
            traffic_class,
            ttl,
            src,
            dst,
            options,
            l4,
            sport,
            dport,
            tcp_flags,
            tcp_options,
            unchecked: unchecked && matches!(src, Ip::V4(_)),
            payload,
            padding,
        }
    })
}

/// Any address of a family, corner cases of checksums among them.
pub fn ip(v6: bool) -> BoxedStrategy<Ip> {
    let byte = prop_oneof![2 => any::<u8>(), 1 => Just(0), 1 => Just(0xff)];
    if v6 {
        // Never v4-mapped: no packet carries such an address.
        vec(byte, 16)
            .prop_map(|mut bytes| {
                bytes[0] |= 0x20;
                Ip::V6(bytes.try_into().expect("16 bytes"))
            })
            .boxed()
    } else {
        vec(byte, 4).prop_map(|bytes| Ip::V4(bytes.try_into().expect("4 bytes"))).boxed()
    }
}

impl Ip {
    pub fn bytes(&self) -> &[u8] {
        match self {
            Ip::V4(bytes) => bytes,
            Ip::V6(bytes) => bytes,
        }
    }
}

impl From<Ip> for Addr {
    fn from(ip: Ip) -> Addr {
        match ip {
            Ip::V4(bytes) => Addr::v4(bytes),
            Ip::V6(bytes) => Addr::v6(bytes),
        }
    }
}

impl Spec {
    /// UDP without a checksum.
    pub fn unchecked_udp(&self) -> bool {
        self.unchecked && self.l4 == L4::Udp
    }

    pub fn is_v6(&self) -> bool {
        matches!(self.src, Ip::V6(_))
    }

    /// The whole frame.
    pub fn frame(&self) -> Vec<u8> {
        let mut frame = self.link_header(self.is_v6());
        frame.extend(self.ip_packet());
        frame.extend(&self.padding);
        frame
    }

    /// The Ethernet header and its tags, for a packet of that version.
    pub fn link_header(&self, v6: bool) -> Vec<u8> {
        let mut header = vec![0x02, 0, 0, 0, 0, 1, 0x02, 0, 0, 0, 0, 2];
        for (tpid, tci) in &self.tags {
            header.extend(tpid.to_be_bytes());
            header.extend(tci.to_be_bytes());
        }
        header.extend(if v6 { [0x86, 0xdd] } else { [0x08, 0x00] });
        header
    }

    pub fn ip_packet(&self) -> Vec<u8> {
        let segment = self.segment();
        let mut packet =
            if self.is_v6() { self.ipv6_header(segment.len()) } else { self.ipv4_header(segment.len()) };
        packet.extend(segment);
        packet
    }

    /// Chooses the first bytes of the payload so that the L4 checksum is 0, which UDP sends as 0xffff.
    pub fn with_checksum_of_zero(mut self) -> Spec {
        self.payload.resize(self.payload.len().max(2), 0);
        self.payload[..2].fill(0);
        let without = checksum(&[&self.pseudo_header(), &self.l4_bytes(0)]);
        self.payload[..2].copy_from_slice(&without.to_be_bytes());
        self
    }

    fn ipv4_header(&self, l4_len: usize) -> Vec<u8> {
        let header_len = 20 + self.options.len();
        let mut header = vec![0x40 | (header_len / 4) as u8, self.traffic_class];
        header.extend(((header_len + l4_len) as u16).to_be_bytes());
        header.extend([0x12, 0x34, 0x40, 0, self.ttl, self.protocol(), 0, 0]);
        header.extend(self.src.bytes());
        header.extend(self.dst.bytes());
        header.extend(&self.options);
        let sum = checksum(&[&header]);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
        header
    }

    fn ipv6_header(&self, l4_len: usize) -> Vec<u8> {
        let mut extension = Vec::new();
        if !self.options.is_empty() {
            extension.extend([self.protocol(), (self.options.len() / 8) as u8]);
            extension.extend(&self.options);
        }
        let next = if extension.is_empty() { self.protocol() } else { DESTINATION_OPTIONS };
        let mut header = vec![0x60 | self.traffic_class >> 4, self.traffic_class << 4, 0x12, 0x34];
        header.extend(((extension.len() + l4_len) as u16).to_be_bytes());
        header.extend([next, self.ttl]);
        header.extend(self.src.bytes());
        header.extend(self.dst.bytes());
        header.extend(extension);
        header
    }

    fn segment(&self) -> Vec<u8> {
        let sum = match checksum(&[&self.pseudo_header(), &self.l4_bytes(0)]) {
            _ if self.unchecked_udp() => 0,
            0 if self.l4 == L4::Udp => 0xffff,
            sum => sum,
        };
        self.l4_bytes(sum)
    }

    fn l4_bytes(&self, checksum: u16) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.sport.to_be_bytes());
        bytes.extend(self.dport.to_be_bytes());
        match self.l4 {
            L4::Tcp => {
                let data_offset = 5 + self.tcp_options.len() / 4;
                bytes.extend([1, 2, 3, 4, 5, 6, 7, 8, (data_offset as u8) << 4, self.tcp_flags, 0xfa, 0xf0]);
                bytes.extend(checksum.to_be_bytes());
                bytes.extend([0, 0]);
                bytes.extend(&self.tcp_options);
            }
            L4::Udp => {
                bytes.extend(((8 + self.payload.len()) as u16).to_be_bytes());
                bytes.extend(checksum.to_be_bytes());
            }
        }
        bytes.extend(&self.payload);
        bytes
    }

    /// RFC 793 section 3.1 and RFC 8200 section 8.1; the layouts differ, the sums do not.
    fn pseudo_header(&self) -> Vec<u8> {
        let len = self.l4_bytes(0).len() as u32;
        [self.src.bytes(), self.dst.bytes(), &len.to_be_bytes(), &[0, 0, 0, self.protocol()]].concat()
    }

    pub fn protocol(&self) -> u8 {
        match self.l4 {
            L4::Tcp => TCP,
            L4::Udp => UDP,
        }
    }
}

/// RFC 1071, the slow way: big-endian words, and every carry added at once.
pub fn checksum(parts: &[&[u8]]) -> u16 {
    let bytes = parts.concat();
    let sum = bytes.chunks(2).fold(0_u16, |sum, word| {
        let word = u16::from_be_bytes([word[0], word.get(1).copied().unwrap_or(0)]);
        let (sum, carry) = sum.overflowing_add(word);
        sum + u16::from(carry)
    });
    !sum
}
