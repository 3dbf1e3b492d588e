//! Forwarding to a backend: reachability, translation, encapsulation, and sending.

use nlb_common::abi::{Backend, FragmentEntry, NextHop};
use nlb_common::gue;
use nlb_common::net::Be16;
use nlb_common::parse::{Ip, Segment};
use nlb_common::rewrite::{self, Outer, Tuple};
use nlb_common::verdict::{DropReason, Outcome, SendReason, Verdict};

use crate::packet::{Packet, bounded};
use crate::record::nat_tuple;
use crate::tail_call::Refusal;
use crate::{fragment_cache, maps, next_hop, punt, settings, tail_call};

/// The backend of a flow, and what is rewritten for it.
pub struct ForwardingDecision {
    pub backend_id: u16,
    pub backend: &'static Backend,
    /// The port that a NAT backend sees instead of the client's; 0 keeps the client's port.
    pub snat_port: Be16,
    pub hash: u64,
}

impl ForwardingDecision {
    /// The source port that a NAT backend sees.
    #[inline(always)]
    pub fn translated_port(&self, client_port: Be16) -> Be16 {
        if self.snat_port.is_zero() { client_port } else { self.snat_port }
    }
}

/// Checks whether the packet can go to its backend, before the flow table or a counter changes. The packet is
/// punted if the next hop is not known, dropped if it is in a loop, and answered or fragmented if it is
/// longer than the MTU.
#[inline(always)]
pub fn check_reachable(packet: &Packet, ip: &Ip, backend: &Backend) -> Result<(), Verdict> {
    if !backend.has(Backend::RESOLVED) {
        return Err(punt::until_resolved(packet, backend.addr));
    }
    // Before the length is looked at: in generic mode this may be a buffer of merged segments.
    if backend.has(Backend::LOCAL) && !packet.is_skb() {
        return Err(next_hop::LOCAL);
    }
    next_hop::check_loop(packet, &backend.hop)?;
    let grown = outer_len(backend);
    if packet.longest(ip) + grown > backend.mtu as usize {
        return Err(tail_call::to_too_big((backend.mtu as u32).saturating_sub(grown as u32)));
    }
    Ok(())
}

/// The verdict on a packet whose TTL or hop limit does not allow forwarding: its sender is told, as by a
/// router (RFC 1812 section 5.3.1).
#[inline(always)]
pub fn check_ttl(packet: &Packet, ip: &Ip) -> Result<(), Verdict> {
    match ip.check_ttl() {
        Err(_) if !packet.is_skb() => Err(tail_call::to_reject(Refusal::TtlExceeded)),
        checked => checked,
    }
}

#[inline(always)]
pub fn send_to_backend<const FIRST_FRAGMENT: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    service: u16,
    decision: &ForwardingDecision,
) -> Outcome {
    let backend = decision.backend;
    maps::count_forward(decision.backend_id, ip.total_len());
    if backend.mode != Backend::NAT {
        if FIRST_FRAGMENT {
            fragment_cache::remember(
                decision.backend_id,
                backend,
                service,
                FragmentEntry::TO_BACKEND,
                (ip.src, ip.dst),
                decision.hash,
            );
        }
        return send_untranslated(
            packet,
            ip,
            (decision.backend_id, backend),
            decision.hash,
            SendReason::Forward,
        );
    }
    let tuple = nat_tuple(backend, ip, segment, decision.hash);
    if FIRST_FRAGMENT {
        let to = (tuple.addr, backend.addr);
        let path = FragmentEntry::TO_BACKEND;
        fragment_cache::remember(decision.backend_id, backend, service, path, to, decision.hash);
    }
    let sport = decision.translated_port(segment.sport);
    let to = Tuple { src: tuple.addr, dst: backend.addr, sport, dport: tuple.backend_port };
    translate(packet, ip, segment, &to)?;
    send(packet, &backend.hop, SendReason::Forward)
}

/// Sends a packet without translation, behind outer headers if the mode of its backend has any.
#[inline(always)]
pub fn send_untranslated(
    packet: &mut Packet,
    ip: &Ip,
    (backend_id, backend): (u16, &Backend),
    hash: u64,
    reason: SendReason,
) -> Outcome {
    if backend.mode == Backend::DSR_L2 {
        rewrite::decrement_ttl(packet, ip).ok_or(Verdict::INTERNAL)?;
        return send(packet, &backend.hop, reason);
    }
    if packet.is_skb() {
        return Ok(Verdict::Drop(DropReason::Headroom));
    }
    if backend.mode == Backend::GUE {
        return Ok(tail_call::to_gue(backend_id, hash, reason));
    }
    let grown = outer_len(backend);
    rewrite::decrement_ttl(packet, ip).ok_or(Verdict::INTERNAL)?;
    packet.move_front(-(grown as i32)).ok_or(Verdict::Drop(DropReason::Headroom))?;
    let src = settings::ipip_source(!backend.addr.is_v4(), hash).unwrap_or(backend.source);
    let outer = Outer { src, dst: backend.addr, flow_label: hash as u32 };
    rewrite::encapsulate(packet, ip, grown, &outer).ok_or(Verdict::INTERNAL)?;
    send(packet, &backend.hop, reason)
}

/// Bytes of the outer headers for a backend.
#[inline(always)]
pub fn outer_len(backend: &Backend) -> usize {
    let ip = Outer::len(!backend.addr.is_v4());
    match backend.mode {
        Backend::DSR_IPIP => ip,
        Backend::GUE => ip + gue::HEADER,
        _ => 0,
    }
}

#[inline(always)]
pub fn translate(packet: &mut Packet, ip: &Ip, segment: &Segment, to: &Tuple) -> Result<(), Verdict> {
    let segment = Segment { offset: bounded(segment.offset), ..*segment };
    rewrite::translate(packet, ip, &segment, to).ok_or(Verdict::INTERNAL)
}

#[inline(always)]
pub fn send(packet: &mut Packet, hop: &NextHop, reason: SendReason) -> Outcome {
    rewrite::ethernet(packet, hop.dst(), hop.src()).ok_or(Verdict::INTERNAL)?;
    Ok(Verdict::Send(reason, hop.ifindex))
}
