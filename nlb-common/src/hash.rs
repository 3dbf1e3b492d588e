//! The flow hash.
//!
//! One 64-bit hash of a 5-tuple serves two tables: its low half selects the bucket of the flow table, its
//! high half the slot of the Maglev table. It is the same on every node and after every restart, so that a
//! node without an entry for a connection sends it to the same backend; therefore it has no secret.
//!
//! It is a multilinear hash (each word times an odd constant of its own, summed) with a finalizer. The
//! products do not depend on each other, so on a superscalar CPU the hash takes little more time than one
//! chain of multiply, shift, multiply.

use crate::net::{Addr, Be16};

/// 64-bit constants without structure: hexadecimal digits of the fraction of pi, with the last bit set to
/// make them odd.
const K: [u64; 5] = [
    0x243f_6a88_85a3_08d3,
    0x1319_8a2e_0370_7345,
    0xa409_3822_299f_31d1,
    0x082e_fa98_ec4e_6c89,
    0x4528_21e6_38d0_1377,
];

/// The hash of a flow in one direction.
#[inline(always)]
pub const fn flow(src: Addr, dst: Addr, sport: Be16, dport: Be16, protocol: u8) -> u64 {
    let ports = sport.word() as u64 | (dport.word() as u64) << 16 | (protocol as u64) << 32;
    finish(
        src.hi
            .wrapping_mul(K[0])
            .wrapping_add(src.lo.wrapping_mul(K[1]))
            .wrapping_add(dst.hi.wrapping_mul(K[2]))
            .wrapping_add(dst.lo.wrapping_mul(K[3]))
            .wrapping_add(ports.wrapping_mul(K[4])),
    )
}

/// The hash of an address.
#[inline(always)]
pub const fn addr(addr: Addr) -> u64 {
    finish(addr.hi.wrapping_mul(K[0]).wrapping_add(addr.lo.wrapping_mul(K[1])))
}

/// The 32-bit hash of a prefix: of its address, and of a word with its scope, its length and a secret. The
/// upper half is not added to the rest: otherwise somebody who chooses addresses could make sums equal for
/// any secret.
#[inline(always)]
pub const fn prefix(addr: Addr, rest: u64) -> u32 {
    let upper = addr.hi.wrapping_mul(K[0]) ^ rest;
    let upper = (upper ^ (upper >> 32)).wrapping_mul(K[3]);
    let both = upper ^ addr.lo.wrapping_mul(K[1]);
    ((both ^ (both >> 32)).wrapping_mul(K[2]) >> 32) as u32
}

/// The hash of one word.
#[inline(always)]
pub const fn word(word: u64) -> u64 {
    finish(word.wrapping_mul(K[0]))
}

/// Spreads every bit of a sum of products over all 64 bits (the shape of MurmurHash3's finalizer).
#[inline(always)]
const fn finish(h: u64) -> u64 {
    let h = (h ^ (h >> 32)).wrapping_mul(K[2]);
    let h = (h ^ (h >> 29)).wrapping_mul(K[4]);
    h ^ (h >> 32)
}
