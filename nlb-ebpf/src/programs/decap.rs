//! The receiving end of dsr-ipip and gue: removes the outer headers and passes the inner packet to the
//! kernel.

use nlb_common::frame::Frame;
use nlb_common::gue::{self, Inner};
use nlb_common::net::Be16;
use nlb_common::parse::{self, Ip};
use nlb_common::protocol::{IPV6_LEN, ip as protocol};
use nlb_common::rewrite;
use nlb_common::verdict::{DropReason, Outcome, PassReason, Verdict};

use crate::packet::Packet;
use crate::{maps, settings};

#[inline(always)]
pub fn decap(packet: &mut Packet) -> Outcome {
    let outer = parse::ip(packet)?;
    let inner = match outer.protocol {
        protocol::IPIP => Inner { at: outer.next, end: outer.end, version: 4 },
        protocol::IPV6 => Inner { at: outer.next, end: outer.end, version: 6 },
        protocol::UDP => match gue::inner(packet, &outer, settings::gue_port()) {
            Some(inner) => inner,
            None => return Ok(Verdict::Pass(PassReason::NotOurs)),
        },
        _ => return Ok(Verdict::Pass(PassReason::NotOurs)),
    };
    if !maps::is_peer(outer.src) {
        return Ok(Verdict::Pass(PassReason::NotPeer));
    }
    if outer.later_fragment {
        return Ok(Verdict::Drop(DropReason::Fragment));
    }
    if !is_sound(packet, &outer, &inner) {
        return Ok(Verdict::Drop(DropReason::InnerHeader));
    }
    let shift = inner.at - outer.l3;
    rewrite::decapsulate(packet, &outer, shift, inner.version == 6)
        .ok_or(Verdict::Drop(DropReason::Internal))?;
    packet.move_front(shift as i32).ok_or(Verdict::Drop(DropReason::Headroom))?;
    Ok(Verdict::Pass(PassReason::Decapsulated))
}

/// Whether the inner packet has the IP version that the outer header names, and ends within the outer packet.
/// The checksum of an outer UDP header is not verified, because the receiver verifies that of the inner
/// packet.
#[inline(always)]
fn is_sound(packet: &Packet, outer: &Ip, inner: &Inner) -> bool {
    let Some(head) = packet.read::<[u8; 6]>(inner.at) else { return false };
    let len = match inner.version {
        4 => Be16::from_bytes([head[2], head[3]]).get() as usize,
        6 => Be16::from_bytes([head[4], head[5]]).get() as usize + IPV6_LEN,
        _ => return false,
    };
    head[0] >> 4 == inner.version && inner.at + len <= inner.end && inner.end <= outer.end
}
