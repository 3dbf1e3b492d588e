//! The flow hash.
//!
//! One 64-bit hash of a 5-tuple serves three tables: its low half picks the bucket of the flow table, its high half the
//! slot of the Maglev table. It must be the same on every node and after every restart, so that another node, or this
//! one without its state, sends the middle of a connection to the same backend; hence no secret goes in.
//!
//! A multilinear hash (each word times an odd constant of its own, summed) followed by a finalizer. The products do not
//! wait for each other, so on a superscalar CPU the whole costs little more than one chain of multiply, shift, multiply.

use crate::net::{Addr, Be16};

/// 64-bit constants without structure: hexadecimal digits of the fraction of pi, with the last bit set to make them odd.
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

/// The hash of a prefix, of 32 bits: its address, and a word of all else that it is known by, with a secret in it. The upper
/// half is not just added to the rest: whoever picks addresses could make the sums equal whatever the secret is.
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
