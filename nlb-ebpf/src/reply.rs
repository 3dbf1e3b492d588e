//! Replies: the flow of a backend's packet, its translation back, and the client's next hop.

use nlb_common::abi::{Backend, FragmentEntry};
use nlb_common::flow::{self, Direction, Entry, Key, State};
use nlb_common::hash;
use nlb_common::net::Addr;
use nlb_common::parse::{Ip, Segment, TcpFlags};
use nlb_common::rewrite::Tuple;
use nlb_common::verdict::{Outcome, PassReason, SendReason, Verdict};

use crate::forward::{check_ttl, send, translate};
use crate::maps::AddressInfo;
use crate::packet::Packet;
use crate::segment::segment;
use crate::{arguments, capacity, clock, fragment_cache, maps, next_hop, settings};

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
    let found = find_flow((ip.src, ip.dst), &segment, local, direction)?;
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

pub const NOT_A_REPLY: Verdict = Verdict::Pass(PassReason::NoFlow);

/// A flow with its forward and its reply entry.
pub struct ReplyFlow {
    pub flow: Key,
    pub state: State,
    entry: &'static Entry,
    reply: State,
    reply_entry: &'static Entry,
}

/// The flow that a backend's packet with these addresses, from its source to its destination, and ports
/// belongs to.
#[inline(always)]
pub fn find_flow(
    (src, dst): (Addr, Addr),
    segment: &Segment,
    local: u16,
    direction: Direction,
) -> Result<ReplyFlow, Verdict> {
    let key = Key::new(src, segment.sport, segment.dport, local, segment.l4, direction);
    let hash = hash::flow(src, dst, segment.sport, segment.dport, segment.l4 as u8);
    let bucket = maps::flows(maps::flow_bucket(hash)).ok_or(Verdict::INTERNAL)?;
    let (way, reply) = bucket.find(&key).ok_or(NOT_A_REPLY)?;

    let entry = maps::flow_at(reply.place()).ok_or(Verdict::INTERNAL)?;
    let (flow, state) = entry.snapshot().ok_or(NOT_A_REPLY)?;
    let backend = maps::backend_of(state.backend(), state.generation()).ok_or(NOT_A_REPLY)?;
    if !matches_reply((src, dst), segment, &flow, state, backend, direction) {
        return Err(NOT_A_REPLY);
    }
    Ok(ReplyFlow { flow, state, entry, reply, reply_entry: &bucket.entries[way & 3] })
}

/// Whether this packet is a reply of the flow that the reply entry points to.
#[inline(always)]
fn matches_reply(
    (src, dst): (Addr, Addr),
    segment: &Segment,
    flow: &Key,
    state: State,
    backend: &Backend,
    direction: Direction,
) -> bool {
    flow.is_forward()
        && flow.protocol() == segment.l4 as u8
        && backend.addr == src
        && backend.port_for(flow.local_port()) == segment.sport
        && state.translated_port(flow) == segment.dport
        && (matches!(direction, Direction::Reply) || flow.remote() == dst)
}

/// Whether a packet to a VIP is the reply of a flow whose translated source is that VIP. Only a port of the
/// range for SNAT can have one.
#[inline(always)]
pub fn is_to_vip(ip: &Ip, segment: &Segment, vip: &AddressInfo) -> bool {
    nlb_is_reply(ip.src.hi, ip.src.lo, arguments::ports(segment), arguments::vip(vip.id, segment.l4)) != 0
}

/// Out of line for the reasons that `record` gives.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_is_reply(hi: u64, lo: u64, ports: u32, vip: u32) -> u32 {
    let ((id, l4), (sport, dport)) = (arguments::from_vip(vip), arguments::from_ports(ports));
    let segment = Segment { l4, offset: 0, sport, dport, flags: TcpFlags::default(), more_fragments: false };
    let (first, count) = settings::snat_ports();
    if dport.get().wrapping_sub(first) >= count {
        return 0;
    }
    let Some(vip) = maps::vip(id) else { return 0 };
    find_flow((Addr { hi, lo }, vip), &segment, id, Direction::Reply).is_ok() as u32
}

/// Refreshes both entries of a flow, and updates its phase by the backend's packet.
#[inline(always)]
fn touch_entries(found: &ReplyFlow, segment: &Segment) {
    let now = clock::now();
    let phase = flow::next_phase(found.state.phase(), segment.flags, false);
    found.reply_entry.touch(found.reply, phase & !flow::phase::COUNTED, now);
    if found.entry.touch(found.state, phase, now) {
        capacity::remove_closed(found.state);
    }
}
