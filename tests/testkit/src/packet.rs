//! Packets of tests: their fields, and their bytes with every checksum computed in full.
//!
//! A packet library computes the bytes, so that expected packets are independent of the code under test.

use std::net::IpAddr;

use etherparse::{
    IpFragOffset, IpNumber, Ipv4Header, Ipv4Options, Ipv6Header, TcpHeader, TcpOptionElement, TcpOptions,
    UdpHeader,
};

pub type Mac = [u8; 6];

/// A packet that carries TCP or UDP.
#[derive(Clone, Debug)]
pub struct Packet {
    pub dst_mac: Mac,
    pub src_mac: Mac,
    /// TPID and VLAN id, outermost first.
    pub tags: Vec<(u16, u16)>,
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// Type of service, or traffic class.
    pub tos: u8,
    /// IPv4 options, a multiple of 4 bytes.
    pub options: Vec<u8>,
    /// Identification (IPv4).
    pub id: u16,
    /// Offset in 8-byte units and whether more follow (IPv4).
    pub fragment: (u16, bool),
    /// IPv6 extension headers: type and body, the length byte included but not the next-header byte.
    pub extensions: Vec<(u8, Vec<u8>)>,
    pub l4: Transport,
    pub sport: u16,
    pub dport: u16,
    /// The value of a TCP timestamp (RFC 7323).
    pub timestamp: Option<u32>,
    pub payload: Vec<u8>,
    /// Bytes after the IP packet.
    pub padding: Vec<u8>,
    /// The outer headers, if the packet is encapsulated.
    pub outer: Option<Outer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Tcp {
        flags: u8,
        seq: u32,
    },
    Udp {
        checksum: UdpChecksum,
    },
    /// Another protocol, with the payload right after the IP header.
    Other(u8),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UdpChecksum {
    Computed,
    /// None, as IPv4 allows.
    Zero,
}

#[derive(Clone, Copy, Debug)]
pub struct Outer {
    pub src: IpAddr,
    pub dst: IpAddr,
    pub ttl: u8,
    /// The flow label (IPv6).
    pub flow_label: u32,
    /// The outer UDP header (GUE).
    pub udp: Option<OuterUdp>,
}

#[derive(Clone, Copy, Debug)]
pub struct OuterUdp {
    pub sport: u16,
    pub dport: u16,
    pub checksum: UdpChecksum,
}

pub const FIN: u8 = 1;
pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const PSH: u8 = 8;
pub const ACK: u8 = 16;

impl Packet {
    /// A copy with some fields changed.
    pub fn with(&self, change: impl FnOnce(&mut Packet)) -> Packet {
        let mut packet = self.clone();
        change(&mut packet);
        packet
    }

    /// An ICMP packet with the same addresses: its type and code, an MTU of 1450 in the second half of its
    /// header, and this body.
    pub fn icmp(&self, [kind, code]: [u8; 2], body: &[u8]) -> Packet {
        self.with(|p| {
            p.l4 = Transport::Other(if p.src.is_ipv4() { 1 } else { 58 });
            p.payload = [&[kind, code, 0, 0, 0, 0, 5, 0xaa], body].concat();
            let mut summed = p.payload.clone();
            if p.src.is_ipv6() {
                let pseudo = [octets(p.src), octets(p.dst), (p.payload.len() as u32).to_be_bytes().to_vec()];
                summed = [pseudo.concat(), vec![0, 0, 0, 58], summed].concat();
            }
            p.payload[2..4].copy_from_slice(&internet_checksum(&summed));
        })
    }

    pub fn bytes(&self) -> Vec<u8> {
        let segment = self.segment();
        let inner = ip(self, &segment);
        let (v6, packet) = match self.outer {
            None => (self.src.is_ipv6(), inner),
            Some(outer) => (outer.dst.is_ipv6(), outer.wrap(self, &inner)),
        };
        let mut frame = [self.dst_mac, self.src_mac].concat();
        for (tpid, id) in &self.tags {
            frame.extend(tpid.to_be_bytes());
            frame.extend(id.to_be_bytes());
        }
        frame.extend(if v6 { 0x86dd_u16 } else { 0x0800 }.to_be_bytes());
        frame.extend(packet);
        frame.extend(&self.padding);
        frame
    }

    /// Length of the IP packet, without the Ethernet header and padding.
    pub fn ip_len(&self) -> u64 {
        (self.bytes().len() - 14 - 4 * self.tags.len() - self.padding.len()) as u64
    }

    fn segment(&self) -> Vec<u8> {
        match self.l4 {
            Transport::Tcp { flags, seq } => {
                let mut tcp = TcpHeader::new(self.sport, self.dport, seq, 64_000);
                (tcp.fin, tcp.syn, tcp.rst) = (flags & FIN != 0, flags & SYN != 0, flags & RST != 0);
                (tcp.psh, tcp.ack) = (flags & PSH != 0, flags & ACK != 0);
                let stamped = self.timestamp.map(|value| TcpOptionElement::Timestamp(value, 0));
                tcp.options = TcpOptions::try_from_elements(stamped.as_slice()).expect("10 of 40 bytes");
                tcp.checksum = match (self.src, self.dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        tcp.calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        tcp.calc_checksum_ipv6_raw(src.octets(), dst.octets(), &self.payload)
                    }
                    _ => panic!("{self:?} mixes address families"),
                }
                .expect("short enough");
                [tcp.to_bytes().as_slice(), &self.payload].concat()
            }
            Transport::Udp { checksum } => {
                let udp = match (self.src, self.dst) {
                    (IpAddr::V4(src), IpAddr::V4(dst)) => {
                        let len = (8 + self.payload.len()) as u16;
                        let mut udp = UdpHeader {
                            source_port: self.sport,
                            destination_port: self.dport,
                            length: len,
                            checksum: 0,
                        };
                        if checksum == UdpChecksum::Computed {
                            udp.checksum = udp
                                .calc_checksum_ipv4_raw(src.octets(), dst.octets(), &self.payload)
                                .expect("short enough");
                        }
                        udp
                    }
                    (IpAddr::V6(src), IpAddr::V6(dst)) => {
                        let ip = Ipv6Header {
                            source: src.octets(),
                            destination: dst.octets(),
                            ..Default::default()
                        };
                        UdpHeader::with_ipv6_checksum(self.sport, self.dport, &ip, &self.payload)
                            .expect("short enough")
                    }
                    _ => panic!("{self:?} mixes address families"),
                };
                [udp.to_bytes().as_slice(), &self.payload].concat()
            }
            Transport::Other(_) => self.payload.clone(),
        }
    }

    fn protocol(&self) -> u8 {
        match self.l4 {
            Transport::Tcp { .. } => 6,
            Transport::Udp { .. } => 17,
            Transport::Other(number) => number,
        }
    }
}

impl Outer {
    fn wrap(&self, inner: &Packet, bytes: &[u8]) -> Vec<u8> {
        let (protocol, bytes) = match self.udp {
            None => (if inner.src.is_ipv6() { 41 } else { 4 }, bytes.to_vec()),
            Some(udp) => (17, self.datagram(&udp, bytes)),
        };
        match (self.src, self.dst) {
            (IpAddr::V4(src), IpAddr::V4(dst)) => {
                let mut ip = Ipv4Header::new(
                    bytes.len() as u16,
                    self.ttl,
                    IpNumber(protocol),
                    src.octets(),
                    dst.octets(),
                )
                .expect("short enough");
                ip.dont_fragment = true;
                (ip.dscp, ip.ecn) = split_tos(inner.tos);
                ip.header_checksum = ip.calc_header_checksum();
                [ip.to_bytes().as_slice(), &bytes].concat()
            }
            (IpAddr::V6(src), IpAddr::V6(dst)) => {
                let ip = Ipv6Header {
                    traffic_class: inner.tos,
                    flow_label: self.flow_label.try_into().expect("20 bits"),
                    payload_length: bytes.len() as u16,
                    next_header: IpNumber(protocol),
                    hop_limit: self.ttl,
                    source: src.octets(),
                    destination: dst.octets(),
                };
                [ip.to_bytes().as_slice(), &bytes].concat()
            }
            _ => panic!("{self:?} mixes address families"),
        }
    }

    fn datagram(&self, udp: &OuterUdp, bytes: &[u8]) -> Vec<u8> {
        let mut header = UdpHeader {
            source_port: udp.sport,
            destination_port: udp.dport,
            length: (8 + bytes.len()) as u16,
            checksum: 0,
        };
        if udp.checksum == UdpChecksum::Computed {
            header.checksum = match (self.src, self.dst) {
                (IpAddr::V4(src), IpAddr::V4(dst)) => {
                    header.calc_checksum_ipv4_raw(src.octets(), dst.octets(), bytes)
                }
                (IpAddr::V6(src), IpAddr::V6(dst)) => {
                    header.calc_checksum_ipv6_raw(src.octets(), dst.octets(), bytes)
                }
                _ => panic!("{self:?} mixes address families"),
            }
            .expect("short enough");
        }
        [header.to_bytes().as_slice(), bytes].concat()
    }
}

fn ip(packet: &Packet, segment: &[u8]) -> Vec<u8> {
    match (packet.src, packet.dst) {
        (IpAddr::V4(src), IpAddr::V4(dst)) => {
            let mut ip = Ipv4Header::new(
                segment.len() as u16,
                packet.ttl,
                IpNumber(packet.protocol()),
                src.octets(),
                dst.octets(),
            )
            .expect("short enough");
            ip.options = Ipv4Options::try_from(packet.options.as_slice()).expect("whole words");
            ip.total_len = (ip.header_len() + segment.len()) as u16;
            ip.identification = packet.id;
            ip.dont_fragment = packet.fragment == (0, false);
            ip.fragment_offset = IpFragOffset::try_new(packet.fragment.0).expect("13 bits");
            ip.more_fragments = packet.fragment.1;
            (ip.dscp, ip.ecn) = split_tos(packet.tos);
            ip.header_checksum = ip.calc_header_checksum();
            [ip.to_bytes().as_slice(), segment].concat()
        }
        (IpAddr::V6(src), IpAddr::V6(dst)) => {
            let kinds: Vec<u8> =
                packet.extensions.iter().map(|(kind, _)| *kind).chain([packet.protocol()]).collect();
            let mut payload = Vec::new();
            for ((_, body), next) in packet.extensions.iter().zip(&kinds[1..]) {
                payload.push(*next);
                payload.extend(body);
            }
            payload.extend(segment);
            let ip = Ipv6Header {
                traffic_class: packet.tos,
                flow_label: 0x1234_u32.try_into().expect("20 bits"),
                payload_length: payload.len() as u16,
                next_header: IpNumber(kinds[0]),
                hop_limit: packet.ttl,
                source: src.octets(),
                destination: dst.octets(),
            };
            [ip.to_bytes().as_slice(), &payload].concat()
        }
        _ => panic!("{packet:?} mixes address families"),
    }
}

fn split_tos(tos: u8) -> (etherparse::IpDscp, etherparse::IpEcn) {
    ((tos >> 2).try_into().expect("6 bits"), (tos & 3).try_into().expect("2 bits"))
}

/// The checksum of RFC 1071; zero if the bytes contain their own checksum.
pub fn internet_checksum(bytes: &[u8]) -> [u8; 2] {
    let mut sum: u32 =
        bytes.chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(*w.get(1).unwrap_or(&0))).sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    (!(sum as u16)).to_be_bytes()
}

pub fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}
