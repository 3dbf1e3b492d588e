//! The packet's way: whose is it, which flow is it part of, where does that flow go.

use nlb_common::abi::{Address, Backend, NextHop, Service, Settings};
use nlb_common::flow::{self, Direction, Entry, Key, State};
use nlb_common::net::{Be16, L4};
use nlb_common::parse::{self, Ip, Segment, TcpFlags};
use nlb_common::rewrite::{self, Outer, Tuple};
use nlb_common::verdict::{DropReason, PassReason, SendReason, UNRECORDED_COUNTER, Verdict};
use nlb_common::{hash, maglev};

use crate::packet::Packet;
use crate::record::{self, Facing, NO_PORT, nlb_find_port, nlb_record};
use crate::tables::{self, Known};
use crate::{ask, extensions, hop, limit, reject};

const INTERNAL: Verdict = Verdict::Drop(DropReason::Internal);

#[inline(always)]
pub fn steer(packet: &mut Packet) -> Result<Verdict, Verdict> {
    let ip = parse::ip(packet)?;
    let (dst, transparent) = tables::address(ip.dst);
    if let Some(dst) = dst {
        if dst.flags & Address::VIP != 0 {
            return to_vip(packet, &ip, &dst);
        }
        if dst.flags & Address::SOURCE != 0 {
            return from_backend(packet, &ip, dst.id, Direction::Reply);
        }
    }
    if transparent
        && let (Some(src), _) = tables::address(ip.src)
        && src.flags & Address::BACKEND != 0
    {
        return from_backend(packet, &ip, record::transparent_local(ip.dst), Direction::TransparentReply);
    }
    Ok(Verdict::Pass(PassReason::NotOurs))
}

#[inline(always)]
fn to_vip(packet: &mut Packet, ip: &Ip, vip: &Known) -> Result<Verdict, Verdict> {
    let segment = extensions::segment(packet, ip)?;
    let service = tables::service_id(vip, segment.dport, segment.l4);
    if service == 0 {
        return if vip.flags & Address::SOURCE != 0 {
            from_backend(packet, ip, vip.id, Direction::Reply)
        } else if vip.flags & Address::ASK != 0 && ask::is_open(ip, vip.id, &segment) {
            Ok(Verdict::Drop(DropReason::Asking))
        } else if vip.flags & Address::DROP_CLOSED != 0 {
            Ok(Verdict::Drop(DropReason::ClosedPort))
        } else {
            Ok(Verdict::Pass(PassReason::ClosedPort))
        };
    }
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    match flow_of(packet, ip, &segment, vip, service) {
        Ok(way) => send_to_backend(packet, ip, &segment, &way),
        Err(Verdict::Drop(DropReason::NoBackend)) if rejects(service) => {
            Ok(reject::reject(packet, segment.l4))
        }
        Err(verdict) => Ok(verdict),
    }
}

#[inline(always)]
fn rejects(service: u16) -> bool {
    tables::service(service).is_some_and(|service| service.flags & Service::REJECT != 0)
}

/// Where a flow goes.
struct Way {
    backend_id: u16,
    backend: &'static Backend,
    /// The port that a NAT backend sees instead of the client's; 0 keeps the client's.
    snat_port: Be16,
    hash: u64,
}

/// The backend of a packet's flow: the one on record if it still serves, else a fresh choice, put on record.
#[inline(always)]
fn flow_of(packet: &Packet, ip: &Ip, segment: &Segment, vip: &Known, service: u16) -> Result<Way, Verdict> {
    let settings = tables::settings();
    let now = tables::now(&settings);
    let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
    let key = Key::new(ip.src, segment.sport, segment.dport, vip.id, segment.l4, Direction::Forward);
    let index = hash as u32 & settings.flow_mask;
    let bucket = tables::flows(index).ok_or(INTERNAL)?;

    if let Some((way, state)) = bucket.find(&key)
        && let Some(backend) = tables::backend(state.backend())
        && keeps(backend, state, segment)
    {
        reachable(packet, backend)?;
        limit::pass(tables::service(service).ok_or(INTERNAL)?, backend, ip.src, bytes(ip), false)?;
        let phase = flow::next_phase(state.phase(), segment.flags, true);
        if backend.mode == Backend::NAT && state.seen() != now {
            let facing = facing(backend, ip, segment, hash);
            record_reply(
                &facing,
                state.shown_port(&key),
                tables::place(index, way),
                phase,
                now,
                settings.flow_mask,
            );
        }
        bucket.entries[way & 3].touch(state, phase, now);
        return Ok(Way { backend_id: state.backend(), backend, snat_port: state.snat_port(), hash });
    }

    let service_id = service;
    let service = tables::service(service_id).ok_or(INTERNAL)?;
    let backend_id = choose(vip, service_id, service, ip, hash)?;
    let backend = tables::backend(backend_id).ok_or(Verdict::Drop(DropReason::NoBackend))?;
    reachable(packet, backend)?;
    limit::pass(service, backend, ip.src, bytes(ip), true)?;
    let new = NewFlow { backend, backend_id, key, bucket: index, hash, now, flow_mask: settings.flow_mask };
    let snat_port = new.record(ip, segment)?;
    Ok(Way { backend_id, backend, snat_port, hash })
}

/// Whether a packet can go to its backend, asked before it leaves a trace: it waits where the way is not known, and goes no
/// further if it is our own, which came back.
#[inline(always)]
fn reachable(packet: &Packet, backend: &Backend) -> Result<(), Verdict> {
    if !backend.has(Backend::RESOLVED) {
        return Err(hop::park(packet, backend.addr));
    }
    if rewrite::source_mac(packet) == Some(backend.hop.src()) {
        return Err(Verdict::Drop(DropReason::Loop));
    }
    Ok(())
}

/// Length of the IP packet.
#[inline(always)]
fn bytes(ip: &Ip) -> u32 {
    (ip.end - ip.l3) as u32
}

/// Whether a flow on record stays with its backend.
#[inline(always)]
fn keeps(backend: &Backend, state: State, segment: &Segment) -> bool {
    if backend.generation != state.generation() {
        return false;
    }
    let draining = backend.has(Backend::DRAINING);
    match segment.l4 {
        L4::Udp => !draining,
        // A retransmitted SYN stays where the first went; a new connection does not revive a closed or draining flow.
        L4::Tcp => !segment.flags.opens() || !draining && !state.is_closed(),
    }
}

/// The backend for a new flow, or for the middle of one that we have no record of: by hash, so that every node and
/// every life of this one choose alike.
#[inline(always)]
fn choose(vip: &Known, service_id: u16, service: &Service, ip: &Ip, hash: u64) -> Result<u16, Verdict> {
    let pool = if service.flags & Service::BY_SOURCE != 0 {
        tables::pool_by_source(service_id, ip.src)
    } else {
        service.pool
    };
    if pool == 0 {
        // Its routes are for other sources, so to this client there is no service.
        return Err(if vip.flags & Address::DROP_CLOSED != 0 {
            Verdict::Drop(DropReason::ClosedPort)
        } else {
            Verdict::Pass(PassReason::ClosedPort)
        });
    }
    match tables::maglev(pool, maglev::slot(hash)) {
        0 => Err(Verdict::Drop(DropReason::NoBackend)),
        backend => Ok(backend),
    }
}

/// A flow that is to be put on record.
struct NewFlow {
    backend: &'static Backend,
    backend_id: u16,
    key: Key,
    bucket: u32,
    hash: u64,
    now: u16,
    flow_mask: u32,
}

impl NewFlow {
    /// Puts the flow on record; the answer is its SNAT port.
    #[inline(always)]
    fn record(&self, ip: &Ip, segment: &Segment) -> Result<Be16, Verdict> {
        let phase = flow::first_phase(segment.l4, segment.flags);
        if self.backend.mode != Backend::NAT {
            if self.entry(Be16::new(0), phase, false).is_none() {
                tables::count(UNRECORDED_COUNTER);
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
        let place = tables::place(self.bucket, way);
        if record_reply(&facing, shown, place, phase, self.now, self.flow_mask) {
            Ok(port)
        } else {
            Err(Verdict::Drop(DropReason::FlowTable))
        }
    }

    /// The way of the flow's entry in its bucket.
    #[inline(always)]
    fn entry(&self, port: Be16, phase: u8, must: bool) -> Option<usize> {
        let state = State::forward(self.backend_id, port, self.backend.generation, phase, self.now);
        let way = nlb_record(&record::Entry { key: self.key, state, bucket: self.bucket, must: must as u32 });
        let way = (way as usize).checked_sub(1)?;
        // What is on record counts once; each packet of a flow that is not would count again.
        if let Some(stats) = tables::backend_stats(self.backend_id) {
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
fn record_reply(facing: &Facing, port: Be16, place: u32, phase: u8, now: u16, flow_mask: u32) -> bool {
    let (key, bucket) = facing.reply(port, flow_mask);
    nlb_record(&record::Entry { key, state: State::reply(place, phase, now), bucket, must: 1 }) != 0
}

#[inline(always)]
fn send_to_backend(packet: &mut Packet, ip: &Ip, segment: &Segment, way: &Way) -> Result<Verdict, Verdict> {
    let backend = way.backend;
    let hop = backend.hop;
    if let Some(stats) = tables::backend_stats(way.backend_id) {
        stats.packets += 1;
        stats.bytes += bytes(ip) as u64;
    }
    match backend.mode {
        Backend::NAT => {
            let facing = facing(backend, ip, segment, way.hash);
            let sport = if way.snat_port.is_zero() { segment.sport } else { way.snat_port };
            let to = Tuple { src: facing.addr, dst: backend.addr, sport, dport: facing.backend_port };
            rewrite::translate(packet, ip, segment, &to).ok_or(INTERNAL)?;
        }
        Backend::DSR_L2 => rewrite::decrement_ttl(packet, ip).ok_or(INTERNAL)?,
        _ => {
            let grown = Outer::len(!backend.addr.is_v4());
            if ip.end - ip.l3 + grown > backend.mtu as usize {
                return Ok(Verdict::Drop(DropReason::TooBig));
            }
            rewrite::decrement_ttl(packet, ip).ok_or(INTERNAL)?;
            packet.move_front(-(grown as i32)).ok_or(Verdict::Drop(DropReason::Headroom))?;
            let outer = Outer { src: backend.source, dst: backend.addr, flow_label: way.hash as u32 };
            rewrite::encapsulate(packet, ip, grown, &outer).ok_or(INTERNAL)?;
        }
    }
    send(packet, &hop, SendReason::Forward)
}

/// A packet that may be a backend's reply: from the address and port that a flow was sent to, back to where it seemed to
/// come from.
#[inline(always)]
fn from_backend(packet: &mut Packet, ip: &Ip, local: u16, direction: Direction) -> Result<Verdict, Verdict> {
    const NOT_A_REPLY: Verdict = Verdict::Pass(PassReason::NoFlow);
    // What is not sound TCP or UDP is not for us to judge here: the packet may be the host's own.
    let segment = extensions::segment(packet, ip).map_err(|_| NOT_A_REPLY)?;
    let settings = tables::settings();
    let key = Key::new(ip.src, segment.sport, segment.dport, local, segment.l4, direction);
    let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
    let bucket = tables::flows(hash as u32 & settings.flow_mask).ok_or(INTERNAL)?;
    let (way, reply) = bucket.find(&key).ok_or(NOT_A_REPLY)?;

    let entry = tables::flow_at(reply.place()).ok_or(INTERNAL)?;
    let (flow, state) = entry.snapshot().ok_or(NOT_A_REPLY)?;
    let backend = tables::backend(state.backend()).ok_or(NOT_A_REPLY)?;
    if !leads_back(ip, &segment, &flow, state, backend, direction) {
        return Ok(NOT_A_REPLY);
    }
    if ip.ttl <= 1 {
        return Ok(Verdict::Drop(DropReason::TtlExceeded));
    }
    let vip = tables::vip(flow.local()).ok_or(INTERNAL)?;
    let hop = hop::towards(packet, vip, flow.remote())?;
    if rewrite::source_mac(packet) == Some(hop.src()) {
        return Ok(Verdict::Drop(DropReason::Loop));
    }

    note_reply(&bucket.entries[way & 3], reply, entry, state, &segment, &settings);
    if let Some(stats) = tables::backend_stats(state.backend()) {
        stats.reply_packets += 1;
        stats.reply_bytes += bytes(ip) as u64;
        stats.resets += segment.flags.has(TcpFlags::RST) as u64;
    }
    let to = Tuple { src: vip, dst: flow.remote(), sport: flow.local_port(), dport: flow.remote_port() };
    rewrite::translate(packet, ip, &segment, &to).ok_or(INTERNAL)?;
    send(packet, &hop, SendReason::Reply)
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
fn note_reply(
    reply: &Entry,
    reply_state: State,
    flow: &Entry,
    state: State,
    segment: &Segment,
    settings: &Settings,
) {
    let now = tables::now(settings);
    let phase = flow::next_phase(state.phase(), segment.flags, false);
    flow.touch(state, phase, now);
    reply.touch(reply_state, phase, now);
}

#[inline(always)]
fn send(packet: &mut Packet, hop: &NextHop, reason: SendReason) -> Result<Verdict, Verdict> {
    rewrite::ethernet(packet, hop.dst(), hop.src()).ok_or(INTERNAL)?;
    Ok(Verdict::Send(reason, hop.ifindex))
}
