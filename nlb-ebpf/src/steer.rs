//! The dispatch of packets: whose is it, and which of the files beside this one has it next.

use nlb_common::abi::{Address, Service};
use nlb_common::flow::Direction;
use nlb_common::frame::Frame;
use nlb_common::icmp;
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::protocol::ETH_LEN;
use nlb_common::verdict::{DropReason, Outcome, PassReason, Program, Verdict};

use crate::flow::{self, find_or_create};
use crate::forward::send_to_backend;
use crate::maps::{self, AddressInfo};
use crate::packet::Packet;
use crate::record::transparent_local;
use crate::reply::from_backend;
use crate::segment::segment;
use crate::{next_hop, upcall};

#[inline(always)]
pub fn steer(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    steer_ip::<false>(packet, &ip)
}

/// `FIRST` is the program for fragments, on a first one: where it goes is remembered for the others.
#[inline(always)]
pub fn steer_ip<const FIRST: bool>(packet: &mut Packet, ip: &Ip) -> Outcome {
    let (dst, transparent) = maps::address(ip.dst);
    if (dst.is(Address::ANY) || transparent) && is_of_local_vlan(packet, ip) {
        return Ok(next_hop::LOCAL);
    }
    if dst.is(Address::VIP) {
        let segment = segment::<FIRST>(packet, ip)?;
        let service = maps::service_id(&dst, segment.dport, segment.l4);
        if service != 0 {
            return to_service::<FIRST, false>(packet, ip, &segment, &dst, service);
        }
        if !dst.is(Address::SOURCE) {
            return Ok(to_closed_port(ip, &segment, &dst));
        }
    }
    let (local, direction) = if dst.is(Address::SOURCE) {
        (dst.id, Direction::Reply)
    } else if transparent && icmp::is_icmp(ip) {
        // It may come from a router, and be about a packet to a backend that knows its client.
        return Ok(Verdict::TailCall(Program::Icmp));
    } else if transparent && maps::address(ip.src).0.is(Address::BACKEND) {
        (transparent_local(ip.dst), Direction::TransparentReply)
    } else {
        return Ok(Verdict::Pass(PassReason::NotOurs));
    };
    from_backend::<FIRST>(packet, ip, local, direction)
}

#[inline(always)]
pub fn to_closed_port(ip: &Ip, segment: &Segment, vip: &AddressInfo) -> Verdict {
    if vip.is(Address::UPCALL) && upcall::is_pending(ip, vip.id, segment) {
        Verdict::Drop(DropReason::UpcallPending)
    } else {
        flow::closed_port(vip)
    }
}

/// Whether the frame has the tag of a VLAN for which this host has a device. The stack takes such tags off, and puts on what
/// belongs where the packet goes; others are kept. At the door there are none left.
#[inline(always)]
fn is_of_local_vlan(packet: &Packet, ip: &Ip) -> bool {
    if packet.is_skb() || ip.l3 == ETH_LEN {
        return false;
    }
    let Some(tag) = packet.read::<u16>(ETH_LEN) else { return false };
    maps::is_local_vlan(packet.ingress(), u16::from_be(tag) & 0xfff)
}

/// `QUIC` is the program for services that go by connection ids.
#[inline(always)]
pub fn to_service<const FIRST: bool, const QUIC: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    vip: &AddressInfo,
    service: u16,
) -> Outcome {
    ip.check_ttl()?;
    match find_or_create::<FIRST, QUIC>(packet, ip, segment, vip, service) {
        Ok(decision) => send_to_backend::<FIRST>(packet, ip, segment, service, &decision),
        Err(Verdict::Drop(DropReason::NoBackend)) if rejects(service) => {
            Ok(Verdict::TailCall(Program::Reject))
        }
        Err(verdict) => Ok(verdict),
    }
}

#[inline(always)]
fn rejects(service: u16) -> bool {
    maps::service(service).is_some_and(|service| service.flags & Service::REJECT != 0)
}
