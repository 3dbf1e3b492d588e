//! The maps, and the look-ups in them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, PerCpuHashMap, RingBuf,
};
use aya_ebpf::macros::btf_map;
use nlb_common::abi::{
    self, ADDRESS_BUCKETS, AcceptedMac, Address, AddressBucket, Backend, BackendStats, CURRENT_ADDRESSES,
    CURRENT_PREFIXES, CURRENT_SERVICES, CURRENT_WORDS, CommonLimits, LIMIT_WINDOWS, Limit, LimitStats,
    NextHop, Punted, RedirectFilter, SERVICE_BUCKETS, SLAB_TABLES, ServerKey, Service, ServiceBucket,
    ServiceEntry, TABLE_COPIES, Upcall,
};
use nlb_common::atomic::Word;
use nlb_common::capacity::Capacity;
use nlb_common::flow::{Bucket, Entry, WAYS};
use nlb_common::maglev;
use nlb_common::net::{Addr, Be16, L4, Mac};
use nlb_common::prefix;
use nlb_common::verdict::COUNTERS;

use crate::packet::on_stack;
use crate::{clock, settings};

/// Maps that user space reads or writes through shared memory. Elements of such a map begin on a page, so an
/// element of 64 bytes lies in one cache line; elements of other maps begin behind the map's own header, in
/// the middle of a line.
const MMAPABLE: usize = BPF_F_MMAPABLE as usize;

// Lengths that depend on the configuration are set when the object is loaded; these are the smallest valid
// ones.

#[btf_map]
static ADDRESSES: Array<AddressBucket, { (TABLE_COPIES * ADDRESS_BUCKETS) as usize }, MMAPABLE> =
    Array::new();

#[btf_map]
static SERVICE_IDS: Array<ServiceBucket, { (TABLE_COPIES * SERVICE_BUCKETS) as usize }, MMAPABLE> =
    Array::new();

/// Where the current copies of tables begin, by `abi::CURRENT_*`.
#[btf_map]
static CURRENT_TABLES: Array<u64, { CURRENT_WORDS as usize }, MMAPABLE> = Array::new();

#[btf_map]
static SERVICES: Array<Service, 64, MMAPABLE> = Array::new();

/// Source prefixes: those that select pools of services, and those with rate limits.
#[btf_map]
static PREFIXES: ArrayOfMaps<Array<prefix::Bucket, { prefix::SLAB_BUCKETS as usize }, MMAPABLE>, 2> =
    ArrayOfMaps::new();

/// The shortest and the longest prefix of each scope.
#[btf_map]
static PREFIX_LENGTHS: Array<u64, 64, MMAPABLE> = Array::new();

/// The backends that QUIC's connection ids name. Most backends have no id, so memory is allocated as entries
/// come.
#[btf_map]
static QUIC_SERVERS: HashMap<ServerKey, u32, 64, { BPF_F_NO_PREALLOC as usize }> = HashMap::new();

/// The number of each pool's Maglev table.
#[btf_map]
static POOLS: Array<u64, 64, MMAPABLE> = Array::new();

#[btf_map]
static MAGLEV_TABLES: ArrayOfMaps<
    Array<maglev::Line, { (SLAB_TABLES * maglev::LINES) as usize }, MMAPABLE>,
    64,
> = ArrayOfMaps::new();

#[btf_map]
static BACKENDS: Array<Backend, 64, MMAPABLE> = Array::new();

/// The address of each VIP, by id.
#[btf_map]
static VIPS: Array<Addr, 64> = Array::new();

#[btf_map]
static FLOWS: Array<Bucket, 64, MMAPABLE> = Array::new();

/// Buckets of the flow table that this CPU found full, each with the tick in which it did.
#[btf_map]
static FLOWS_FULL: PerCpuArray<u64, FULL_BUCKETS_OF_CPU> = PerCpuArray::new();

const FULL_BUCKETS_OF_CPU: usize = 4096;

/// The flows that count against the limit of an instance, and the limit, by capacity id.
#[btf_map]
static CAPACITIES: Array<Capacity, 64, MMAPABLE> = Array::new();

#[btf_map]
static VERDICT_STATS: PerCpuArray<u64, { COUNTERS as usize }> = PerCpuArray::new();

#[btf_map]
static BACKEND_STATS: PerCpuArray<BackendStats, 64> = PerCpuArray::new();

#[btf_map]
static COMMON_LIMITS: Array<CommonLimits, 1> = Array::new();

#[btf_map]
static RATE_LIMITS: Array<Limit, 64> = Array::new();

/// When the windows of each limit are due. This is apart from the limits, which user space overwrites.
#[btf_map]
static LIMIT_STATE: Array<[Word; LIMIT_WINDOWS], 64> = Array::new();

#[btf_map]
static LIMIT_STATS: PerCpuArray<LimitStats, 64> = PerCpuArray::new();

#[btf_map]
static PUNTED: RingBuf<PuntedFrame<{ abi::PUNTED_BYTES }>, { 1 << 21 }> = RingBuf::new();

#[repr(C)]
pub struct PuntedFrame<const ROOM: usize> {
    pub head: Punted,
    pub bytes: [u8; ROOM],
}

/// The state of upcalls, by [`ServiceEntry::key`] of the destination.
#[btf_map]
static UPCALL_STATE: LruHashMap<u64, Word, { abi::UPCALL_STATES }> = LruHashMap::new();

#[btf_map]
static UPCALLS: RingBuf<Upcall, { abi::UPCALL_BYTES }> = RingBuf::new();

/// By [`Rate`], one word a CPU: the tick in the high half, and how often during that tick in the low half.
#[btf_map]
static RATES: PerCpuArray<u64, { Rate::COUNT }> = PerCpuArray::new();

/// What is limited on each CPU, because others decide how often it is needed.
#[derive(Clone, Copy)]
#[repr(u32)]
pub enum Rate {
    /// ICMP errors that are sent: a thousand a second, the default limit of Linux.
    IcmpErrors,
    /// ICMP errors that name the MTU. Senders that get none hang, so others must not use up their rate.
    TooBig,
    /// ICMP errors about tunnel packets that user space reads.
    TunnelErrors,
    /// Packets that user space fragments.
    Fragments,
}

impl Rate {
    const COUNT: usize = 4;

    #[inline(always)]
    const fn a_second(self) -> u64 {
        match self {
            Rate::IcmpErrors | Rate::TooBig | Rate::TunnelErrors => 1000,
            Rate::Fragments => 10_000,
        }
    }
}

/// Results of FIB look-ups on this CPU, by a hash of the destination.
#[btf_map]
static NEXT_HOP_CACHE: PerCpuArray<CachedNextHop, NEXT_HOPS_OF_CPU> = PerCpuArray::new();

/// The result of a FIB look-up. An unused entry is all zeros, and no packet has these addresses.
#[repr(C)]
pub struct CachedNextHop {
    pub src: Addr,
    pub dst: Addr,
    pub hop: NextHop,
    pub mtu: u64,
    /// [`next_hop_epoch`] before the look-up.
    pub epoch: u64,
}

const NEXT_HOPS_OF_CPU: usize = 4096;

/// Counts the changes of the kernel's routes, rules, neighbours, addresses and links that netlink reported to
/// user space.
#[btf_map]
static FIB_GENERATION: Array<u64, 1, MMAPABLE> = Array::new();

/// By [`abi::local_link`], the interfaces that lead to this host itself or to containers on it, which XDP
/// cannot send to; and the VLANs that end on this host, whose tags only the stack removes.
#[btf_map]
static LOCAL_LINKS: HashMap<u64, u32, { abi::LOCAL_LINKS }> = HashMap::new();

/// The own MAC address of each interface that XDP serves, by `abi::interface_slot`, and the one that all
/// have, at `abi::COMMON_MAC`.
#[btf_map]
static INTERFACE_MACS: Array<u64, { abi::INTERFACE_MACS as usize }, MMAPABLE> = Array::new();

/// Every MAC address that an interface accepts.
#[btf_map]
static ACCEPTED_MACS: HashMap<AcceptedMac, u32, { abi::ACCEPTED_MACS }> = HashMap::new();

/// This host's addresses.
#[btf_map]
static HOST_ADDRESSES: HashMap<Addr, u32, { abi::HOST_ADDRESSES }> = HashMap::new();

/// The ports of its addresses that routes for every port leave to it, by [`abi::port_bit`].
#[btf_map]
static PROTECTED_PORTS: Array<u64, { abi::PORT_WORDS as usize }> = Array::new();

/// What [`abi::RedirectFilter`] says, while failed redirects are counted.
#[btf_map]
static REDIRECTS_OF: Array<RedirectFilter, 1> = Array::new();

/// Packets that were lost because a redirect failed, by [`abi::lost_redirect`].
#[btf_map]
static LOST_REDIRECTS: PerCpuHashMap<u64, u64, { abi::LOST_REDIRECTS }> = PerCpuHashMap::new();

/// Tunnel sources that `nlb decap` trusts.
#[btf_map]
static DECAP_PEERS: LpmTrie<[u8; 16], u32, 1024> = LpmTrie::new();

#[inline(always)]
pub fn count(counter: u32) {
    if let Some(count) = VERDICT_STATS.get_ptr_mut(counter) {
        // SAFETY: this CPU's own copy, and an XDP program is not interrupted by another.
        unsafe { *count += 1 };
    }
}

#[inline(always)]
pub fn is_host_address(addr: Addr) -> bool {
    // SAFETY: the value is not read.
    on_stack(addr.words(), |key: &Addr| unsafe { HOST_ADDRESSES.get(key) }.is_some())
}

#[inline(always)]
pub fn is_protected(port: Be16) -> bool {
    let (word, bit) = abi::port_bit(port);
    PROTECTED_PORTS.get(word).is_some_and(|word| word & bit != 0)
}

/// Which failed redirects are this daemon's.
#[inline(always)]
pub fn redirect_filter() -> Option<&'static RedirectFilter> {
    REDIRECTS_OF.get(0)
}

/// Counts packets that were lost with a redirect.
#[inline(always)]
pub fn count_lost_redirects(key: u64, packets: u64) {
    if let Some(count) = LOST_REDIRECTS.get_ptr_mut(key) {
        // SAFETY: this CPU's own copy, and tracepoints in XDP's path are not interrupted by one another.
        unsafe { *count += packets };
    } else {
        // A full map has room for no further interface.
        let _ = LOST_REDIRECTS.insert(key, packets, BPF_NOEXIST as u64);
    }
}

/// Counts a packet from a client to a backend.
#[inline(always)]
pub fn count_forward(backend: u16, bytes: usize) {
    if let Some(stats) = backend_stats(backend) {
        stats.packets += 1;
        stats.bytes += bytes as u64;
    }
}

/// Counts a packet from a backend to a client.
#[inline(always)]
pub fn count_reply(backend: u16, bytes: usize, resets: bool) {
    if let Some(stats) = backend_stats(backend) {
        stats.reply_packets += 1;
        stats.reply_bytes += bytes as u64;
        stats.resets += resets as u64;
    }
}

#[inline(always)]
pub fn count_new_flow(backend: u16) {
    if let Some(stats) = backend_stats(backend) {
        stats.new_flows += 1;
    }
}

#[inline(always)]
fn backend_stats(id: u16) -> Option<&'static mut BackendStats> {
    // SAFETY: as in `count`.
    BACKEND_STATS.get_ptr_mut(id as u32).map(|stats| unsafe { &mut *stats })
}

/// Whether this CPU may do it once more during this tick.
#[inline(always)]
pub fn is_within(rate: Rate) -> bool {
    let tick = (clock::now() as u64) << 32;
    let Some(done) = RATES.get_ptr_mut(rate as u32) else { return false };
    // SAFETY: as in `count`.
    let done = unsafe { &mut *done };
    if *done & !0xffff_ffff != tick {
        *done = tick;
    }
    *done += 1;
    *done & 0xffff_ffff <= rate.a_second() * clock::tick() / 1_000_000_000
}

/// The epoch in which a FIB look-up stays valid: it ends with the tick, and with any change of the FIB.
#[inline(always)]
pub fn next_hop_epoch() -> u64 {
    FIB_GENERATION.get(0).map_or(0, |changes| *changes << 32) | clock::ticks() as u64
}

#[inline(always)]
pub fn cached_next_hop(hash: u64) -> Option<&'static mut CachedNextHop> {
    let entry = NEXT_HOP_CACHE.get_ptr_mut(hash as u32 & (NEXT_HOPS_OF_CPU as u32 - 1));
    // SAFETY: as in `count`.
    entry.map(|entry| unsafe { &mut *entry })
}

/// What an address is to the balancer, and whether any backend replies to its clients' own addresses.
#[inline(always)]
pub fn address(addr: Addr) -> (AddressInfo, bool) {
    let (index, table) = (Address::bucket(addr), current(CURRENT_ADDRESSES));
    let Some(bucket) = ADDRESSES.get(table + index) else { return (AddressInfo::default(), false) };
    let transparent = bucket[0].flags & Address::TRANSPARENT != 0;
    if let Some(found) = find_address(bucket, addr) {
        return (found, transparent);
    }
    if bucket[0].flags & Address::OVERFLOWED == 0 {
        return (AddressInfo::default(), transparent);
    }
    let next = (index + 1) & (ADDRESS_BUCKETS - 1);
    let found = ADDRESSES.get(table + next).and_then(|bucket| find_address(bucket, addr));
    (found.unwrap_or_default(), transparent)
}

/// Where the current copy of a table begins.
#[inline(always)]
fn current(table: u32) -> u32 {
    CURRENT_TABLES.get(table).map_or(0, |first| *first as u32)
}

#[inline(always)]
fn find_address(bucket: &'static AddressBucket, addr: Addr) -> Option<AddressInfo> {
    let entry = bucket.iter().find(|entry| entry.addr == addr && entry.flags & Address::ANY != 0)?;
    Some(AddressInfo {
        flags: entry.flags,
        id: entry.id,
        any_tcp: entry.any_port.tcp,
        any_udp: entry.any_port.udp,
    })
}

/// What an address is to the balancer; without flags, nothing. It is passed by value, because the verifier
/// would follow a reference from each place that it can point to. It is no `Option`, because the compiler
/// would copy the fields of `None`, and the verifier refuses to let uninitialised fields be read.
#[derive(Clone, Copy, Default)]
pub struct AddressInfo {
    flags: u32,
    pub id: u16,
    any_tcp: u16,
    any_udp: u16,
}

impl AddressInfo {
    /// Whether it has one of these flags.
    #[inline(always)]
    pub fn is(&self, flags: u32) -> bool {
        self.flags & flags != 0
    }

    /// The service of every port without one of its own; 0 means none.
    #[inline(always)]
    pub fn any_port(&self, l4: L4) -> u16 {
        match l4 {
            L4::Tcp => self.any_tcp,
            L4::Udp => self.any_udp,
        }
    }
}

/// Whether this port of the VIP with this id has a service of its own.
#[inline(always)]
pub fn has_service(vip: u16, port: Be16, l4: L4) -> bool {
    service_id(&AddressInfo { id: vip, ..Default::default() }, port, l4) != 0
}

/// The service of a VIP's port; 0 means none.
#[inline(always)]
pub fn service_id(vip: &AddressInfo, port: Be16, l4: L4) -> u16 {
    let any_port = vip.any_port(l4);
    let key = ServiceEntry::key(vip.id, port, l4);
    let (index, table) = (ServiceEntry::bucket(key), current(CURRENT_SERVICES));
    let Some(bucket) = SERVICE_IDS.get(table + index) else { return any_port };
    if let Some(entry) = bucket.iter().find(|entry| entry.key == key) {
        return entry.service;
    }
    if bucket[0].overflowed == 0 {
        return any_port;
    }
    let next = (index + 1) & (SERVICE_BUCKETS - 1);
    SERVICE_IDS
        .get(table + next)
        .and_then(|bucket| bucket.iter().find(|entry| entry.key == key))
        .map_or(any_port, |entry| entry.service)
}

#[inline(always)]
pub fn service(id: u16) -> Option<&'static Service> {
    SERVICES.get(id as u32)
}

/// The value of the longest source prefix of a scope that covers a client.
#[inline(always)]
pub fn longest_prefix(scope: prefix::Scope, client: Addr) -> Option<u32> {
    match nlb_longest_prefix(scope.into(), client.hi, client.lo) {
        prefix::NONE => None,
        value => Some(value),
    }
}

/// The word of [`longest_prefix`] or `NONE`, out of line for the reasons that `record` gives.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_longest_prefix(scope: u32, hi: u64, lo: u64) -> u32 {
    let Some(lengths) = PREFIX_LENGTHS.get(scope) else { return prefix::NONE };
    let Some(table) = CURRENT_TABLES.get(CURRENT_PREFIXES) else { return prefix::NONE };
    prefix::longest(scope as u16, Addr { hi, lo }, prefix::Lengths::from_word(*lengths), |key| {
        match nlb_find_prefix(key.tag, key.addr.hi, key.addr.lo, *table) {
            0 => None,
            word => Some(prefix::Value::from_word(word)),
        }
    })
}

/// The word of a prefix in the table; 0 if it is not there. This is a function apart from the search, so that
/// the verifier does not check it for each step.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_find_prefix(tag: u64, hi: u64, lo: u64, table: u64) -> u64 {
    let table = prefix::Table::from_word(table);
    let found = prefix::find(&prefix::Key { addr: Addr { hi, lo }, tag }, table, |bucket| {
        let (slab, place) = table.place(bucket);
        PREFIXES.get_value(slab, &place)
    });
    found.map_or(0, |value| tag | value.word())
}

/// The backend that this server id names in connection ids of its service; 0 means none.
#[inline(always)]
pub fn quic_server(server: &ServerKey) -> u16 {
    // SAFETY: one word, which user space writes at once.
    unsafe { QUIC_SERVERS.get(server) }.map_or(0, |backend| *backend as u16)
}

/// The backend in a slot of a pool's Maglev table, or what follows the slots; 0 if the pool is empty.
#[inline(always)]
pub fn maglev(pool: u16, slot: u32) -> u16 {
    let (line, place) = maglev::place(slot);
    let table = POOLS.get(pool as u32).map_or(abi::EMPTY_TABLE, |table| *table as u32);
    let (slab, line) = (table / SLAB_TABLES, table % SLAB_TABLES * maglev::LINES + line);
    match MAGLEV_TABLES.get_value(slab, &line) {
        Some(line) => line[place & 3],
        None => 0,
    }
}

#[inline(always)]
pub fn backend(id: u16) -> Option<&'static Backend> {
    BACKENDS.get(id as u32).filter(|backend| backend.has(Backend::PRESENT))
}

/// The backend with this id, if it is still of this generation.
#[inline(always)]
pub fn backend_of(id: u16, generation: u8) -> Option<&'static Backend> {
    backend(id).filter(|backend| backend.generation == generation)
}

/// The capacity that flows of this backend count against, also when the backend is gone; 0 means none.
#[inline(always)]
pub fn capacity_of_backend(id: u16, generation: u8) -> u16 {
    let row = BACKENDS.get(id as u32).filter(|backend| backend.generation == generation);
    row.map_or(0, |backend| backend.capacity)
}

#[inline(always)]
pub fn capacity(id: u16) -> Option<&'static Capacity> {
    CAPACITIES.get(id as u32)
}

#[inline(always)]
pub fn vip(id: u16) -> Option<Addr> {
    VIPS.get(id as u32).copied()
}

/// The index of a flow's bucket.
#[inline(always)]
pub fn flow_bucket(hash: u64) -> u32 {
    hash as u32 & settings::flow_mask()
}

#[inline(always)]
pub fn flows(bucket: u32) -> Option<&'static Bucket> {
    FLOWS.get(bucket)
}

/// The word in which this CPU records that the bucket was full, and in which tick.
#[inline(always)]
pub fn full_bucket(bucket: u32) -> Option<&'static mut u64> {
    // SAFETY: as in `count`.
    FLOWS_FULL.get_ptr_mut(bucket & (FULL_BUCKETS_OF_CPU as u32 - 1)).map(|noted| unsafe { &mut *noted })
}

/// The entry with the number that [`place`] gives.
#[inline(always)]
pub fn flow_at(place: u32) -> Option<&'static Entry> {
    let bucket = flows(place / WAYS as u32)?;
    Some(&bucket.entries[place as usize % WAYS])
}

/// The number of an entry in the whole table.
#[inline(always)]
pub fn place(bucket: u32, way: usize) -> u32 {
    bucket * WAYS as u32 + way as u32
}

#[inline(always)]
pub fn common_limits() -> CommonLimits {
    COMMON_LIMITS.get(0).copied().unwrap_or_default()
}

/// A limit, and when its windows are due.
#[inline(always)]
pub fn limit(id: u16) -> Option<(&'static Limit, &'static [Word; LIMIT_WINDOWS])> {
    Some((RATE_LIMITS.get(id as u32)?, LIMIT_STATE.get(id as u32)?))
}

#[inline(always)]
pub fn limit_stats(id: u16) -> Option<&'static mut LimitStats> {
    // SAFETY: as in `count`.
    LIMIT_STATS.get_ptr_mut(id as u32).map(|stats| unsafe { &mut *stats })
}

#[inline(always)]
pub fn is_local_link(ifindex: u32) -> bool {
    // SAFETY: the value is not read.
    unsafe { LOCAL_LINKS.get(abi::local_link(ifindex, 0)) }.is_some()
}

/// Whether the host has a device for a VLAN of an interface.
#[inline(always)]
pub fn is_local_vlan(ifindex: u32, vlan: u16) -> bool {
    // SAFETY: as above.
    unsafe { LOCAL_LINKS.get(abi::local_link(ifindex, vlan)) }.is_some()
}

/// Whether an interface accepts frames to a MAC address. Most frames are to the interface's own.
#[inline(always)]
pub fn accepts_mac(mac: Mac, ifindex: impl FnOnce() -> u32) -> bool {
    let is = |slot, word| INTERFACE_MACS.get(slot).is_some_and(|own| *own == word);
    is(abi::COMMON_MAC, abi::common_mac(mac)) || {
        let ifindex = ifindex();
        is(abi::interface_slot(ifindex), abi::interface_mac(ifindex, mac))
            || nlb_accepts_mac(ifindex, mac.first, mac.last as u32) != 0
    }
}

/// The same by the map of all accepted addresses, out of line for the reasons that `record` gives.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_accepts_mac(ifindex: u32, first: u32, last: u32) -> u32 {
    let is_listed = |key: AcceptedMac| {
        on_stack([key.ifindex, key.first, key.last], |key: &AcceptedMac| {
            // SAFETY: the value is not read.
            unsafe { ACCEPTED_MACS.get(key) }.is_some()
        })
    };
    (is_listed(AcceptedMac { ifindex, first, last }) || is_listed(AcceptedMac::any(ifindex))) as u32
}

#[inline(always)]
pub fn is_peer(addr: Addr) -> bool {
    let [a, b, c, d] = addr.words();
    on_stack([128, a, b, c, d], |key: &Key<[u8; 16]>| DECAP_PEERS.get(key).is_some())
}

#[inline(always)]
pub fn punted() -> &'static RingBuf<PuntedFrame<{ abi::PUNTED_BYTES }>, { 1 << 21 }> {
    &PUNTED
}

/// The state of the upcall about a destination. The kernel may reuse the element for another destination at
/// any time; then the word is read and exchanged as that one's, at the cost of one upcall too many or too
/// few.
#[inline(always)]
pub fn upcall_state(key: u64) -> Option<&'static Word> {
    // SAFETY: map values stay readable while the program runs, and a `Word` is made for use by several CPUs.
    unsafe { UPCALL_STATE.get(key) }
}

/// Inserts the state of a first upcall. `Ok(false)` if another CPU was faster.
#[inline(always)]
pub fn insert_upcall_state(key: u64, word: u64) -> Result<bool, ()> {
    const EEXIST: i32 = -17;
    match UPCALL_STATE.insert(key, Word::new(word), BPF_NOEXIST as u64) {
        Ok(()) => Ok(true),
        Err(EEXIST) => Ok(false),
        Err(_) => Err(()),
    }
}

#[inline(always)]
pub fn upcalls() -> &'static RingBuf<Upcall, { abi::UPCALL_BYTES }> {
    &UPCALLS
}
