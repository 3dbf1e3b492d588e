//! The program for ICMP errors: an error goes to the end of the flow that sent the quoted packet.

use nlb_common::abi::{Address, Backend};
use nlb_common::flow::Direction;
use nlb_common::icmp::{self, Quote};
use nlb_common::parse::{self, Ip};
use nlb_common::rewrite::Tuple;
use nlb_common::verdict::{DropReason, Outcome, PassReason, SendReason, Verdict};

use crate::forward::ForwardingDecision;
use crate::maps::{self, AddressInfo, Rate};
use crate::packet::Packet;
use crate::record::{self, NatTuple};
use crate::{flow, forward, next_hop, punt, reply, settings, steer};

#[inline(always)]
pub fn forward(packet: &mut Packet) -> Outcome {
    let ip = parse::ip(packet)?;
    let (dst, transparent) = maps::address(ip.dst);
    // The packet goes on: a flow may have the port of GUE, and the kernel tunnels of its own.
    if icmp::is_about_tunnel(packet, &ip, settings::gue_port())
        && steer::is_accepted(packet)
        && maps::is_within(Rate::TunnelErrors)
    {
        punt::to_be_read(packet);
    }
    let Some(quote) = icmp::quote(packet, &ip) else {
        return Ok(Verdict::Pass(if dst.is(Address::VIP) {
            PassReason::Protocol
        } else {
            unclaimed(&ip, &dst)
        }));
    };
    if dst.is(Address::SOURCE) {
        match to_client(packet, &ip, &quote, dst.id, Direction::Reply) {
            // The address may also be a VIP.
            Err(reply::NOT_A_REPLY) => {}
            outcome => return outcome,
        }
    }
    if dst.is(Address::VIP)
        && let (client, segment) = quote.reversed(&ip)
        && let Some(decision) = flow::peek(&client, &segment, &dst)
    {
        return to_backend(packet, &ip, &quote, &decision);
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

/// Why ICMP that is about no flow is passed to the kernel.
#[inline(always)]
fn unclaimed(ip: &Ip, dst: &AddressInfo) -> PassReason {
    if dst.is(Address::VIP | Address::SOURCE) || maps::address(ip.src).0.is(Address::BACKEND) {
        PassReason::NoFlow
    } else {
        PassReason::NotOurs
    }
}

/// The verdict on an error that is longer than the MTU: no error answers another (RFC 1122 section 3.2.2).
const TOO_BIG: Verdict = Verdict::Drop(DropReason::TooBig);

#[inline(always)]
fn to_backend(packet: &mut Packet, ip: &Ip, quote: &Quote, decision: &ForwardingDecision) -> Outcome {
    ip.check_ttl()?;
    let backend = decision.backend;
    match forward::check_reachable(packet, ip, backend) {
        Err(Verdict::TailCall(_)) => return Ok(TOO_BIG),
        reachable => reachable?,
    }
    if backend.mode == Backend::NAT {
        let (client, segment) = quote.reversed(ip);
        let tuple =
            NatTuple::new(backend, client.src, segment.sport, segment.dport, segment.l4, decision.hash);
        // With SNAT the source of errors is translated as well, whichever router sent them: the backend's
        // answers come back only through our address.
        let src = if tuple.snat != 0 { tuple.addr } else { ip.src };
        let inner = Tuple {
            src: backend.addr,
            dst: tuple.addr,
            sport: tuple.backend_port,
            dport: decision.translated_port(segment.sport),
        };
        icmp::translate(packet, ip, quote, (src, backend.addr), &inner).ok_or(Verdict::INTERNAL)?;
        return forward::send(packet, &backend.hop, SendReason::IcmpError);
    }
    forward::send_untranslated(
        packet,
        ip,
        (decision.backend_id, backend),
        decision.hash,
        SendReason::IcmpError,
    )
}

/// An error about a packet to a NAT backend, from the backend or from a router on the path.
#[inline(always)]
fn to_client(packet: &mut Packet, ip: &Ip, quote: &Quote, local: u16, direction: Direction) -> Outcome {
    let (answered, segment) = quote.reversed(ip);
    let found = reply::find_flow((answered.src, answered.dst), &segment, local, direction)?;
    let flow = found.flow;
    ip.check_ttl()?;
    let vip = maps::vip(flow.local()).ok_or(Verdict::INTERNAL)?;
    let hop = match next_hop::find(packet, vip, flow.remote(), ip.total_len()) {
        Err(Verdict::TailCall(_)) => return Ok(TOO_BIG),
        hop => hop?,
    };
    next_hop::check_loop(packet, &hop)?;
    let inner = Tuple { src: flow.remote(), dst: vip, sport: flow.remote_port(), dport: flow.local_port() };
    icmp::translate(packet, ip, quote, (vip, flow.remote()), &inner).ok_or(Verdict::INTERNAL)?;
    forward::send(packet, &hop, SendReason::IcmpError)
}
