//! The Internet checksum (RFC 1071) over the whole packet. The sum is [`CORRECT`] if the packet's checksum is
//! correct, and an edit that updates the checksum does not change the sum.

use nlb_common::parse::Ip;

/// The sum of a packet whose checksum is correct. Both zeros of ones' complement count as this value.
pub const CORRECT: u16 = 0;

pub fn ip_header(frame: &[u8], ip: &Ip) -> u16 {
    if ip.v6 { CORRECT } else { of(&[&frame[ip.l3..ip.next]]) }
}

/// The sum of TCP or UDP at `offset`, with the pseudo header.
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

/// The sum of parts, each of even length except the last.
fn of(parts: &[&[u8]]) -> u16 {
    let words = parts.iter().flat_map(|part| part.chunks(2));
    let sum: u64 = words.map(|word| u64::from(word[0]) << 8 | u64::from(*word.get(1).unwrap_or(&0))).sum();
    (sum % 0xffff) as u16
}
