//! The program that puts packets into UDP datagrams (GUE), for backends that want that.
//!
//! A stage of its own, so that the code for it is in nobody else's way. Where the packet goes is decided and counted by then.

use nlb_common::gue;
use nlb_common::parse;
use nlb_common::rewrite::{self, Outer};
use nlb_common::verdict::{DropReason, SendReason, Stage, Verdict};

use crate::maps;
use crate::packet::Packet;
use crate::steer::{self, INTERNAL};

/// What is left behind for the stage, in one word: from its lowest bit on, half of the flow's hash, the backend's id, and
/// whether the packet is an ICMP error.
const BACKEND: u32 = 32;
const ICMP_ERROR: u32 = 48;

/// Has the stage send the packet on to a backend.
#[inline(always)]
pub fn hand_over(backend_id: u16, hash: u64, reason: SendReason) -> Verdict {
    let is_error = matches!(reason, SendReason::IcmpError) as u64;
    maps::leave_behind(hash as u32 as u64 | (backend_id as u64) << BACKEND | is_error << ICMP_ERROR);
    Verdict::GoOn(Stage::Gue)
}

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    let word = maps::left_behind().ok_or(INTERNAL)?;
    let hash = word as u32;
    // It may have been removed since.
    let backend = maps::backend((word >> BACKEND) as u16).ok_or(Verdict::Drop(DropReason::NoBackend))?;
    let reason = if word >> ICMP_ERROR != 0 { SendReason::IcmpError } else { SendReason::Forward };

    rewrite::decrement_ttl(packet, &ip).ok_or(INTERNAL)?;
    let grown = steer::outer_len(backend);
    packet.move_front(-(grown as i32)).ok_or(Verdict::Drop(DropReason::Headroom))?;
    let outer = Outer { src: backend.source, dst: backend.addr, flow_label: hash };
    let ports = (gue::source_port(hash), maps::gue_port());
    gue::encapsulate(packet, &ip, grown, &outer, ports).ok_or(INTERNAL)?;
    steer::send(packet, &backend.hop, reason)
}
