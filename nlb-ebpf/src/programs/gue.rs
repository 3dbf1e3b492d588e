//! The program that encapsulates packets in UDP datagrams (GUE).
//!
//! It is a program of its own, so that its code costs other packets nothing. The packet was steered and
//! counted before the tail call.

use nlb_common::gue;
use nlb_common::parse;
use nlb_common::rewrite::{self, Outer};
use nlb_common::verdict::{DropReason, Outcome, Verdict};

use crate::packet::Packet;
use crate::{forward, maps, settings, tail_call};

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    let (backend, hash, reason) = tail_call::gue_context().ok_or(Verdict::INTERNAL)?;
    // The backend may have been removed meanwhile.
    let backend = maps::backend(backend).ok_or(Verdict::Drop(DropReason::NoBackend))?;

    rewrite::decrement_ttl(packet, &ip).ok_or(Verdict::INTERNAL)?;
    let grown = forward::outer_len(backend);
    packet.move_front(-(grown as i32)).ok_or(Verdict::Drop(DropReason::Headroom))?;
    let outer = Outer { src: backend.source, dst: backend.addr, flow_label: hash };
    let ports = (gue::source_port(hash), settings::gue_port());
    gue::encapsulate(packet, &ip, grown, &outer, ports).ok_or(Verdict::INTERNAL)?;
    forward::send(packet, &backend.hop, reason)
}
