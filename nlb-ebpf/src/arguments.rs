//! Ports, and a VIP's id with the L4 protocol, as arguments of functions out of line: a BPF function takes
//! five words.

use nlb_common::net::{Be16, L4};
use nlb_common::parse::Segment;

/// The source port in the lower half, the destination port in the upper one, as the packet has them.
#[inline(always)]
pub fn ports(segment: &Segment) -> u32 {
    segment.sport.word() as u32 | (segment.dport.word() as u32) << 16
}

#[inline(always)]
pub fn from_ports(word: u32) -> (Be16, Be16) {
    (Be16::from_word(word as u16), Be16::from_word((word >> 16) as u16))
}

#[inline(always)]
pub fn vip(id: u16, l4: L4) -> u32 {
    id as u32 | (l4 as u32) << 16
}

#[inline(always)]
pub fn from_vip(word: u32) -> (u16, L4) {
    (word as u16, l4(word >> 16))
}

/// The L4 protocol of this number, which is one of the two.
#[inline(always)]
pub fn l4(number: u32) -> L4 {
    if number == L4::Tcp as u32 { L4::Tcp } else { L4::Udp }
}
