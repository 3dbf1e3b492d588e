//! Recording flows, out of line.
//!
//! The verifier checks a function of its own once, and not again on every path to it; inlined, the search for
//! a SNAT port alone would exceed its limit. Functions also keep code that runs once a flow apart from code
//! that runs for every packet. A call costs 9 ns. It passes plain pointers, and the verifier requires a null
//! check of each.

use nlb_common::abi::{Address, Backend};
use nlb_common::flow::{Direction, Key, State};
use nlb_common::hash;
use nlb_common::net::{Addr, Be16, L4};
use nlb_common::parse::{Ip, Segment};

use crate::capacity::{capacity_of, nlb_remove_flow};
use crate::{arguments, clock, maps, settings};

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
    /// 1 if ports with a service must not be used.
    pub avoids_services: u16,
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
        let (source, source_id) = match settings::snat_source(!backend.addr.is_v4(), seed) {
            Some(source) => (source.addr, source.id),
            None => (backend.source, backend.source_id),
        };
        NatTuple {
            backend: backend.addr,
            addr: if snat { source } else { client },
            backend_port: backend.port_for(dport),
            local: if snat { source_id } else { transparent_local(client) },
            snat: snat as u16,
            client_port: sport,
            protocol: l4 as u16,
            avoids_services: (snat && backend.has(Backend::SOURCE_IS_VIP)) as u16,
            seed: (seed >> 20) as u32,
        }
    }

    #[inline(always)]
    pub fn l4(&self) -> L4 {
        arguments::l4(self.protocol.into())
    }

    /// The key and the bucket of the reply entry for `port`.
    #[inline(always)]
    pub fn reply(&self, port: Be16) -> (Key, u32) {
        let l4 = self.l4();
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
/// eviction rank; the flow that had it does not count any more. Returns its index in the bucket plus 1, or 0
/// if no entry can be evicted.
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
    let recorded = match bucket.find(&entry.key) {
        Some((way, old)) => bucket.entries[way & 3].replace(old, entry.state).then_some((way, old)),
        None => bucket.insert(&entry.key, entry.state, now, &idle, entry.must != 0, is_stale),
    };
    let Some((way, former)) = recorded else { return 0 };
    let capacity = capacity_of(former);
    if capacity != 0 {
        nlb_remove_flow(capacity);
    }
    way as u32 + 1
}

/// Whether the backend of a flow no longer exists, so that another flow may get its entry.
#[inline(always)]
fn is_stale(key: &Key, state: State) -> bool {
    key.is_forward() && maps::backend_of(state.backend(), state.generation()).is_none()
}
