//! The program for packets longer than the MTU. If their senders do path MTU discovery, which has to take an
//! outer header into account, they are answered (RFC 1191, RFC 8201); the others are fragmented (RFC 791).
//!
//! There is one for XDP and one for TC ingress.

use nlb_common::abi::FragmentEntry;
use nlb_common::parse::{self, Ip};
use nlb_common::refusal::{self, Error};
use nlb_common::verdict::{DropReason, Outcome, SendReason, Verdict};

use crate::maps::Rate;
use crate::packet::{Context, Packet};
use crate::{fragment_cache, maps, punt, tail_call};

const SILENT: Verdict = Verdict::Drop(DropReason::TooBig);

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    let mtu = tail_call::mtu().ok_or(SILENT)?;
    if !ip.dont_fragment {
        return Ok(fragment(packet, &ip, mtu));
    }
    if !refusal::may_be_answered(packet, &ip) || !maps::is_within(Rate::TooBig) {
        return Ok(SILENT);
    }
    if let Context::Skb(ctx) = packet.context() {
        let answered = punt::to_be_answered(ctx, mtu as u16);
        return Ok(if answered { Verdict::Send(SendReason::TooBig, packet.ingress()) } else { SILENT });
    }
    let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
    packet.move_front(-(grown as i32)).ok_or(SILENT)?;
    let answered = refusal::icmp_error(packet, &ip, grown, Error::TooBig(mtu));
    answered.and_then(|len| packet.cut_to(len)).ok_or(Verdict::Drop(DropReason::Internal))?;
    Ok(Verdict::Send(SendReason::TooBig, packet.ingress()))
}

/// Has user space fragment the packet. If it is a first fragment itself, the other ones follow it. A buffer
/// of merged segments is many packets, and cannot be fragmented as one.
#[inline(always)]
fn fragment(packet: &Packet, ip: &Ip, mtu: u32) -> Verdict {
    if packet.is_merged() || !maps::is_within(Rate::Fragments) {
        return SILENT;
    }
    // Stored before user space can have the program run on the packet again.
    let others_follow = ip.more_fragments && !ip.later_fragment;
    if others_follow {
        fragment_cache::remember_detour(FragmentEntry::PUNTED);
    }
    let verdict = punt::to_be_fragmented(packet, mtu as u16);
    if others_follow && verdict == SILENT {
        fragment_cache::forget();
    }
    verdict
}
