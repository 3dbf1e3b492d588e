//! Recording flows and finding SNAT ports, out of line.
//!
//! The verifier checks a function of its own once, and not again on every path to it; inlined, the search for
//! a port alone would exceed its limit. Functions also keep code that runs once a flow apart from code that
//! runs for every packet. A call costs 9 ns. It passes plain pointers, and the verifier requires a null check
//! of each.

use nlb_common::abi::{Address, Backend};
use nlb_common::flow::{Direction, Key, State};
use nlb_common::hash;
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{Ip, Segment};

use crate::{clock, maps, settings};

/// An entry that is to be written.
#[repr(C)]
pub struct Entry {
    pub key: Key,
    pub state: State,
    pub bucket: u32,
    /// 1 to evict even an established flow.
    pub must: u32,
}

/// The client as a NAT backend sees it, and so the destination of its replies.
#[repr(C)]
#[derive(Clone, Copy)]
pub struct NatTuple {
    pub backend: Addr,
    /// The address that the backend sees: our source address with SNAT, else the client's.
    pub addr: Addr,
    pub backend_port: Be16,
    /// The last part of the reply key: the id of our source address, or a hash of the client's address.
    pub local: u16,
    /// 1 if the source address is translated.
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
        // A backend that calls its own VIP and is selected itself would send its reply directly to itself.
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

    /// The key and the bucket of the reply entry for `port`.
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

/// 1 for an address in the address table. A client on this host may have such an address, and a module on
/// this host would reply to it directly.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_is_own_address(hi: u64, lo: u64) -> u32 {
    maps::address(Addr { hi, lo }).0.is(Address::ANY) as u32
}

/// The client's address in the key of a transparent reply.
#[inline(always)]
pub fn transparent_local(client: Addr) -> u16 {
    (hash::addr(client) >> 48) as u16
}

/// Writes an entry over the one with the same key or, if there is none, over the one with the highest
/// eviction rank. Returns its index in the bucket plus 1, or 0 if no entry can be evicted.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_record_flow(entry: *const Entry) -> u32 {
    if entry.is_null() {
        return 0;
    }
    // SAFETY: not null. The verifier makes callers pass a whole `Entry`.
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

/// Whether the backend of a flow no longer exists, so that another flow may get its entry.
#[inline(always)]
fn is_stale(key: &Key, state: State) -> bool {
    key.is_forward() && maps::backend_of(state.backend(), state.generation()).is_none()
}

/// Ports that are tried before the flow is refused.
const CANDIDATES: u32 = 16;

/// The step from one candidate to the next, in 65,536ths of the range: the odd number nearest to the range's
/// golden section, whose multiples spread evenly (Knuth, "The Art of Computer Programming", volume 3, section
/// 6.4).
const STRIDE: u32 = 40_503;

/// The result of [`nlb_find_snat_port`] if every candidate is taken.
pub const NO_PORT: u32 = u32::MAX;

/// A port that no live flow uses towards this backend, as a memory word; 0 keeps the client's port.
///
/// A backend tells flows apart by address and port, so two flows that would look alike to it (one client
/// port, two VIPs, one backend port) need different ports. A port is taken if its reply entry points to a
/// flow that still has this port and has not expired. The first candidate follows from the flow's hash, so a
/// flow that lost its entry tends to get the same port again.
#[unsafe(no_mangle)]
#[inline(never)]
pub extern "C" fn nlb_find_snat_port(tuple: *const NatTuple) -> u32 {
    if tuple.is_null() {
        return NO_PORT;
    }
    // SAFETY: not null. The verifier makes callers pass a whole `NatTuple`.
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
    // The expired flow loses its entry: its client may come back, and must not share the port.
    state.is_expired(clock::now(), &settings::idle_times()) && entry.remove(state)
}

/// Whether a flow goes to this backend's address and port, whatever the id of its backend is.
#[inline(always)]
fn is_at(tuple: &NatTuple, flow: &Key, state: State) -> bool {
    let Some(backend) = maps::backend_of(state.backend(), state.generation()) else { return false };
    backend.addr == tuple.backend && backend.port_for(flow.local_port()) == tuple.backend_port
}
