//! The program for services that select backends by QUIC's connection ids: it steers packets as the balancer
//! does, but to the backend that the id names, if there is one.

use nlb_common::abi::Address;
use nlb_common::parse;
use nlb_common::verdict::{Outcome, PassReason, Verdict};

use crate::packet::Packet;
use crate::{ipv6_ext, maps, steer};

/// Sends a client's packet to the backend of its connection.
#[inline(always)]
pub fn forward(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    let segment = ipv6_ext::segment(packet, &ip)?;
    let (vip, _) = maps::address(ip.dst);
    if !vip.is(Address::VIP) {
        // The VIP was removed since the tail call.
        return Ok(Verdict::Pass(PassReason::NotOurs));
    }
    let service = maps::service_id(&vip, segment.dport, segment.l4);
    if service == 0 {
        // The service was removed since the tail call.
        return Ok(steer::to_closed_port(&ip, &segment, &vip));
    }
    steer::to_service::<false, true>(packet, &ip, &segment, &vip, service)
}
