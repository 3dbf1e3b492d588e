//! A client's flow: look-up in the flow table, selection of a backend, and recording.

use nlb_common::abi::{Address, Backend, Service};
use nlb_common::flow::{self, Bucket, Direction, Key, Mark, State};
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{Ip, Segment, TcpFlags};
use nlb_common::verdict::{DropReason, PassReason, Program, UNRECORDED_COUNTER, Verdict};
use nlb_common::{hash, maglev};

use crate::forward::{ForwardingDecision, check_reachable};
use crate::maps::{self, AddressInfo};
use crate::packet::Packet;
use crate::record::{self, NatTuple, nat_tuple, nlb_record_flow};
use crate::snat_port::Search;
use crate::{capacity, clock, host, quic_cid, rate_limit, snat_port};

/// The forwarding decision for a client's packet: the backend that its connection id names; else the recorded
/// one if it still takes the flow; else a newly selected one. A flow without an entry is recorded.
#[inline(always)]
pub fn find_or_create<const FIRST_FRAGMENT: bool, const BY_CONNECTION_ID: bool>(
    packet: &Packet,
    ip: &Ip,
    segment: &Segment,
    vip: &AddressInfo,
    service_id: u16,
) -> Result<ForwardingDecision, Verdict> {
    let service = maps::service(service_id).ok_or(Verdict::INTERNAL)?;
    let mut named = 0;
    if BY_CONNECTION_ID {
        named = quic_cid::backend(packet, ip, segment, service_id, service);
    } else if !FIRST_FRAGMENT && service.flags & Service::QUIC != 0 {
        // QUIC packets are never fragmented (RFC 9000 section 14).
        return Err(Verdict::TailCall(Program::Quic));
    }
    let now = clock::now();
    let lookup = Lookup::new(ip, segment, vip)?;

    let found = lookup.bucket.find(&lookup.key);
    if let Some((way, state)) = found
        && let Some(backend) = maps::backend_of(state.backend(), state.generation())
        && keeps(backend, state, segment, named, || {
            capacity::leads_elsewhere(
                pool(service_id, service, ip.src),
                lookup.hash,
                state.backend(),
                backend,
            )
        })
        && let Some(state) = capacity::counted(backend, state, maps::place(lookup.index, way))
    {
        check_reachable(packet, ip, backend)?;
        rate_limit::pass(service, backend, ip.src, ip.total_len(), false)?;
        let phase = flow::next_phase(state.phase(), segment.flags, true);
        // One comparison: the verifier follows each branch to the end.
        let changed = state.seen() ^ now | (segment.flags.0 & (TcpFlags::FIN | TcpFlags::RST)) as u16;
        if backend.mode == Backend::NAT && changed != 0 {
            let tuple = nat_tuple(backend, ip, segment, lookup.hash);
            // No connection ends with a fragment.
            let mark =
                if FIRST_FRAGMENT { Mark::NONE } else { Mark::of(snat_port::tcp_clock(packet, segment)) };
            let reply = State::reply(maps::place(lookup.index, way), mark, phase, now);
            record_reply(&tuple, state.translated_port(&lookup.key), reply);
        }
        let decision = lookup.decision(state, backend);
        if lookup.bucket.entries[way & 3].touch(state, phase, now) {
            capacity::remove_closed(state);
        }
        return Ok(decision);
    }

    if service.flags & Service::EVERY_PORT != 0 {
        host::check_taken(packet, ip, segment, vip.id)?;
    }
    check_source(packet, ip)?;
    let (pool, mut backend_id) = choose(vip, service_id, service, ip, lookup.hash, named)?;
    let mut backend = maps::backend(backend_id).ok_or(Verdict::Drop(DropReason::NoBackend))?;
    let mut capacity = 0;
    if backend.capacity != 0 {
        let own = found.map_or(0, |(_, state)| state.word());
        let room = capacity::add_flow(pool, backend_id, lookup.hash, own)?;
        (backend_id, capacity) = (room.backend, room.capacity);
        let Some(other) = maps::backend(backend_id) else {
            capacity::remove_flow(capacity);
            return Err(Verdict::INTERNAL);
        };
        backend = other;
    }
    let (key, bucket, hash) = (lookup.key, lookup.index, lookup.hash);
    let new = NewFlow { backend, backend_id, capacity, key, bucket, hash, now };
    if let Err(verdict) = check_reachable(packet, ip, backend)
        .and_then(|()| rate_limit::pass(service, backend, ip.src, ip.total_len(), true))
    {
        return Err(new.refused(verdict));
    }
    let snat_port = new.record(packet, ip, segment)?;
    Ok(ForwardingDecision { backend_id, backend, snat_port, hash })
}

/// The verdict on a packet from a source that cannot be another host's: a group, an unspecified or a loopback
/// address, or one of this node's own. Linux drops such packets, too ("martian source", RFC 1812 section
/// 5.3.7). Packets at TC ingress may come from this host. A recorded flow has passed this check.
#[inline(always)]
fn check_source(packet: &Packet, ip: &Ip) -> Result<(), Verdict> {
    let is_martian = !ip.src.is_one_host() || maps::address(ip.src).0.is(Address::VIP | Address::SOURCE);
    if is_martian && !packet.is_skb() { Err(Verdict::Drop(DropReason::MartianSource)) } else { Ok(()) }
}

/// The forwarding decision for a flow, without a change to the flow table: the recorded backend; else, for
/// backends without translation, the one that the hash selects.
#[inline(always)]
pub fn peek(ip: &Ip, segment: &Segment, vip: &AddressInfo) -> Option<ForwardingDecision> {
    let lookup = Lookup::new(ip, segment, vip).ok()?;
    if let Some((_, state)) = lookup.bucket.find(&lookup.key)
        && let Some(backend) = maps::backend_of(state.backend(), state.generation())
    {
        return Some(lookup.decision(state, backend));
    }
    let service_id = maps::service_id(vip, segment.dport, segment.l4);
    let pool = pool(service_id, maps::service(service_id)?, ip.src);
    let backend_id = maps::maglev(pool, maglev::slot(lookup.hash));
    let backend = maps::backend(backend_id)?;
    let decision = ForwardingDecision { backend_id, backend, snat_port: Be16::new(0), hash: lookup.hash };
    (service_id != 0 && backend.mode != Backend::NAT).then_some(decision)
}

/// A client's flow in the flow table: its key, its hash, and its bucket.
struct Lookup {
    key: Key,
    hash: u64,
    index: u32,
    bucket: &'static Bucket,
}

impl Lookup {
    #[inline(always)]
    fn new(ip: &Ip, segment: &Segment, vip: &AddressInfo) -> Result<Self, Verdict> {
        let hash = hash::flow(ip.src, ip.dst, segment.sport, segment.dport, segment.l4 as u8);
        let key = Key::new(ip.src, segment.sport, segment.dport, vip.id, segment.l4, Direction::Forward);
        let index = maps::flow_bucket(hash);
        let bucket = maps::flows(index).ok_or(Verdict::INTERNAL)?;
        Ok(Lookup { key, hash, index, bucket })
    }

    #[inline(always)]
    fn decision(&self, state: State, backend: &'static Backend) -> ForwardingDecision {
        ForwardingDecision {
            backend_id: state.backend(),
            backend,
            snat_port: state.snat_port(),
            hash: self.hash,
        }
    }
}

/// Whether a recorded flow keeps its backend. A flow whose packet names a backend by connection id stays with
/// that backend even while it drains, because the backend has the connection.
#[inline(always)]
fn keeps(
    backend: &Backend,
    state: State,
    segment: &Segment,
    named: u16,
    leads_elsewhere: impl FnOnce() -> bool,
) -> bool {
    if named != 0 {
        return state.backend() == named;
    }
    let draining = backend.has(Backend::DRAINING);
    match segment.l4 {
        L4::Udp => !backend.has(Backend::DRAINING | Backend::UDP_REBALANCE) || !leads_elsewhere(),
        // A retransmitted SYN goes where the first one went. A new connection does not revive a closed or
        // draining flow.
        L4::Tcp => !segment.flags.opens() || !draining && !state.is_closed(),
    }
}

/// Selects the backend of a flow without an entry, and its pool: the one that its connection id names, which
/// has no pool, else one by hash. All nodes select alike, and so does this node after a restart.
#[inline(always)]
fn choose(
    vip: &AddressInfo,
    service_id: u16,
    service: &Service,
    ip: &Ip,
    hash: u64,
    named: u16,
) -> Result<(u16, u16), Verdict> {
    let pool = pool(service_id, service, ip.src);
    if pool == 0 {
        // The service's routes are for other sources, so the port is closed for this client.
        return Err(closed_port(vip));
    }
    if named != 0 {
        return Ok((0, named));
    }
    match maps::maglev(pool, maglev::slot(hash)) {
        0 => Err(Verdict::Drop(DropReason::NoBackend)),
        backend => Ok((pool, backend)),
    }
}

/// The verdict on a packet to a port without a service.
#[inline(always)]
pub fn closed_port(vip: &AddressInfo) -> Verdict {
    if vip.is(Address::DROP_CLOSED) {
        Verdict::Drop(DropReason::ClosedPort)
    } else {
        Verdict::Pass(PassReason::ClosedPort)
    }
}

/// The pool of a service for this client; 0 means none.
#[inline(always)]
fn pool(service_id: u16, service: &Service, client: Addr) -> u16 {
    if service.flags & Service::BY_SOURCE != 0
        && let Some(pool) = maps::longest_prefix(service_id, client)
    {
        return pool as u16;
    }
    service.pool
}

/// The verdict if no entry can be evicted.
const NO_ENTRY: Verdict = Verdict::Drop(DropReason::FlowTable);

/// A flow that is to be recorded.
struct NewFlow {
    backend: &'static Backend,
    backend_id: u16,
    /// The capacity that it counts against already; 0 means none.
    capacity: u16,
    key: Key,
    bucket: u32,
    hash: u64,
    now: u16,
}

impl NewFlow {
    /// Records the flow and returns its SNAT port.
    #[inline(always)]
    fn record(&self, packet: &Packet, ip: &Ip, segment: &Segment) -> Result<Be16, Verdict> {
        let counts = self.capacity != 0;
        let phase = flow::first_phase(segment.l4, segment.flags);
        if self.backend.mode != Backend::NAT {
            let phase = phase | flow::phase::ONE_WAY;
            if counts {
                // A flow without an entry would not count.
                self.entry(Be16::new(0), phase, true).ok_or_else(|| self.refused(NO_ENTRY))?;
            } else if !self.record_if_there_is_room(phase) {
                maps::count(UNRECORDED_COUNTER);
            }
            return Ok(Be16::new(0));
        }
        let mut search = Search::new(nat_tuple(self.backend, ip, segment, self.hash), &self.key, self.bucket);
        let port = snat_port::find(packet, segment, &mut search)
            .ok_or_else(|| self.refused(Verdict::Drop(DropReason::SnatPorts)))?;
        // NAT needs an entry, so this may evict another flow.
        let way = self.entry(port, phase, true).ok_or_else(|| self.refused(NO_ENTRY))?;
        let translated_port = if port.is_zero() { segment.sport } else { port };
        let reply = State::reply(maps::place(self.bucket, way), Mark::NONE, phase, self.now);
        if record_reply(&search.tuple, translated_port, reply) { Ok(port) } else { Err(NO_ENTRY) }
    }

    /// Takes the flow off its count: it is not recorded, for this reason.
    #[inline(always)]
    fn refused(&self, verdict: Verdict) -> Verdict {
        if self.capacity != 0 {
            capacity::remove_flow(self.capacity);
        }
        verdict
    }

    /// Whether an entry was recorded. Entries of a full bucket age with the clock's ticks, so each CPU
    /// searches a full bucket once a tick.
    #[inline(always)]
    fn record_if_there_is_room(&self, phase: u8) -> bool {
        const IN_USE: u64 = 1 << 63;
        let full = IN_USE | (self.bucket as u64) << 16 | self.now as u64;
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

    /// The index of the flow's entry in its bucket.
    #[inline(always)]
    fn entry(&self, port: Be16, phase: u8, must: bool) -> Option<usize> {
        let state = State::forward(self.backend_id, port, self.backend.generation, phase, self.now)
            .with_counted(self.capacity != 0);
        let way =
            nlb_record_flow(&record::Entry { key: self.key, state, bucket: self.bucket, must: must as u32 });
        let way = (way as usize).checked_sub(1)?;
        // Only recorded flows count: every packet of an unrecorded flow would count as a new flow.
        maps::count_new_flow(self.backend_id);
        Some(way)
    }
}

/// Records the reply entry for a backend's packets to `port`. `false` if no entry can be evicted.
#[inline(always)]
fn record_reply(tuple: &NatTuple, port: Be16, state: State) -> bool {
    let (key, bucket) = tuple.reply(port);
    nlb_record_flow(&record::Entry { key, state, bucket, must: 1 }) != 0
}
