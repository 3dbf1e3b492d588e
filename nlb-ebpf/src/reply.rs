//! The way back: a backend's packet, the flow that it answers, and the client.

use nlb_common::abi::Backend;
use nlb_common::flow::{self, Direction, Entry, Key, State};
use nlb_common::hash;
use nlb_common::parse::{Ip, Segment, TcpFlags};
use nlb_common::rewrite::Tuple;
use nlb_common::verdict::{Outcome, PassReason, SendReason, Verdict};

use crate::forward::{send, translate};
use crate::packet::Packet;
use crate::segment::segment;
use crate::{clock, fragment_cache, maps, next_hop};

/// A packet that may be a backend's reply: from the address and port that a flow was sent to, back to where it seemed to
/// come from.
#[inline(always)]
pub fn from_backend<const FIRST: bool>(
    packet: &mut Packet,
    ip: &Ip,
    local: u16,
    direction: Direction,
) -> Outcome {
    // What is not sound TCP or UDP is not for us to judge here: the packet may be the host's own.
    let segment = match segment::<FIRST>(packet, ip) {
        Ok(segment) => segment,
        Err(Verdict::TailCall(program)) => return Ok(Verdict::TailCall(program)),
        Err(_) => return Ok(NOT_A_REPLY),
    };
    let found = find_flow(ip, &segment, local, direction)?;
    let (flow, state) = (found.flow, found.state);
    ip.check_ttl()?;
    let vip = maps::vip(flow.local()).ok_or(Verdict::INTERNAL)?;
    let hop = next_hop::find(packet, vip, flow.remote(), ip.total_len())?;
    next_hop::check_loop(packet, &hop)?;

    touch_entries(&found, &segment);
    maps::count_reply(state.backend(), ip.total_len(), segment.flags.has(TcpFlags::RST));
    if FIRST && let Some(backend) = maps::backend(state.backend()) {
        fragment_cache::remember(state.backend(), backend, 0, true, (vip, flow.remote()), 0);
    }
    let to = Tuple { src: vip, dst: flow.remote(), sport: flow.local_port(), dport: flow.remote_port() };
    translate(packet, ip, &segment, &to)?;
    send(packet, &hop, SendReason::Reply)
}

const NOT_A_REPLY: Verdict = Verdict::Pass(PassReason::NoFlow);

/// A flow, and its two entries.
pub struct ReplyFlow {
    pub flow: Key,
    pub state: State,
    entry: &'static Entry,
    reply: State,
    reply_entry: &'static Entry,
}

/// The flow of which a backend's packet, with these addresses and ports, is a part.
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

/// Whether the flow that a reply entry leads to is the one that this packet answers.
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

/// Keeps both entries of a flow alive, and notes what the backend's packet says of the connection.
#[inline(always)]
fn touch_entries(found: &ReplyFlow, segment: &Segment) {
    let now = clock::now();
    let phase = flow::next_phase(found.state.phase(), segment.flags, false);
    found.entry.touch(found.state, phase, now);
    found.reply_entry.touch(found.reply, phase, now);
}
