//! Replies: the flow of a backend's packet, its translation back, and the client's next hop.

use nlb_common::abi::{Backend, FragmentEntry};
use nlb_common::flow::{self, Direction, Entry, Key, State};
use nlb_common::hash;
use nlb_common::parse::{Ip, Segment, TcpFlags};
use nlb_common::rewrite::Tuple;
use nlb_common::verdict::{Outcome, PassReason, SendReason, Verdict};

use crate::forward::{check_ttl, send, translate};
use crate::packet::Packet;
use crate::segment::segment;
use crate::{clock, fragment_cache, maps, next_hop};

/// Forwards a backend's packet to the client, if it is the reply of a recorded flow.
#[inline(always)]
pub fn from_backend<const FIRST_FRAGMENT: bool>(
    packet: &mut Packet,
    ip: &Ip,
    local: u16,
    direction: Direction,
) -> Outcome {
    // A malformed packet may be for the host itself, so the kernel's stack gets it.
    let segment = match segment::<FIRST_FRAGMENT>(packet, ip) {
        Ok(segment) => segment,
        Err(Verdict::TailCall(program)) => return Ok(Verdict::TailCall(program)),
        Err(_) => return Ok(NOT_A_REPLY),
    };
    let found = find_flow(ip, &segment, local, direction)?;
    let (flow, state) = (found.flow, found.state);
    check_ttl(packet, ip)?;
    let vip = maps::vip(flow.local()).ok_or(Verdict::INTERNAL)?;
    let hop = next_hop::find(packet, vip, flow.remote(), packet.longest(ip))?;
    next_hop::check_loop(packet, &hop)?;

    touch_entries(&found, &segment);
    maps::count_reply(state.backend(), ip.total_len(), segment.flags.has(TcpFlags::RST));
    if FIRST_FRAGMENT && let Some(backend) = maps::backend(state.backend()) {
        let path = FragmentEntry::TO_CLIENT;
        fragment_cache::remember(state.backend(), backend, 0, path, (vip, flow.remote()), 0);
    }
    let to = Tuple { src: vip, dst: flow.remote(), sport: flow.local_port(), dport: flow.remote_port() };
    translate(packet, ip, &segment, &to)?;
    send(packet, &hop, SendReason::Reply)
}

const NOT_A_REPLY: Verdict = Verdict::Pass(PassReason::NoFlow);

/// A flow with its forward and its reply entry.
pub struct ReplyFlow {
    pub flow: Key,
    pub state: State,
    entry: &'static Entry,
    reply: State,
    reply_entry: &'static Entry,
}

/// The flow that a backend's packet with these addresses and ports belongs to.
#[inline(always)]
pub fn find_flow(ip: &Ip, segment: &Segment, local: u16, direction: Direction) -> Result<ReplyFlow, Verdict> {
    let key = Key::new(ip.src, segment.sport, segment.dport, local, segment.l4, direction);
    let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
    let bucket = maps::flows(maps::flow_bucket(hash)).ok_or(Verdict::INTERNAL)?;
    let (way, reply) = bucket.find(&key).ok_or(NOT_A_REPLY)?;

    let entry = maps::flow_at(reply.place()).ok_or(Verdict::INTERNAL)?;
    let (flow, state) = entry.snapshot().ok_or(NOT_A_REPLY)?;
    let backend = maps::backend_of(state.backend(), state.generation()).ok_or(NOT_A_REPLY)?;
    if !matches_reply(ip, segment, &flow, state, backend, direction) {
        return Err(NOT_A_REPLY);
    }
    Ok(ReplyFlow { flow, state, entry, reply, reply_entry: &bucket.entries[way & 3] })
}

/// Whether this packet is a reply of the flow that the reply entry points to.
#[inline(always)]
fn matches_reply(
    ip: &Ip,
    segment: &Segment,
    flow: &Key,
    state: State,
    backend: &Backend,
    direction: Direction,
) -> bool {
    flow.is_forward()
        && flow.protocol() == segment.l4 as u8
        && backend.addr == ip.src
        && backend.port_for(flow.local_port()) == segment.sport
        && state.translated_port(flow) == segment.dport
        && (matches!(direction, Direction::Reply) || flow.remote() == ip.dst)
}

/// Refreshes both entries of a flow, and updates its phase by the backend's packet.
#[inline(always)]
fn touch_entries(found: &ReplyFlow, segment: &Segment) {
    let now = clock::now();
    let phase = flow::next_phase(found.state.phase(), segment.flags, false);
    found.entry.touch(found.state, phase, now);
    found.reply_entry.touch(found.reply, phase, now);
}
