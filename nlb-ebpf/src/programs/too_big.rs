//! The program that answers packets longer than the MTU, so that path MTU discovery takes the outer header
//! into account (RFC 1191, RFC 8201).

use nlb_common::parse;
use nlb_common::refusal::{self, Error};
use nlb_common::verdict::{DropReason, Outcome, SendReason, Verdict};

use crate::packet::Packet;
use crate::{maps, tail_call};

/// Answers with the MTU. A packet whose sender allows fragmentation is dropped without an answer.
#[inline(always)]
pub fn answer(packet: &mut Packet) -> Outcome {
    const SILENT: Verdict = Verdict::Drop(DropReason::TooBig);
    let ip = parse::ip(packet)?;
    let mtu = tail_call::mtu().ok_or(SILENT)?;
    let answers = ip.dont_fragment && refusal::may_be_answered(packet, &ip);
    if !answers || !maps::may_send_icmp_error() {
        return Ok(SILENT);
    }
    let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
    packet.move_front(-(grown as i32)).ok_or(SILENT)?;
    let answered = refusal::icmp_error(packet, &ip, grown, Error::TooBig(mtu));
    answered.and_then(|len| packet.cut_to(len)).ok_or(Verdict::Drop(DropReason::Internal))?;
    Ok(Verdict::Send(SendReason::TooBig, packet.ingress()))
}
