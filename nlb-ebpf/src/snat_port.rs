//! The search for the SNAT port of a new flow, out of line for the reasons that `record` gives.
//!
//! A backend tells flows apart by address and port, so two flows that would look alike to it (one client
//! port, two VIPs, one backend port) need different ports. The table itself shows which ports are in use: a
//! port had a flow if it has a reply entry, and [`LastFlow`] says whether another may have it.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use nlb_common::flow::port::{LastFlow, rank};
use nlb_common::flow::{Key, State, TcpClock, WAYS};
use nlb_common::hash;
use nlb_common::net::{Addr, Be16};
use nlb_common::parse::Segment;

use crate::capacity::capacity_of;
use crate::packet::{Context, Packet, bounded};
use crate::record::NatTuple;
use crate::{capacity, clock, maps, settings};

/// What a port is searched for.
#[repr(C)]
pub struct Search {
    pub tuple: NatTuple,
    /// [`TcpClock::word`] of the flow's packet.
    clock: u64,
    /// [`client`] of the flow.
    client: u32,
    /// The flow's bucket.
    bucket: u32,
}

impl Search {
    #[inline(always)]
    pub fn new(tuple: NatTuple, key: &Key, bucket: u32) -> Self {
        Search { tuple, clock: TcpClock::NONE.word(), client: client(key.remote(), key.local()), bucket }
    }
}

/// A client and a VIP as one word. A function's caller has little stack left for whole addresses.
#[inline(always)]
fn client(addr: Addr, vip: u16) -> u32 {
    (hash::addr(addr) >> 32) as u32 ^ vip as u32
}

/// Ports that are tried for one that has rested.
const FIRST_CANDIDATES: u32 = 16;

/// Ports that are tried for one that may be used again.
const CANDIDATES: u32 = 256;

/// The result of a search without one.
const NO_PORT: u64 = u32::MAX as u64;

/// What was taken: a port or its rank in the low half; in the high half the capacity id that the flow counted
/// against which had the port, or 0. The functions that take ports have no stack left for a further call.
#[derive(Clone, Copy)]
struct Taken(u64);

impl Taken {
    #[inline(always)]
    const fn rank(self) -> u32 {
        self.0 as u32
    }

    #[inline(always)]
    const fn with_port(self, port: u32) -> u64 {
        self.0 >> 32 << 32 | port as u64
    }
}

/// A port for a flow towards its backend; 0 keeps the client's port. `None` if all candidates are taken.
///
/// The first candidate follows from the flow's hash, so a flow that lost its entry tends to get the same port
/// again. The second search is rare, and reads the packet's clock only then.
#[inline(always)]
pub fn find(packet: &Packet, segment: &Segment, search: &mut Search) -> Option<Be16> {
    let mut found = nlb_find_rested_port(search);
    if found == NO_PORT {
        // Flows of UDP do not use it.
        search.clock = tcp_clock(packet, segment).word();
        found = nlb_find_used_port(search);
    }
    if found >> 32 != 0 {
        capacity::remove_flow((found >> 32) as u16);
    }
    (found != NO_PORT).then_some(Be16::from_word(found as u16))
}

/// The sequence number and the timestamp of a TCP packet.
#[inline(always)]
pub fn tcp_clock(packet: &Packet, segment: &Segment) -> TcpClock {
    TcpClock::from_word(match packet.context() {
        Context::Xdp(ctx) => nlb_tcp_clock(ctx, segment.offset as u32),
        Context::Skb(ctx) => nlb_tc_tcp_clock(ctx, segment.offset as u32),
    })
}

#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tcp_clock(ctx: *mut xdp_md, offset: u32) -> u64 {
    TcpClock::read(&Packet::xdp(ctx), bounded(offset as usize)).word()
}

/// As [`nlb_tcp_clock`], for socket buffers.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_tcp_clock(ctx: *mut __sk_buff, offset: u32) -> u64 {
    TcpClock::read(&Packet::skb(ctx), bounded(offset as usize)).word()
}

/// A port that has rested, as a memory word, or 0 for the client's, as [`Taken`]; [`NO_PORT`] if the first
/// candidates have none.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_find_rested_port(search: *const Search) -> u64 {
    if search.is_null() {
        return NO_PORT;
    }
    // SAFETY: not null. The verifier makes callers pass a whole `Search`.
    let tuple = unsafe { &(*search).tuple };
    if tuple.snat == 0 {
        let taken = Taken(nlb_take_port(search, tuple.client_port.word() as u32, rank::RESTED));
        if taken.rank() == rank::RESTED {
            return taken.with_port(0);
        }
    }
    // SAFETY: as above.
    let mut candidates = Candidates::new(unsafe { &*search });
    let mut i = 0;
    while i < FIRST_CANDIDATES {
        let port = candidates.next();
        let taken = Taken(nlb_take_port(search, port, rank::RESTED));
        if taken.rank() == rank::RESTED {
            return taken.with_port(port);
        }
        i += 1;
    }
    NO_PORT
}

/// The port that can best be used again, as a memory word, as [`Taken`]; [`NO_PORT`] if all candidates are
/// taken. After that, a CPU does not search for this backend again in the same tick.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_find_used_port(search: *const Search) -> u64 {
    if search.is_null() || nlb_ports_are_exhausted(search, 0) != 0 {
        return NO_PORT;
    }
    // SAFETY: as above.
    let mut candidates = Candidates::new(unsafe { &*search });
    let (mut best, mut best_rank) = (0, rank::TAKEN);
    let mut i = 0;
    while i < CANDIDATES && (i < FIRST_CANDIDATES || best_rank < rank::ACCEPTED) {
        let port = candidates.next();
        let rank = Taken(nlb_take_port(search, port, rank::NEVER)).rank();
        if rank > best_rank {
            (best, best_rank) = (port, rank);
        }
        i += 1;
    }
    if best_rank == rank::TAKEN {
        nlb_ports_are_exhausted(search, 1);
        return NO_PORT;
    }
    let taken = Taken(nlb_take_port(search, best, best_rank));
    if taken.rank() != rank::TAKEN { taken.with_port(best) } else { NO_PORT }
}

/// Whether this CPU noted in this tick that the backend has no ports left; notes that if `found` is 1.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_ports_are_exhausted(search: *const Search, found: u32) -> u32 {
    const IN_USE: u64 = 1 << 62;
    if search.is_null() {
        return 1;
    }
    // SAFETY: as above.
    let tuple = unsafe { &(*search).tuple };
    let (_, place) = tuple.reply(tuple.backend_port);
    let exhausted = IN_USE | (place as u64) << 16 | clock::now() as u64;
    let Some(noted) = maps::full_bucket(place) else { return 1 };
    if found != 0 {
        *noted = exhausted;
    }
    (*noted == exhausted) as u32
}

/// The ports of a search, in order: every port of the range once, if it has no more than there are steps.
struct Candidates {
    offset: u32,
}

impl Candidates {
    #[inline(always)]
    fn new(search: &Search) -> Self {
        let (_, count) = settings::snat_ports();
        Candidates { offset: ((search.tuple.seed & 0xffff) * count as u32) >> 16 }
    }

    /// As a memory word.
    #[inline(always)]
    fn next(&mut self) -> u32 {
        let (first, count) = settings::snat_ports();
        let port = Be16::new(first.wrapping_add(self.offset as u16));
        self.offset = (self.offset + settings::snat_stride()).checked_rem(count as u32).unwrap_or(0);
        port.word() as u32
    }
}

/// Takes a port if it has at least this rank, and returns its rank as [`Taken`]: [`rank::TAKEN`] if another
/// CPU was faster. The flow that had it loses its entry: its client may come back, and must not share the
/// port. The function is apart from the searches, so that the verifier does not check it for each candidate.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_take_port(search: *const Search, port: u32, least: u32) -> u64 {
    if search.is_null() {
        return rank::TAKEN as u64;
    }
    // SAFETY: as above.
    let search = unsafe { &*search };
    let port = Be16::from_word(port as u16);
    if search.tuple.avoids_services != 0 && maps::has_service(search.tuple.local, port, search.tuple.l4()) {
        return rank::TAKEN as u64;
    }
    let (key, bucket) = search.tuple.reply(port);
    let Some((_, reply)) = maps::flows(bucket).and_then(|bucket| bucket.find(&key)) else {
        return rank::RESTED as u64;
    };
    // Where its entry is gone, the bucket shows whether it was this flow's.
    let own = reply.place() / WAYS as u32 == search.bucket;
    let mut last = LastFlow { state: reply, is_gone: true, itself: own, mark: reply.mark() };
    let mut forward = None;
    if let Some(entry) = maps::flow_at(reply.place())
        && let Some((flow, state)) = entry.snapshot()
        && flow.is_forward()
        && is_at(&search.tuple, &flow, state)
        && state.translated_port(&flow) == port
    {
        forward = Some(entry);
        (last.state, last.is_gone) = (state, false);
        last.itself = own
            && client(flow.remote(), flow.local()) == search.client
            && flow.remote_port() == search.tuple.client_port;
    }
    let syn = TcpClock::from_word(search.clock);
    let rank = last.rank_of_port(syn, clock::now(), settings::idle_times);
    if let Some(entry) = forward
        && !last.itself
        && rank >= least
    {
        if !entry.remove(last.state) {
            return rank::TAKEN as u64;
        }
        return (capacity_of(last.state) as u64) << 32 | rank as u64;
    }
    rank as u64
}

/// Whether a flow goes to this backend's address and port, whatever the id of its backend is.
#[inline(always)]
fn is_at(tuple: &NatTuple, flow: &Key, state: State) -> bool {
    let Some(backend) = maps::backend_of(state.backend(), state.generation()) else { return false };
    backend.addr == tuple.backend && backend.port_for(flow.local_port()) == tuple.backend_port
}
