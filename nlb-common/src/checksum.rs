//! Incremental Internet checksums (RFC 1071, RFC 1624).
//!
//! The checksum of a header is the complement of the ones'-complement sum of its 16-bit words. The balancer
//! changes a few words of a packet that may be 9,000 bytes long, so it does not sum the packet: it subtracts
//! the old words from the sum and adds the new ones. RFC 1624 gives the form that is right in every case,
//! `HC' = ~(~HC + ~m + m')`; the older `HC + m - m'` of RFC 1141 can turn a checksum of 0xffff into 0x0000.
//!
//! Ones'-complement addition does not depend on byte order as long as every word is read in the same order,
//! so words are read in memory order. It does not depend on word size either: 32-bit words are added in 64
//! bits, and the carries folded at the end. 64 bits have room for four billion additions.
//!
//! A v4-mapped address adds the same constant for the old and the new address, which cancels out, so
//! [`Delta::addr`] serves IPv4 and IPv6.

use crate::net::{Addr, Be16, L4};

/// What a set of edits adds to a ones'-complement sum.
#[derive(Clone, Copy, Default)]
pub struct Delta(u64);

impl Delta {
    #[inline(always)]
    pub const fn new() -> Self {
        Delta(0)
    }

    /// Replaces 16 bits at an even offset.
    #[inline(always)]
    pub const fn word16(self, old: u16, new: u16) -> Self {
        Delta(self.0 + (!old) as u64 + new as u64)
    }

    /// Replaces 32 bits at an even offset.
    #[inline(always)]
    pub const fn word32(self, old: u32, new: u32) -> Self {
        Delta(self.0 + (!old) as u64 + new as u64)
    }

    #[inline(always)]
    pub const fn port(self, old: Be16, new: Be16) -> Self {
        self.word16(old.word(), new.word())
    }

    #[inline(always)]
    pub const fn addr(self, old: Addr, new: Addr) -> Self {
        let (o, n) = (old.words(), new.words());
        self.word32(o[0], n[0]).word32(o[1], n[1]).word32(o[2], n[2]).word32(o[3], n[3])
    }

    /// The sum of both sets of edits.
    #[inline(always)]
    pub const fn and(self, other: Delta) -> Self {
        Delta(self.0 + other.0)
    }

    /// Folded to 16 bits.
    #[inline(always)]
    pub const fn folded(self) -> u16 {
        fold(self.0)
    }

    /// The checksum field after the edits.
    #[inline(always)]
    pub const fn apply(self, field: Be16) -> Be16 {
        let sum = (!field.word()) as u64 + self.0;
        Be16::from_bytes((!fold(sum)).to_ne_bytes())
    }
}

/// Folds the carries of a sum of memory words to 16 bits. Four folds suffice for 64 bits, and the verifier
/// wants a fixed number.
#[inline(always)]
pub const fn fold(sum: u64) -> u16 {
    let sum = (sum & 0xffff_ffff) + (sum >> 32);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    let sum = (sum & 0xffff) + (sum >> 16);
    sum as u16
}

/// The checksum over `bytes`; an odd last byte is the high byte of a word (RFC 1071).
pub fn full(bytes: &[u8]) -> Be16 {
    let mut words = bytes.chunks_exact(2);
    let mut sum: u64 = words.by_ref().map(|w| u16::from_ne_bytes([w[0], w[1]]) as u64).sum();
    if let [last] = words.remainder() {
        sum += u16::from_ne_bytes([*last, 0]) as u64;
    }
    Be16::from_bytes((!fold(sum)).to_ne_bytes())
}

/// What the pseudo header of a segment adds to a sum (RFC 9293 section 3.1, RFC 8200 section 8.1), in either
/// direction. The two octets before the IPv4 part of a v4-mapped address are all ones, which add nothing in
/// ones' complement.
#[inline(always)]
pub fn pseudo_header(src: Addr, dst: Addr, protocol: u8, len: Be16) -> Delta {
    let addresses = Delta::new().addr(Addr::UNSPECIFIED, src).addr(Addr::UNSPECIFIED, dst);
    addresses.word16(0, u16::from_ne_bytes([0, protocol])).word16(0, len.word())
}

/// A complete L4 checksum after these edits. A UDP checksum field of 0 means that the sender computed none
/// (RFC 768; over IPv6 RFC 6935), and stays 0, as in Linux; a computed 0 is sent as all ones.
#[inline(always)]
pub fn amended(l4: L4, old: Be16, edits: Delta) -> Be16 {
    let none = matches!(l4, L4::Udp) && old.is_zero();
    let new = edits.apply(old);
    match l4 {
        _ if none => old,
        L4::Udp if new.is_zero() => Be16::new(0xffff),
        _ => new,
    }
}
