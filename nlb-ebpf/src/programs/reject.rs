//! The program that refuses a packet of a client, for services without a usable backend (`--reject`).
//!
//! The refusal goes back through the interface and to the MAC address that the packet came from.

use nlb_common::net::L4;
use nlb_common::parse::{self, Segment};
use nlb_common::refusal::{self, Error};
use nlb_common::verdict::{DropReason, Outcome, SendReason, Verdict};

use crate::maps::Rate;
use crate::packet::{Packet, bounded};
use crate::{ipv6_ext, maps};

/// Turns the packet into its refusal. A packet that cannot or must not be answered is dropped.
#[inline(always)]
pub fn answer(packet: &mut Packet) -> Outcome {
    const SILENT: Verdict = Verdict::Drop(DropReason::NoBackend);
    let ip = parse::ip(packet)?;
    if !refusal::may_be_answered(packet, &ip) {
        return Ok(SILENT);
    }
    let segment = ipv6_ext::segment(packet, &ip).map_err(|_| SILENT)?;
    let len = match segment.l4 {
        L4::Tcp => {
            let segment = Segment { offset: bounded(segment.offset), ..segment };
            refusal::reset(packet, &ip, &segment).ok_or(SILENT)?
        }
        // RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 want ICMP errors limited in rate.
        L4::Udp if !maps::is_within(Rate::IcmpErrors) => return Ok(SILENT),
        L4::Udp => {
            let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
            packet.move_front(-(grown as i32)).ok_or(SILENT)?;
            refusal::icmp_error(packet, &ip, grown, Error::PortUnreachable).ok_or(SILENT)?
        }
    };
    packet.cut_to(len).ok_or(SILENT)?;
    Ok(Verdict::Send(SendReason::Reject, packet.ingress()))
}
