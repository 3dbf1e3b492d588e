//! The program for ICMP errors: they go where the packets of the flow go that they are about.

use nlb_common::abi::{Address, Backend};
use nlb_common::flow::{Direction, Key};
use nlb_common::icmp::{self, Quote};
use nlb_common::parse::{self, Ip};
use nlb_common::rewrite::Tuple;
use nlb_common::verdict::{DropReason, PassReason, SendReason, Verdict};
use nlb_common::{hash, maglev};

use crate::maps::{self, Known};
use crate::packet::Packet;
use crate::record::{self, Facing};
use crate::{flow, forward, next_hop, reply};

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    let (dst, transparent) = maps::address(ip.dst);
    let Some(quote) = icmp::quote(packet, &ip) else {
        return Ok(Verdict::Pass(if dst.is(Address::VIP) {
            PassReason::Protocol
        } else {
            unclaimed(&ip, &dst)
        }));
    };
    if dst.is(Address::VIP)
        && let Some(way) = way_of(&ip, &quote, &dst)
    {
        return to_backend(packet, &ip, &quote, &way);
    }
    if dst.is(Address::SOURCE) {
        return to_client(packet, &ip, &quote, dst.id, Direction::Reply);
    }
    if transparent && maps::address(quote.dst).0.is(Address::BACKEND) {
        return to_client(
            packet,
            &ip,
            &quote,
            record::transparent_local(ip.dst),
            Direction::TransparentReply,
        );
    }
    Ok(Verdict::Pass(unclaimed(&ip, &dst)))
}

/// Why ICMP that is about no flow is left to the kernel.
#[inline(always)]
fn unclaimed(ip: &Ip, dst: &Known) -> PassReason {
    if dst.is(Address::VIP | Address::SOURCE) || maps::address(ip.src).0.is(Address::BACKEND) {
        PassReason::NoFlow
    } else {
        PassReason::NotOurs
    }
}

/// The verdict on an error that is too long for its way: one is never answered by another (RFC 1122 section 3.2.2).
const TOO_BIG: Verdict = Verdict::Drop(DropReason::TooBig);

/// Where the flow goes that an error to a VIP is about.
struct Way {
    backend_id: u16,
    backend: &'static Backend,
    shown_port: nlb_common::net::Be16,
    hash: u64,
}

/// As it is on record; else, without translation, by hash, as for the middle of a connection.
#[inline(always)]
fn way_of(ip: &Ip, quote: &Quote, vip: &Known) -> Option<Way> {
    let (client, segment) = quote.answered(ip);
    let hash = hash::flow(client.src, client.dst, segment.sport, segment.dport, segment.l4 as u8);
    let key = Key::new(client.src, segment.sport, segment.dport, vip.id, segment.l4, Direction::Forward);
    if let Some((_, state)) = maps::flows(maps::flow_bucket(hash))?.find(&key)
        && let Some(backend) = maps::backend(state.backend())
        && backend.generation == state.generation()
    {
        return Some(Way { backend_id: state.backend(), backend, shown_port: state.shown_port(&key), hash });
    }
    let service_id = maps::service_id(vip, segment.dport, segment.l4);
    let pool = flow::pool(service_id, maps::service(service_id)?, client.src);
    let backend_id = maps::maglev(pool, maglev::slot(hash));
    let backend = maps::backend(backend_id)?;
    (service_id != 0 && backend.mode != Backend::NAT).then_some(Way {
        backend_id,
        backend,
        shown_port: segment.sport,
        hash,
    })
}

#[inline(always)]
fn to_backend(packet: &mut Packet, ip: &Ip, quote: &Quote, way: &Way) -> Result<Verdict, Verdict> {
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    let backend = way.backend;
    match forward::reachable(packet, ip, backend) {
        Err(Verdict::GoOn(_)) => return Ok(TOO_BIG),
        reachable => reachable?,
    }
    if backend.mode == Backend::NAT {
        let (client, segment) = quote.answered(ip);
        let facing = Facing::new(backend, client.src, segment.sport, segment.dport, segment.l4, way.hash);
        // Who hides clients hides routers on their way too: nothing else comes back through us.
        let src = if facing.hidden != 0 { facing.addr } else { ip.src };
        let inner =
            Tuple { src: backend.addr, dst: facing.addr, sport: facing.backend_port, dport: way.shown_port };
        icmp::translate(packet, ip, quote, (src, backend.addr), &inner).ok_or(Verdict::INTERNAL)?;
        return forward::send(packet, &backend.hop, SendReason::IcmpError);
    }
    forward::send_untranslated(packet, ip, (way.backend_id, backend), way.hash, SendReason::IcmpError)
}

/// An error about a packet that we sent to a NAT backend, from the backend or from a router on the way.
#[inline(always)]
fn to_client(
    packet: &mut Packet,
    ip: &Ip,
    quote: &Quote,
    local: u16,
    direction: Direction,
) -> Result<Verdict, Verdict> {
    let (answered, segment) = quote.answered(ip);
    let found = reply::flow_answered_by(&answered, &segment, local, direction)?;
    let flow = found.flow;
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    let vip = maps::vip(flow.local()).ok_or(Verdict::INTERNAL)?;
    let hop = match next_hop::towards(packet, vip, flow.remote(), forward::bytes(ip)) {
        Err(Verdict::GoOn(_)) => return Ok(TOO_BIG),
        hop => hop?,
    };
    if forward::came_back(packet, &hop) {
        return Ok(Verdict::Drop(DropReason::Loop));
    }
    let inner = Tuple { src: flow.remote(), dst: vip, sport: flow.remote_port(), dport: flow.local_port() };
    icmp::translate(packet, ip, quote, (vip, flow.remote()), &inner).ok_or(Verdict::INTERNAL)?;
    forward::send(packet, &hop, SendReason::IcmpError)
}
