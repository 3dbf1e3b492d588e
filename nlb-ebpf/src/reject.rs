//! Telling a client that it cannot be served, where the service is set to.
//!
//! Out of line for the reasons that `record` gives; it parses the packet once more, which a client that is turned away can
//! wait for. The answer goes back to whoever handed the packet to us.

use aya_ebpf::bindings::xdp_md;
use nlb_common::net::L4;
use nlb_common::parse;
use nlb_common::refusal;
use nlb_common::verdict::{DropReason, SendReason, Verdict};

use crate::packet::Packet;
use crate::tables;

/// Turns a packet to a service without a usable backend into its refusal. What cannot or must not be answered is dropped.
#[inline(always)]
pub fn reject(packet: &Packet, l4: L4) -> Verdict {
    let answered = match l4 {
        L4::Tcp => nlb_reset(packet.ctx()),
        L4::Udp => nlb_unreachable(packet.ctx()),
    };
    match answered {
        0 => Verdict::Drop(DropReason::NoBackend),
        _ => Verdict::Send(SendReason::Reject, packet.ingress()),
    }
}

/// 1 if the frame is a TCP reset now. Two functions and not one, since the kernel adds up the stack of all that call each
/// other, and gives 512 bytes.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_reset(ctx: *mut xdp_md) -> u32 {
    reset(&mut Packet::at_ctx(ctx)).is_some() as u32
}

/// 1 if the frame is an ICMP error now.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_unreachable(ctx: *mut xdp_md) -> u32 {
    unreachable(&mut Packet::at_ctx(ctx)).is_some() as u32
}

#[inline(always)]
fn reset(packet: &mut Packet) -> Option<()> {
    let ip = parse::ip(packet).ok()?;
    let segment = parse::segment(packet, &ip).ok()?;
    let len = refusal::reset(packet, &ip, &segment)?;
    packet.cut_to(len)
}

#[inline(always)]
fn unreachable(packet: &mut Packet) -> Option<()> {
    let ip = parse::ip(packet).ok()?;
    // RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 want ICMP errors limited in rate.
    tables::may_send_icmp_error().then_some(())?;
    let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
    packet.move_front(-(grown as i32))?;
    let len = refusal::port_unreachable(packet, &ip, grown)?;
    packet.cut_to(len)
}
