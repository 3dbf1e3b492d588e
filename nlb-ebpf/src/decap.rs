//! The receiving end of dsr-ipip: takes the outer IP header off and leaves the inner packet to the kernel.

use nlb_common::frame::Frame;
use nlb_common::net::Be16;
use nlb_common::parse;
use nlb_common::rewrite::{self, IPPROTO_IPIP, IPPROTO_IPV6};
use nlb_common::verdict::{DropReason, PassReason, Verdict};

use crate::packet::Packet;
use crate::tables;

#[inline(always)]
pub fn decap(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let outer = parse::ip(packet)?;
    if outer.protocol != IPPROTO_IPIP && outer.protocol != IPPROTO_IPV6 {
        return Ok(Verdict::Pass(PassReason::NotOurs));
    }
    if !tables::is_peer(outer.src) {
        return Ok(Verdict::Pass(PassReason::NotPeer));
    }
    if outer.later_fragment {
        return Ok(Verdict::Drop(DropReason::Fragment));
    }
    let inner_v6 = outer.protocol == IPPROTO_IPV6;
    if !inner_is_sound(packet, &outer, inner_v6) {
        return Ok(Verdict::Drop(DropReason::InnerHeader));
    }
    let shift = outer.next - outer.l3;
    rewrite::unwrap(packet, &outer, shift, inner_v6).ok_or(Verdict::Drop(DropReason::Internal))?;
    packet.move_front(shift as i32).ok_or(Verdict::Drop(DropReason::Headroom))?;
    Ok(Verdict::Pass(PassReason::Decapsulated))
}

/// Whether the inner packet's version is what the outer header says, and its length stays inside the outer packet.
#[inline(always)]
fn inner_is_sound(packet: &Packet, outer: &parse::Ip, inner_v6: bool) -> bool {
    let Some(head) = packet.read::<[u8; 6]>(outer.next) else { return false };
    let (version, len) = if inner_v6 {
        (6, Be16::from_bytes([head[4], head[5]]).get() as usize + 40)
    } else {
        (4, Be16::from_bytes([head[2], head[3]]).get() as usize)
    };
    head[0] >> 4 == version && outer.next + len <= outer.end
}
