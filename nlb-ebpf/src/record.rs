//! Putting flows on record, out of line.
//!
//! These are functions of their own to the verifier, which checks each once, by itself, and not again on every way that
//! leads to it; inlined, the search for a port alone would take it past its limit. They also keep the code that runs
//! once a flow out of the way of the code that runs for every packet. A call costs 9 ns and passes plain pointers, which
//! are checked for null because the verifier asks for that.

use nlb_common::abi::{Address, Backend};
use nlb_common::flow::{Direction, Key, State};
use nlb_common::hash;
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{Ip, Segment};

use crate::{clock, maps, settings};

/// An entry to be written.
#[repr(C)]
pub struct Entry {
    pub key: Key,
    pub state: State,
    pub bucket: u32,
    /// 1 to displace even an established flow, if there is no other way.
    pub must: u32,
}

/// What a NAT backend will see of a client, and therefore answer to.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NatTuple {
    pub backend: Addr,
    /// The address that the backend sees: ours, or the client's own.
    pub addr: Addr,
    pub backend_port: Be16,
    /// Last part of the reply key: the id of our address, or a hash of the client's.
    pub local: u16,
    /// 1 if the backend sees our address.
    pub snat: u16,
    pub client_port: Be16,
    pub protocol: u16,
    pub _pad: u16,
    /// Where the search for a port starts.
    pub seed: u32,
}

impl NatTuple {
    #[inline(always)]
    pub fn new(backend: &Backend, client: Addr, sport: Be16, dport: Be16, l4: L4, seed: u64) -> Self {
        // A backend that calls its own VIP and is picked itself would answer itself directly.
        let snat = backend.has(Backend::SNAT_ALWAYS)
            || backend.has(Backend::SNAT_ON_LINK) && client.shares_prefix(backend.addr, backend.link_prefix)
            || client == backend.addr
            || backend.has(Backend::LOCAL) && nlb_is_own_address(client.hi, client.lo) != 0;
        NatTuple {
            backend: backend.addr,
            addr: if snat { backend.source } else { client },
            backend_port: backend.port_for(dport),
            local: if snat { backend.source_id } else { transparent_local(client) },
            snat: snat as u16,
            client_port: sport,
            protocol: l4 as u16,
            _pad: 0,
            seed: (seed >> 20) as u32,
        }
    }

    /// The key of the backend's replies to `port`, and their bucket.
    #[inline(always)]
    pub fn reply(&self, port: Be16) -> (Key, u32) {
        let l4 = if self.protocol == L4::Tcp as u16 { L4::Tcp } else { L4::Udp };
        let direction = if self.snat != 0 { Direction::Reply } else { Direction::TransparentReply };
        let key = Key::new(self.backend, self.backend_port, port, self.local, l4, direction);
        let hash = hash::flow(self.backend, self.addr, self.backend_port, port, l4 as u8);
        (key, maps::flow_bucket(hash))
    }
}

#[inline(always)]
pub fn nat_tuple(backend: &Backend, ip: &Ip, segment: &Segment, hash: u64) -> NatTuple {
    NatTuple::new(backend, ip.src, segment.sport, segment.dport, segment.l4, hash)
}

/// 1 for an address of ours that clients of this host may have: a module on it would answer there past us.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_is_own_address(hi: u64, lo: u64) -> u32 {
    maps::address(Addr { hi, lo }).0.is(Address::ANY) as u32
}

/// What stands for a client's address in the key of a transparent reply.
#[inline(always)]
pub fn transparent_local(client: Addr) -> u16 {
    (hash::addr(client) >> 48) as u16
}

/// Writes an entry over the one with the same key or, if there is none, over the one that can best be spared. The answer is
/// its way plus 1, or 0 if there was none to spare.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_record_flow(entry: *const Entry) -> u32 {
    if entry.is_null() {
        return 0;
    }
    // SAFETY: not null, and the verifier holds callers to passing a whole `Entry`.
    let entry = unsafe { &*entry };
    let idle = settings::idle_times();
    let now = clock::now();
    let Some(bucket) = maps::flows(entry.bucket) else { return 0 };
    let way = match bucket.find(&entry.key) {
        Some((way, old)) => bucket.entries[way & 3].replace(old, entry.state).then_some(way),
        None => bucket.insert(&entry.key, entry.state, now, &idle, entry.must != 0, is_stale),
    };
    way.map_or(0, |way| way as u32 + 1)
}

/// Whether an entry's flow has lost its backend, so that the entry is free for others.
#[inline(always)]
fn is_stale(key: &Key, state: State) -> bool {
    key.is_forward() && maps::backend_of(state.backend(), state.generation()).is_none()
}

/// Ports that are tried before a flow is given up.
const CANDIDATES: u32 = 16;

/// Steps from one candidate to the next, in 65,536ths of the range: the odd number nearest the golden section of it, whose
/// multiples spread evenly (Knuth, "The Art of Computer Programming", volume 3, section 6.4).
const STRIDE: u32 = 40_503;

/// The answer of [`nlb_find_snat_port`] if every candidate is taken.
pub const NO_PORT: u32 = u32::MAX;

/// A port that no living flow shows to this backend, as a memory word; 0 keeps the client's own.
///
/// A backend tells flows apart by what it sees of the client, so two flows that look alike to it (one client port, two
/// VIPs, one backend port) need different ports. A port is taken if a reply entry for it leads to a flow that still has it and
/// is not idle beyond its time.
/// The first candidate follows from the flow's hash, so that a flow that lost its entry tends to get its old port back.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_find_snat_port(tuple: *const NatTuple) -> u32 {
    if tuple.is_null() {
        return NO_PORT;
    }
    // SAFETY: not null, and the verifier holds callers to passing a whole `NatTuple`.
    let tuple = unsafe { &*tuple };
    let (first, count) = settings::snat_ports();
    if tuple.snat == 0 && is_free(tuple, tuple.client_port) {
        return 0;
    }
    let mut i = 0;
    while i < CANDIDATES {
        let fraction = tuple.seed.wrapping_add(i * STRIDE) & 0xffff;
        let offset = (fraction * count as u32) >> 16;
        let port = Be16::new(first.wrapping_add(offset as u16));
        if is_free(tuple, port) {
            return port.word() as u32;
        }
        i += 1;
    }
    NO_PORT
}

#[inline(always)]
fn is_free(tuple: &NatTuple, port: Be16) -> bool {
    let (key, bucket) = tuple.reply(port);
    let Some((_, reply)) = maps::flows(bucket).and_then(|bucket| bucket.find(&key)) else { return true };
    let Some(entry) = maps::flow_at(reply.place()) else { return true };
    let Some((flow, state)) = entry.snapshot() else { return true };
    if !(flow.is_forward() && is_at(tuple, &flow, state) && state.translated_port(&flow) == port) {
        return true;
    }
    // Taken away for good: should its client come back, it must not share the port.
    state.is_expired(clock::now(), &settings::idle_times()) && entry.remove(state)
}

/// Whether a flow goes to the same address and port, be it under another backend's number.
#[inline(always)]
fn is_at(tuple: &NatTuple, flow: &Key, state: State) -> bool {
    let Some(backend) = maps::backend_of(state.backend(), state.generation()) else { return false };
    backend.addr == tuple.backend && backend.port_for(flow.local_port()) == tuple.backend_port
}
