//! The Internet checksum (RFC 1071), from the first byte to the last: a field that is right makes the sum
//! [`RIGHT`], and an edit that takes its field along leaves the sum as it was.

use nlb_common::parse::Ip;

/// The sum of what has a right checksum. The other zero of ones' complement counts as the same.
pub const RIGHT: u16 = 0;

pub fn ip_header(frame: &[u8], ip: &Ip) -> u16 {
    if ip.v6 { RIGHT } else { of(&[&frame[ip.l3..ip.next]]) }
}

/// Of TCP or UDP at `offset`, with the pseudo header.
pub fn segment(frame: &[u8], ip: &Ip, offset: usize) -> u16 {
    with_pseudo_header(frame, ip, offset)
}

pub fn icmp(frame: &[u8], ip: &Ip) -> u16 {
    if ip.v6 { with_pseudo_header(frame, ip, ip.next) } else { of(&[&frame[ip.next..ip.end]]) }
}

fn with_pseudo_header(frame: &[u8], ip: &Ip, offset: usize) -> u16 {
    let addresses = if ip.v6 { &frame[ip.l3 + 8..ip.l3 + 40] } else { &frame[ip.l3 + 12..ip.l3 + 20] };
    let len = ((ip.end - offset) as u32).to_be_bytes();
    of(&[addresses, &len, &[0, ip.protocol], &frame[offset..ip.end]])
}

/// Parts of even length but for the last.
fn of(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum();
    (sum % 0xffff) as u16
}
