//! Addresses, ports and protocols as packets and map keys hold them.
//!
//! Values in network order have types of their own, so that they cannot be compared with numbers in host
//! order. IPv4 and IPv6 addresses share one type: an IPv4 address is held v4-mapped (`::ffff:a.b.c.d`, RFC
//! 4291 section 2.5.5.2), so that one piece of code serves both families.

use crate::protocol::ip;

/// A 16-bit number in network byte order.
#[repr(transparent)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Be16(u16);

impl Be16 {
    #[inline(always)]
    pub const fn new(host: u16) -> Self {
        Be16(host.to_be())
    }

    #[inline(always)]
    pub const fn from_bytes(bytes: [u8; 2]) -> Self {
        Be16(u16::from_ne_bytes(bytes))
    }

    #[inline(always)]
    pub const fn bytes(self) -> [u8; 2] {
        self.0.to_ne_bytes()
    }

    /// The number in host order.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }

    /// The inverse of [`Be16::word`].
    #[inline(always)]
    pub const fn from_word(word: u16) -> Self {
        Be16(word)
    }

    /// The bytes in memory order, for hashes and sums of memory words.
    #[inline(always)]
    pub const fn word(self) -> u16 {
        self.0
    }

    #[inline(always)]
    pub const fn is_zero(self) -> bool {
        self.0 == 0
    }
}

impl core::fmt::Debug for Be16 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        self.get().fmt(f)
    }
}

/// An IPv6 address, or an IPv4 address in its v4-mapped form, as the two words of its 16 bytes in memory.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Addr {
    pub hi: u64,
    pub lo: u64,
}

/// The memory word of `00 00 ff ff`, which precedes an IPv4 address in its v4-mapped form.
const V4_MARK: u32 = u32::from_ne_bytes([0, 0, 0xff, 0xff]);

impl Addr {
    pub const UNSPECIFIED: Addr = Addr { hi: 0, lo: 0 };

    #[inline(always)]
    pub const fn v4(bytes: [u8; 4]) -> Self {
        Addr { hi: 0, lo: join(V4_MARK, u32::from_ne_bytes(bytes)) }
    }

    #[inline(always)]
    pub const fn v6(b: [u8; 16]) -> Self {
        Addr {
            hi: u64::from_ne_bytes([b[0], b[1], b[2], b[3], b[4], b[5], b[6], b[7]]),
            lo: u64::from_ne_bytes([b[8], b[9], b[10], b[11], b[12], b[13], b[14], b[15]]),
        }
    }

    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.hi == 0 && self.words()[2] == V4_MARK
    }

    /// Whether it can be the address of a single host on a network: neither multicast, nor loopback, nor
    /// unspecified (RFC 1122 section 3.2.1.3; RFC 4291 section 2.4).
    #[inline(always)]
    pub const fn is_one_host(self) -> bool {
        if self.is_v4() {
            let [first, ..] = self.v4_bytes();
            !matches!(first, 0 | 127 | 224..)
        } else {
            let loopback = 1_u64.to_be();
            let group = self.v6_bytes()[0] == 0xff;
            !group && !(self.hi == 0 && (self.lo == 0 || self.lo == loopback))
        }
    }

    /// The last four bytes: an IPv4 address.
    #[inline(always)]
    pub const fn v4_bytes(self) -> [u8; 4] {
        self.words()[3].to_ne_bytes()
    }

    #[inline(always)]
    pub const fn v6_bytes(self) -> [u8; 16] {
        let (hi, lo) = (self.hi.to_ne_bytes(), self.lo.to_ne_bytes());
        [
            hi[0], hi[1], hi[2], hi[3], hi[4], hi[5], hi[6], hi[7], lo[0], lo[1], lo[2], lo[3], lo[4], lo[5],
            lo[6], lo[7],
        ]
    }

    /// The four 32-bit words in memory order.
    #[inline(always)]
    pub const fn words(self) -> [u32; 4] {
        let (a, b) = split(self.hi);
        let (c, d) = split(self.lo);
        [a, b, c, d]
    }

    /// The address with all but the first `bits` bits (0 to 128, in the v4-mapped form) cleared.
    #[inline(always)]
    pub const fn prefix(self, bits: u8) -> Addr {
        if bits <= 64 {
            Addr { hi: self.hi & mask(bits), lo: 0 }
        } else {
            Addr { hi: self.hi, lo: self.lo & mask(bits - 64) }
        }
    }

    /// Whether the first `prefix_len` bits (0 to 128, in the v4-mapped form) of both addresses are equal.
    #[inline(always)]
    pub const fn shares_prefix(self, other: Addr, prefix_len: u8) -> bool {
        let hi = u64::from_be(self.hi ^ other.hi);
        let lo = u64::from_be(self.lo ^ other.lo);
        if prefix_len >= 128 {
            hi == 0 && lo == 0
        } else if prefix_len >= 64 {
            hi == 0 && (lo & !(u64::MAX >> (prefix_len - 64))) == 0
        } else {
            (hi & !(u64::MAX >> prefix_len)) == 0
        }
    }
}

/// A word in network order with the first `bits` bits (0 to 64) set.
#[inline(always)]
const fn mask(bits: u8) -> u64 {
    if bits == 0 { 0 } else { (u64::MAX << (64 - bits)).to_be() }
}

#[cfg(target_endian = "little")]
const fn join(first: u32, second: u32) -> u64 {
    first as u64 | (second as u64) << 32
}

#[cfg(target_endian = "little")]
const fn split(word: u64) -> (u32, u32) {
    (word as u32, (word >> 32) as u32)
}

impl From<core::net::IpAddr> for Addr {
    fn from(addr: core::net::IpAddr) -> Self {
        match addr {
            core::net::IpAddr::V4(a) => Addr::v4(a.octets()),
            core::net::IpAddr::V6(a) => Addr::v6(a.octets()),
        }
    }
}

impl From<Addr> for core::net::IpAddr {
    fn from(addr: Addr) -> Self {
        if addr.is_v4() { addr.v4_bytes().into() } else { addr.v6_bytes().into() }
    }
}

impl core::fmt::Debug for Addr {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        core::fmt::Display::fmt(&core::net::IpAddr::from(*self), f)
    }
}

/// A MAC address, as the two words of its 6 bytes in memory.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac {
    pub first: u32,
    pub last: u16,
}

impl Mac {
    /// The address of interfaces without one, such as loopback.
    pub const NONE: Mac = Mac { first: 0, last: 0 };

    pub const BROADCAST: Mac = Mac { first: u32::MAX, last: u16::MAX };

    #[inline(always)]
    pub const fn new(b: [u8; 6]) -> Self {
        Mac { first: u32::from_ne_bytes([b[0], b[1], b[2], b[3]]), last: u16::from_ne_bytes([b[4], b[5]]) }
    }

    /// Multicast or broadcast (the group bit of IEEE 802.3).
    #[inline(always)]
    pub const fn is_group(self) -> bool {
        self.first.to_ne_bytes()[0] & 1 != 0
    }

    pub const fn bytes(self) -> [u8; 6] {
        let (f, l) = (self.first.to_ne_bytes(), self.last.to_ne_bytes());
        [f[0], f[1], f[2], f[3], l[0], l[1]]
    }
}

impl core::fmt::Debug for Mac {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        let [a, b, c, d, e, g] = self.bytes();
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The L4 protocols that are balanced.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum L4 {
    Tcp = ip::TCP,
    Udp = ip::UDP,
}

impl core::fmt::Display for L4 {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.pad(match self {
            L4::Tcp => "tcp",
            L4::Udp => "udp",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use core::net::IpAddr;

    fn addr(s: &str) -> Addr {
        s.parse::<IpAddr>().unwrap().into()
    }

    #[test]
    fn addresses_survive_the_round_trip() {
        for s in ["0.0.0.0", "192.0.2.1", "::", "2001:db8::1", "::1"] {
            let ip: IpAddr = s.parse().unwrap();
            assert_eq!(IpAddr::from(Addr::from(ip)), ip);
        }
        assert!(addr("192.0.2.1").is_v4());
        assert!(!addr("2001:db8::1").is_v4());
    }

    #[test]
    fn prefixes_compare_bit_by_bit() {
        assert!(addr("10.0.0.1").shares_prefix(addr("10.0.0.200"), 96 + 24));
        assert!(!addr("10.0.0.1").shares_prefix(addr("10.0.1.1"), 96 + 24));
        assert!(addr("10.0.0.1").shares_prefix(addr("11.0.0.1"), 96 + 7));
        assert!(addr("2001:db8::1").shares_prefix(addr("2001:db8:ffff::"), 32));
        assert!(!addr("2001:db8::1").shares_prefix(addr("2001:db9::1"), 32));
        assert!(addr("::1").shares_prefix(addr("ffff::"), 0));
        assert!(!addr("::1").shares_prefix(addr("::2"), 128));
        assert!(addr("::1").shares_prefix(addr("::1"), 128));
        assert!(addr("1::").shares_prefix(addr("1::ffff"), 64));
    }
}
