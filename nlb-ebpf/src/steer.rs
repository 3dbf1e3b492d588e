//! The packet's way: whose is it, which flow is it part of, where does that flow go.

use nlb_common::abi::{Address, Backend, NextHop, Service};
use nlb_common::flow::{self, Direction, Entry, Key, State};
use nlb_common::frame::Frame;
use nlb_common::icmp;
use nlb_common::net::{Addr, Be16, L4, Mac};
use nlb_common::parse::{self, Ip, Segment, TcpFlags};
use nlb_common::rewrite::{self, Outer, Tuple};
use nlb_common::verdict::{DropReason, PassReason, SendReason, Stage, UNRECORDED_COUNTER, Verdict};
use nlb_common::{hash, maglev};

use crate::maps::{self, Known};
use crate::packet::{Packet, bounded};
use crate::programs::{fragments, gue, quic};
use crate::record::{self, Facing, NO_PORT, nlb_find_port, nlb_record};
use crate::{ipv6_ext, next_hop, rate_limit, upcall};

pub const INTERNAL: Verdict = Verdict::Drop(DropReason::Internal);

#[inline(always)]
pub fn steer(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    steer_ip::<false>(packet, &ip)
}

/// `FIRST` is the program for fragments, on a first one: which way it goes is remembered for the others.
#[inline(always)]
pub fn steer_ip<const FIRST: bool>(packet: &mut Packet, ip: &Ip) -> Result<Verdict, Verdict> {
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
        return Ok(Verdict::GoOn(Stage::Icmp));
    } else if transparent && maps::address(ip.src).0.is(Address::BACKEND) {
        (record::transparent_local(ip.dst), Direction::TransparentReply)
    } else {
        return Ok(Verdict::Pass(PassReason::NotOurs));
    };
    from_backend::<FIRST>(packet, ip, local, direction)
}

#[inline(always)]
pub fn to_closed_port(ip: &Ip, segment: &Segment, vip: &Known) -> Verdict {
    if vip.is(Address::ASK) && upcall::is_open(ip, vip.id, segment) {
        Verdict::Drop(DropReason::Asking)
    } else if vip.is(Address::DROP_CLOSED) {
        Verdict::Drop(DropReason::ClosedPort)
    } else {
        Verdict::Pass(PassReason::ClosedPort)
    }
}

/// Whether the frame has the tag of a VLAN for which this host has a device. The stack takes such tags off, and puts on what
/// belongs where the packet goes; others are kept. At the door there are none left.
#[inline(always)]
fn is_of_local_vlan(packet: &Packet, ip: &Ip) -> bool {
    const UNTAGGED: usize = 14;
    if packet.is_skb() || ip.l3 == UNTAGGED {
        return false;
    }
    let Some(tag) = packet.read::<u16>(UNTAGGED) else { return false };
    maps::is_local_vlan(packet.ingress(), u16::from_be(tag) & 0xfff)
}

/// `QUIC` is the program for services that go by connection ids.
#[inline(always)]
pub fn to_service<const FIRST: bool, const QUIC: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    vip: &Known,
    service: u16,
) -> Result<Verdict, Verdict> {
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    match flow_of::<FIRST, QUIC>(packet, ip, segment, vip, service) {
        Ok(way) => send_to_backend::<FIRST>(packet, ip, segment, service, &way),
        Err(Verdict::Drop(DropReason::NoBackend)) if rejects(service) => Ok(Verdict::GoOn(Stage::Reject)),
        Err(verdict) => Ok(verdict),
    }
}

/// The segment of a packet that is ours. Fragments and ICMP are other programs' business.
#[inline(always)]
fn segment<const FIRST: bool>(packet: &Packet, ip: &Ip) -> Result<Segment, Verdict> {
    const FRAGMENT: Verdict = Verdict::GoOn(Stage::Fragments);
    if FIRST {
        return ipv6_ext::segment(packet, ip);
    }
    if ip.is_fragment() {
        return Err(FRAGMENT);
    }
    match ipv6_ext::segment(packet, ip) {
        Ok(segment) if segment.more_fragments => Err(FRAGMENT),
        Err(Verdict::Drop(DropReason::Fragment)) => Err(FRAGMENT),
        Err(_) if icmp::is_icmp(ip) => Err(Verdict::GoOn(Stage::Icmp)),
        found => found,
    }
}

#[inline(always)]
fn rejects(service: u16) -> bool {
    maps::service(service).is_some_and(|service| service.flags & Service::REJECT != 0)
}

/// Where a flow goes.
struct Way {
    backend_id: u16,
    backend: &'static Backend,
    /// The port that a NAT backend sees instead of the client's; 0 keeps the client's.
    snat_port: Be16,
    hash: u64,
}

/// The backend of a packet's flow: the one that its connection id names; else the one on record if it still serves; else a
/// fresh choice. What is not on record is put there.
#[inline(always)]
fn flow_of<const FIRST: bool, const QUIC: bool>(
    packet: &Packet,
    ip: &Ip,
    segment: &Segment,
    vip: &Known,
    service_id: u16,
) -> Result<Way, Verdict> {
    let service = maps::service(service_id).ok_or(INTERNAL)?;
    let mut named = 0;
    if QUIC {
        named = quic::named(packet, ip, segment, service_id, service);
    } else if !FIRST && service.flags & Service::QUIC != 0 {
        // QUIC has no fragments (RFC 9000 section 14).
        return Err(Verdict::GoOn(Stage::Quic));
    }
    let now = maps::now();
    let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
    let key = Key::new(ip.src, segment.sport, segment.dport, vip.id, segment.l4, Direction::Forward);
    let index = maps::flow_bucket(hash);
    let bucket = maps::flows(index).ok_or(INTERNAL)?;

    if let Some((way, state)) = bucket.find(&key)
        && let Some(backend) = maps::backend(state.backend())
        && keeps(backend, state, segment, named)
    {
        reachable(packet, ip, backend)?;
        rate_limit::pass(service, backend, ip.src, bytes(ip), false)?;
        let phase = flow::next_phase(state.phase(), segment.flags, true);
        if backend.mode == Backend::NAT && state.seen() != now {
            let facing = facing(backend, ip, segment, hash);
            record_reply(&facing, state.shown_port(&key), maps::place(index, way), phase, now);
        }
        bucket.entries[way & 3].touch(state, phase, now);
        return Ok(Way { backend_id: state.backend(), backend, snat_port: state.snat_port(), hash });
    }

    let backend_id = choose(vip, service_id, service, ip, hash, named)?;
    let backend = maps::backend(backend_id).ok_or(Verdict::Drop(DropReason::NoBackend))?;
    reachable(packet, ip, backend)?;
    rate_limit::pass(service, backend, ip.src, bytes(ip), true)?;
    let new = NewFlow { backend, backend_id, key, bucket: index, hash, now };
    let snat_port = new.record(ip, segment)?;
    Ok(Way { backend_id, backend, snat_port, hash })
}

/// Whether a packet can go to its backend, asked before it leaves a trace: it waits where the way is not known, and goes no
/// further if it is our own, which came back, or longer than the way takes.
#[inline(always)]
pub fn reachable(packet: &Packet, ip: &Ip, backend: &Backend) -> Result<(), Verdict> {
    if !backend.has(Backend::RESOLVED) {
        return Err(next_hop::park(packet, backend.addr));
    }
    if backend.has(Backend::LOCAL) && !packet.is_skb() {
        return Err(next_hop::LOCAL);
    }
    if came_back(packet, &backend.hop) {
        return Err(Verdict::Drop(DropReason::Loop));
    }
    let grown = outer_len(backend);
    if packet.exceeds(backend.mtu) {
        return Err(Verdict::Drop(DropReason::TooBig));
    }
    if !packet.is_skb() && ip.end - ip.l3 + grown > backend.mtu as usize {
        return Err(maps::too_long((backend.mtu as u32).saturating_sub(grown as u32)));
    }
    Ok(())
}

/// Whether the packet is one that we sent on to this hop before.
#[inline(always)]
pub fn came_back(packet: &Packet, hop: &NextHop) -> bool {
    hop.src() != Mac::NONE && rewrite::source_mac(packet) == Some(hop.src())
}

/// Length of the IP packet.
#[inline(always)]
pub fn bytes(ip: &Ip) -> u32 {
    (ip.end - ip.l3) as u32
}

/// Whether a flow on record stays with its backend. One whose packet names a backend does with that one, drained or not: its
/// connection is there.
#[inline(always)]
fn keeps(backend: &Backend, state: State, segment: &Segment, named: u16) -> bool {
    if backend.generation != state.generation() {
        return false;
    }
    if named != 0 {
        return state.backend() == named;
    }
    let draining = backend.has(Backend::DRAINING);
    match segment.l4 {
        L4::Udp => !draining,
        // A retransmitted SYN stays where the first went; a new connection does not revive a closed or draining flow.
        L4::Tcp => !segment.flags.opens() || !draining && !state.is_closed(),
    }
}

/// The backend for a new flow, or for the middle of one that we have no record of: the one that it names, or by hash, so that
/// every node and every life of this one choose alike.
#[inline(always)]
fn choose(
    vip: &Known,
    service_id: u16,
    service: &Service,
    ip: &Ip,
    hash: u64,
    named: u16,
) -> Result<u16, Verdict> {
    let pool = pool(service_id, service, ip.src);
    if pool == 0 {
        // Its routes are for other sources, so to this client there is no service.
        return Err(if vip.is(Address::DROP_CLOSED) {
            Verdict::Drop(DropReason::ClosedPort)
        } else {
            Verdict::Pass(PassReason::ClosedPort)
        });
    }
    if named != 0 {
        return Ok(named);
    }
    match maps::maglev(pool, maglev::slot(hash)) {
        0 => Err(Verdict::Drop(DropReason::NoBackend)),
        backend => Ok(backend),
    }
}

/// The pool of a service for this client; 0 is none.
#[inline(always)]
pub fn pool(service_id: u16, service: &Service, client: Addr) -> u16 {
    if service.flags & Service::BY_SOURCE != 0
        && let Some(pool) = maps::longest_prefix(service_id, client)
    {
        return pool as u16;
    }
    service.pool
}

/// A flow that is to be put on record.
struct NewFlow {
    backend: &'static Backend,
    backend_id: u16,
    key: Key,
    bucket: u32,
    hash: u64,
    now: u16,
}

impl NewFlow {
    /// Puts the flow on record; the answer is its SNAT port.
    #[inline(always)]
    fn record(&self, ip: &Ip, segment: &Segment) -> Result<Be16, Verdict> {
        let phase = flow::first_phase(segment.l4, segment.flags);
        if self.backend.mode != Backend::NAT {
            if !self.record_if_there_is_room(phase) {
                maps::count(UNRECORDED_COUNTER);
            }
            return Ok(Be16::new(0));
        }
        let facing = facing(self.backend, ip, segment, self.hash);
        let found = nlb_find_port(&facing);
        if found == NO_PORT {
            return Err(Verdict::Drop(DropReason::SnatPorts));
        }
        let port = Be16::from_word(found as u16);
        // NAT cannot do without entries, so these displace others if they must.
        let way = self.entry(port, phase, true).ok_or(Verdict::Drop(DropReason::FlowTable))?;
        let shown = if port.is_zero() { segment.sport } else { port };
        if record_reply(&facing, shown, maps::place(self.bucket, way), phase, self.now) {
            Ok(port)
        } else {
            Err(Verdict::Drop(DropReason::FlowTable))
        }
    }

    /// Entries of a full bucket grow old with the clock's ticks, so each CPU looks for one to spare once a tick.
    #[inline(always)]
    fn record_if_there_is_room(&self, phase: u8) -> bool {
        const NOTED: u64 = 1 << 63;
        let full = NOTED | (self.bucket as u64) << 16 | self.now as u64;
        let Some(noted) = maps::full_bucket(self.bucket) else { return false };
        if *noted == full {
            return false;
        }
        let recorded = self.entry(Be16::new(0), phase, false).is_some();
        if !recorded {
            *noted = full;
        }
        recorded
    }

    /// The way of the flow's entry in its bucket.
    #[inline(always)]
    fn entry(&self, port: Be16, phase: u8, must: bool) -> Option<usize> {
        let state = State::forward(self.backend_id, port, self.backend.generation, phase, self.now);
        let way = nlb_record(&record::Entry { key: self.key, state, bucket: self.bucket, must: must as u32 });
        let way = (way as usize).checked_sub(1)?;
        // What is on record counts once; each packet of a flow that is not would count again.
        if let Some(stats) = maps::backend_stats(self.backend_id) {
            stats.new_flows += 1;
        }
        Some(way)
    }
}

#[inline(always)]
fn facing(backend: &Backend, ip: &Ip, segment: &Segment, hash: u64) -> Facing {
    Facing::new(backend, ip.src, segment.sport, segment.dport, segment.l4, hash)
}

/// Records where a backend's packets to `port` lead. `false` if there is no entry to spare.
#[inline(always)]
fn record_reply(facing: &Facing, port: Be16, place: u32, phase: u8, now: u16) -> bool {
    let (key, bucket) = facing.reply(port);
    nlb_record(&record::Entry { key, state: State::reply(place, phase, now), bucket, must: 1 }) != 0
}

#[inline(always)]
fn send_to_backend<const FIRST: bool>(
    packet: &mut Packet,
    ip: &Ip,
    segment: &Segment,
    service: u16,
    way: &Way,
) -> Result<Verdict, Verdict> {
    let backend = way.backend;
    if let Some(stats) = maps::backend_stats(way.backend_id) {
        stats.packets += 1;
        stats.bytes += bytes(ip) as u64;
    }
    if backend.mode != Backend::NAT {
        if FIRST {
            fragments::remember(way.backend_id, backend, service, false, (ip.src, ip.dst), way.hash);
        }
        return send_untranslated(packet, ip, (way.backend_id, backend), way.hash, SendReason::Forward);
    }
    let facing = facing(backend, ip, segment, way.hash);
    if FIRST {
        let to = (facing.addr, backend.addr);
        fragments::remember(way.backend_id, backend, service, false, to, way.hash);
    }
    let sport = if way.snat_port.is_zero() { segment.sport } else { way.snat_port };
    let to = Tuple { src: facing.addr, dst: backend.addr, sport, dport: facing.backend_port };
    translate(packet, ip, segment, &to)?;
    send(packet, &backend.hop, SendReason::Forward)
}

/// Sends a packet on as it is, behind outer headers if its backend wants them.
#[inline(always)]
pub fn send_untranslated(
    packet: &mut Packet,
    ip: &Ip,
    (backend_id, backend): (u16, &Backend),
    hash: u64,
    reason: SendReason,
) -> Result<Verdict, Verdict> {
    if backend.mode == Backend::DSR_L2 {
        rewrite::decrement_ttl(packet, ip).ok_or(INTERNAL)?;
        return send(packet, &backend.hop, reason);
    }
    if packet.is_skb() {
        return Ok(Verdict::Drop(DropReason::Headroom));
    }
    if backend.mode == Backend::GUE {
        return Ok(gue::hand_over(backend_id, hash, reason));
    }
    let grown = outer_len(backend);
    rewrite::decrement_ttl(packet, ip).ok_or(INTERNAL)?;
    packet.move_front(-(grown as i32)).ok_or(Verdict::Drop(DropReason::Headroom))?;
    let src = maps::ipip_source(!backend.addr.is_v4(), hash).unwrap_or(backend.source);
    let outer = Outer { src, dst: backend.addr, flow_label: hash as u32 };
    rewrite::encapsulate(packet, ip, grown, &outer).ok_or(INTERNAL)?;
    send(packet, &backend.hop, reason)
}

/// Bytes of the outer headers that a backend wants.
#[inline(always)]
pub fn outer_len(backend: &Backend) -> usize {
    let ip = Outer::len(!backend.addr.is_v4());
    match backend.mode {
        Backend::DSR_IPIP => ip,
        Backend::GUE => ip + nlb_common::gue::HEADER,
        _ => 0,
    }
}

/// A packet that may be a backend's reply: from the address and port that a flow was sent to, back to where it seemed to
/// come from.
#[inline(always)]
fn from_backend<const FIRST: bool>(
    packet: &mut Packet,
    ip: &Ip,
    local: u16,
    direction: Direction,
) -> Result<Verdict, Verdict> {
    // What is not sound TCP or UDP is not for us to judge here: the packet may be the host's own.
    let segment = match segment::<FIRST>(packet, ip) {
        Ok(segment) => segment,
        Err(Verdict::GoOn(stage)) => return Ok(Verdict::GoOn(stage)),
        Err(_) => return Ok(NOT_A_REPLY),
    };
    let found = flow_answered_by(ip, &segment, local, direction)?;
    let (flow, state) = (found.flow, found.state);
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    let vip = maps::vip(flow.local()).ok_or(INTERNAL)?;
    let hop = next_hop::towards(packet, vip, flow.remote(), bytes(ip))?;
    if came_back(packet, &hop) {
        return Ok(Verdict::Drop(DropReason::Loop));
    }

    note_reply(&found, &segment);
    if let Some(stats) = maps::backend_stats(state.backend()) {
        stats.reply_packets += 1;
        stats.reply_bytes += bytes(ip) as u64;
        stats.resets += segment.flags.has(TcpFlags::RST) as u64;
    }
    if FIRST && let Some(backend) = maps::backend(state.backend()) {
        fragments::remember(state.backend(), backend, 0, true, (vip, flow.remote()), 0);
    }
    let to = Tuple { src: vip, dst: flow.remote(), sport: flow.local_port(), dport: flow.remote_port() };
    translate(packet, ip, &segment, &to)?;
    send(packet, &hop, SendReason::Reply)
}

const NOT_A_REPLY: Verdict = Verdict::Pass(PassReason::NoFlow);

/// A flow, and its two entries.
pub struct Answered {
    pub flow: Key,
    pub state: State,
    entry: &'static Entry,
    reply: State,
    reply_entry: &'static Entry,
}

/// The flow of which a backend's packet, with these addresses and ports, is a part.
#[inline(always)]
pub fn flow_answered_by(
    ip: &Ip,
    segment: &Segment,
    local: u16,
    direction: Direction,
) -> Result<Answered, Verdict> {
    let key = Key::new(ip.src, segment.sport, segment.dport, local, segment.l4, direction);
    let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
    let bucket = maps::flows(maps::flow_bucket(hash)).ok_or(INTERNAL)?;
    let (way, reply) = bucket.find(&key).ok_or(NOT_A_REPLY)?;

    let entry = maps::flow_at(reply.place()).ok_or(INTERNAL)?;
    let (flow, state) = entry.snapshot().ok_or(NOT_A_REPLY)?;
    let backend = maps::backend(state.backend()).ok_or(NOT_A_REPLY)?;
    if !leads_back(ip, segment, &flow, state, backend, direction) {
        return Err(NOT_A_REPLY);
    }
    Ok(Answered { flow, state, entry, reply, reply_entry: &bucket.entries[way & 3] })
}

/// Whether the flow that a reply entry leads to is the one that this packet answers.
#[inline(always)]
fn leads_back(
    ip: &Ip,
    segment: &Segment,
    flow: &Key,
    state: State,
    backend: &Backend,
    direction: Direction,
) -> bool {
    let backend_port = if backend.port.is_zero() { flow.local_port() } else { backend.port };
    flow.is_forward()
        && flow.protocol() == segment.l4 as u8
        && state.generation() == backend.generation
        && backend.addr == ip.src
        && backend_port == segment.sport
        && state.shown_port(flow) == segment.dport
        && (matches!(direction, Direction::Reply) || flow.remote() == ip.dst)
}

/// Keeps both entries of a flow alive, and notes what the backend's packet says of the connection.
#[inline(always)]
fn note_reply(found: &Answered, segment: &Segment) {
    let now = maps::now();
    let phase = flow::next_phase(found.state.phase(), segment.flags, false);
    found.entry.touch(found.state, phase, now);
    found.reply_entry.touch(found.reply, phase, now);
}

#[inline(always)]
fn translate(packet: &mut Packet, ip: &Ip, segment: &Segment, to: &Tuple) -> Result<(), Verdict> {
    let segment = Segment { offset: bounded(segment.offset), ..*segment };
    rewrite::translate(packet, ip, &segment, to).ok_or(INTERNAL)
}

#[inline(always)]
pub fn send(packet: &mut Packet, hop: &NextHop, reason: SendReason) -> Result<Verdict, Verdict> {
    rewrite::ethernet(packet, hop.dst(), hop.src()).ok_or(INTERNAL)?;
    Ok(Verdict::Send(reason, hop.ifindex))
}
