//! The dispatch of packets: by its destination address a packet goes to a service, to the client of a
//! backend's flow, to another program, or to the kernel.

use nlb_common::abi::{Address, Service};
use nlb_common::flow::Direction;
use nlb_common::frame::Frame;
use nlb_common::icmp;
use nlb_common::parse::{self, Ip, Segment};
use nlb_common::protocol::ETH_LEN;
use nlb_common::rewrite;
use nlb_common::verdict::{DropReason, Outcome, PassReason, Program, Verdict};

use crate::flow::{self, find_or_create};
use crate::forward::{check_ttl, send_to_backend};
use crate::maps::{self, AddressInfo};
use crate::packet::Packet;
use crate::record::transparent_local;
use crate::reply::{self, from_backend};
use crate::segment::segment;
use crate::tail_call::{self, Refusal};
use crate::{next_hop, upcall};

#[inline(always)]
pub fn steer(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    steer_ip::<false>(packet, &ip)
}

/// Steers a packet with this IP header. `FIRST_FRAGMENT` is true for a first fragment, whose path is stored
/// for the other fragments; the program for fragments calls this for it.
#[inline(always)]
pub fn steer_ip<const FIRST_FRAGMENT: bool>(packet: &mut Packet, ip: &Ip) -> Outcome {
    let (dst, transparent) = maps::address(ip.dst);
    if dst.is(Address::ANY) || transparent {
        if is_of_local_vlan(packet, ip) {
            return Ok(next_hop::LOCAL);
        }
        if !is_accepted(packet) {
            return Ok(Verdict::Pass(PassReason::OtherHost));
        }
    }
    if dst.is(Address::VIP) {
        let segment = segment::<FIRST_FRAGMENT>(packet, ip)?;
        let service = maps::service_id(&dst, segment.dport, segment.l4);
        if service != 0 && !is_reply_to_vip(ip, &segment, &dst, service) {
            return to_service::<FIRST_FRAGMENT, false>(packet, ip, &segment, &dst, service);
        }
        if service == 0 && !dst.is(Address::SOURCE) {
            return Ok(to_closed_port(ip, &segment, &dst));
        }
    }
    let (local, direction) = if dst.is(Address::SOURCE) {
        (dst.id, Direction::Reply)
    } else if icmp::is_icmp(ip) {
        // A router may have sent this packet, as an error about a tunnel packet, or about a packet to a
        // backend that sees its client's address.
        return Ok(Verdict::TailCall(Program::Icmp));
    } else if transparent && maps::address(ip.src).0.is(Address::BACKEND) {
        (transparent_local(ip.dst), Direction::TransparentReply)
    } else {
        return Ok(Verdict::Pass(PassReason::NotOurs));
    };
    from_backend::<FIRST_FRAGMENT>(packet, ip, local, direction)
}

/// Whether a packet to a service is in fact a backend's reply to a VIP that is also our source address. SNAT
/// uses no port that has a service of its own, but any other port of a service for every port.
#[inline(always)]
fn is_reply_to_vip(ip: &Ip, segment: &Segment, vip: &AddressInfo, service: u16) -> bool {
    vip.is(Address::SOURCE) && vip.any_port(segment.l4) == service && reply::is_to_vip(ip, segment, vip)
}

#[inline(always)]
pub fn to_closed_port(ip: &Ip, segment: &Segment, vip: &AddressInfo) -> Verdict {
    if vip.is(Address::UPCALL) && upcall::is_pending(ip, vip.id, segment) {
        Verdict::Drop(DropReason::UpcallPending)
    } else {
        flow::closed_port(vip)
    }
}

/// Whether the frame has the tag of a VLAN for which this host has a device. The stack removes such a tag,
/// and adds the one of the link where the packet goes; other tags are kept. At TC ingress no frame has such a
/// tag.
#[inline(always)]
fn is_of_local_vlan(packet: &Packet, ip: &Ip) -> bool {
    if packet.is_skb() || ip.l3 == ETH_LEN {
        return false;
    }
    let Some(tag) = packet.read::<u16>(ETH_LEN) else { return false };
    maps::is_local_vlan(packet.ingress(), u16::from_be(tag) & 0xfff)
}

/// Whether the interface accepts the frame's destination MAC address (IEEE 802.3). The kernel has compared it
/// with the link's own address before TC ingress; XDP sees every frame that the driver lets through, on a
/// switch that floods also those to other hosts.
#[inline(always)]
pub fn is_accepted(packet: &Packet) -> bool {
    if !packet.may_be_to_other_host() {
        return true;
    }
    rewrite::destination_mac(packet).is_some_and(|mac| maps::accepts_mac(mac, || packet.ingress()))
}

/// Sends a client's packet to a backend of its service. `BY_CONNECTION_ID` is true in the program for
/// services that select backends by connection ids.
#[inline(always)]
pub fn to_service<const FIRST_FRAGMENT: bool, const BY_CONNECTION_ID: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    vip: &AddressInfo,
    service: u16,
) -> Outcome {
    check_ttl(packet, ip)?;
    match find_or_create::<FIRST_FRAGMENT, BY_CONNECTION_ID>(packet, ip, segment, vip, service) {
        Ok(decision) => send_to_backend::<FIRST_FRAGMENT>(packet, ip, segment, service, &decision),
        Err(Verdict::Drop(DropReason::NoBackend)) if rejects(service) => {
            Ok(tail_call::to_reject(Refusal::NoBackend))
        }
        Err(Verdict::Drop(DropReason::Full)) if rejects(service) => Ok(tail_call::to_reject(Refusal::Full)),
        Err(verdict) => Ok(verdict),
    }
}

#[inline(always)]
fn rejects(service: u16) -> bool {
    maps::service(service).is_some_and(|service| service.flags & Service::REJECT != 0)
}
