//! Numbers that standards define: ethertypes, protocol numbers, lengths of headers, the default TTL, and the
//! actions of XDP.

/// Ethertypes (IEEE 802, as IANA lists them).
pub mod ethertype {
    pub const IPV4: u16 = 0x0800;
    pub const IPV6: u16 = 0x86dd;
    /// 802.1Q.
    pub const VLAN: u16 = 0x8100;
    /// 802.1ad, the outer one of two tags.
    pub const QINQ: u16 = 0x88a8;
}

/// IANA protocol numbers of what IP carries.
pub mod ip {
    pub const ICMP: u8 = 1;
    /// IPv4 in IP.
    pub const IPIP: u8 = 4;
    pub const TCP: u8 = 6;
    pub const UDP: u8 = 17;
    /// IPv6 in IP.
    pub const IPV6: u8 = 41;
    pub const ICMPV6: u8 = 58;
}

/// Protocol numbers of IPv6 extension headers (RFC 8200 section 4).
pub mod extension {
    pub const HOP_BY_HOP: u8 = 0;
    pub const ROUTING: u8 = 43;
    pub const FRAGMENT: u8 = 44;
    pub const AUTHENTICATION: u8 = 51;
    pub const DESTINATION: u8 = 60;
    pub const MOBILITY: u8 = 135;
    pub const HIP: u8 = 139;
    pub const SHIM6: u8 = 140;
    /// For experiments (RFC 3692).
    pub const EXPERIMENT_1: u8 = 253;
    pub const EXPERIMENT_2: u8 = 254;
}

/// The field of an IPv4 header that holds the fragment offset, as a number in host order (RFC 791 section
/// 3.1).
pub mod fragment {
    /// In units of 8 bytes.
    pub const OFFSET: u16 = 0x1fff;
    pub const MORE: u16 = 0x2000;
    pub const DONT: u16 = 0x4000;
    /// The offset and the flag for more, in the fragment header of IPv6 (RFC 8200 section 4.5).
    pub const V6_OFFSET: u16 = 0xfff8;
    pub const V6_MORE: u16 = 1;
}

/// Bytes of an Ethernet header without tags.
pub const ETH_LEN: usize = 14;
pub const VLAN_TAG_LEN: usize = 4;
/// Bytes of headers without options.
pub const IPV4_LEN: usize = 20;
pub const IPV6_LEN: usize = 40;
pub const TCP_LEN: usize = 20;
pub const UDP_LEN: usize = 8;
/// The header of an ICMP error, and the bytes that it quotes behind the IP header at least (RFC 792, RFC
/// 4443).
pub const ICMP_LEN: usize = 8;
pub const ICMP_QUOTE_LEN: usize = 8;

/// The TTL or hop limit that IANA recommends for packets of one's own.
pub const DEFAULT_TTL: u8 = 64;

/// What an XDP program returns (`enum xdp_action` of linux/bpf.h).
pub mod xdp {
    pub const ABORTED: u32 = 0;
    pub const DROP: u32 = 1;
    pub const PASS: u32 = 2;
    pub const TX: u32 = 3;
    pub const REDIRECT: u32 = 4;
}
