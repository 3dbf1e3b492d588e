//! The program that refuses a packet: one whose TTL does not allow forwarding, or one of a client to a
//! service without a usable backend, or without one that has room (`--reject`).
//!
//! The refusal goes back through the interface and to the MAC address that the packet came from.

use nlb_common::net::L4;
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::refusal::{self, Error};
use nlb_common::verdict::{Outcome, SendReason, Verdict};

use crate::maps::Rate;
use crate::packet::{Packet, bounded};
use crate::tail_call::Refusal;
use crate::{ipv6_ext, maps, tail_call};

/// Turns the packet into its refusal. A packet that cannot or must not be answered is dropped.
#[inline(always)]
pub fn answer(packet: &mut Packet) -> Outcome {
    let refusal = tail_call::refusal();
    let silent = Verdict::Drop(refusal.silent());
    let reason = match refusal {
        Refusal::NoBackend | Refusal::Full => SendReason::Reject,
        Refusal::TtlExceeded => SendReason::TtlExceeded,
    };
    let ip = parse::ip(packet)?;
    if !refusal::may_be_answered(packet, &ip) {
        return Ok(silent);
    }
    let len = match reason {
        SendReason::TtlExceeded => icmp_error(packet, &ip, Error::TtlExceeded),
        _ => refuse(packet, &ip),
    };
    let len = len.ok_or(silent)?;
    packet.cut_to(len).ok_or(silent)?;
    Ok(Verdict::Send(reason, packet.ingress()))
}

/// Turns the packet into a RST or into port unreachable. Returns the new length of the frame.
#[inline(always)]
fn refuse(packet: &mut Packet, ip: &Ip) -> Option<usize> {
    let segment = ipv6_ext::segment(packet, ip).ok()?;
    match segment.l4 {
        L4::Tcp => {
            let segment = Segment { offset: bounded(segment.offset), ..segment };
            refusal::reset(packet, ip, &segment)
        }
        L4::Udp => icmp_error(packet, ip, Error::PortUnreachable),
    }
}

#[inline(always)]
fn icmp_error(packet: &mut Packet, ip: &Ip, error: Error) -> Option<usize> {
    // RFC 1812 section 4.3.2.8 and RFC 4443 section 2.4 want ICMP errors limited in rate.
    if !maps::is_within(Rate::IcmpErrors) {
        return None;
    }
    let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
    packet.move_front(-(grown as i32))?;
    refusal::icmp_error(packet, ip, grown, error)
}
