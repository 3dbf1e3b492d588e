//! The L4 header of a packet to or from a service, or the tail call to the program that handles a packet
//! without one.

use nlb_common::icmp;
use nlb_common::parse::{Ip, Segment};
use nlb_common::verdict::{DropReason, Program, Verdict};

use crate::ipv6_ext;
use crate::packet::Packet;

/// The TCP or UDP header. Fragments and ICMP go to other programs by tail call.
#[inline(always)]
pub fn segment<const FIRST_FRAGMENT: bool>(packet: &Packet, ip: &Ip) -> Result<Segment, Verdict> {
    const FRAGMENT: Verdict = Verdict::TailCall(Program::Fragments);
    if FIRST_FRAGMENT {
        return ipv6_ext::segment(packet, ip);
    }
    if ip.is_fragment() {
        return Err(FRAGMENT);
    }
    match ipv6_ext::segment(packet, ip) {
        Ok(segment) if segment.more_fragments => Err(FRAGMENT),
        Err(Verdict::Drop(DropReason::Fragment)) => Err(FRAGMENT),
        Err(_) if icmp::is_icmp(ip) => Err(Verdict::TailCall(Program::Icmp)),
        found => found,
    }
}
