//! IPv6 extension headers. Out of line.
//!
//! Few packets have any, and the verifier would follow every length that the walk can end with through the
//! rest of the program. As a function of its own the walk is checked once, and its result is one number.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::verdict::{DropReason, Verdict};

use crate::packet::{Context, MAX_OFFSET, Packet};

/// The L4 header behind any extension headers; otherwise as `parse::segment`.
#[inline(always)]
pub fn segment(packet: &Packet, ip: &Ip) -> Result<Segment, Verdict> {
    if !parse::has_extensions(ip) {
        return parse::segment(packet, ip);
    }
    let (protocol, next, end) = (ip.protocol as u32, ip.next as u32, ip.end as u32);
    let found = match packet.context() {
        Context::Xdp(ctx) => nlb_skip_extensions(ctx, protocol, next, end),
        Context::Skb(ctx) => nlb_tc_skip_extensions(ctx, protocol, next, end),
    };
    if found & FAILED != 0 {
        return Err(Verdict::Drop(match found & !FAILED {
            0 => DropReason::Truncated,
            1 => DropReason::IpHeader,
            2 => DropReason::Fragment,
            _ => DropReason::Ipv6Extensions,
        }));
    }
    let next = (found >> 8) as usize & MAX_OFFSET;
    let more_fragments = found & MORE_FRAGMENTS != 0;
    parse::segment(packet, &Ip { protocol: found as u8, next, more_fragments, ..*ip })
}

const FAILED: u32 = 1 << 31;
const MORE_FRAGMENTS: u32 = 1 << 30;

/// The offset of the L4 header, shifted left by 8, its protocol, and `MORE_FRAGMENTS` if more fragments
/// follow; or `FAILED` and the reason.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_skip_extensions(ctx: *mut xdp_md, protocol: u32, offset: u32, end: u32) -> u32 {
    skip(&Packet::xdp(ctx), protocol, offset, end)
}

/// As [`nlb_skip_extensions`], for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_skip_extensions(ctx: *mut __sk_buff, protocol: u32, offset: u32, end: u32) -> u32 {
    skip(&Packet::skb(ctx), protocol, offset, end)
}

#[inline(always)]
fn skip(packet: &Packet, protocol: u32, offset: u32, end: u32) -> u32 {
    // An IPv6 header behind two VLAN tags ends at 62.
    let offset = offset as usize & 63;
    match parse::skip_extensions(packet, protocol as u8, offset, end as usize) {
        Ok((protocol, offset, more)) => {
            (more as u32) << 30 | (offset as u32 & MAX_OFFSET as u32) << 8 | protocol as u32
        }
        Err(DropReason::Truncated) => FAILED,
        Err(DropReason::IpHeader) => FAILED | 1,
        Err(DropReason::Fragment) => FAILED | 2,
        Err(_) => FAILED | 3,
    }
}
