//! The layout of every map, shared byte for byte by the kernel programs and user space.
//!
//! Ids are 16 bits wide, and 0 means unset, in every map that ids index. Tables that user space replaces
//! (addresses, services, Maglev tables) exist in several copies: user space fills one that no packet uses,
//! and one store of a word makes it current, so no packet reads a half-written table.

use core::ops::{Add, Sub};

use crate::frame::Wire;
use crate::limit::Window;
use crate::net::{Addr, Be16, L4, Mac};
use crate::{hash, maglev, quic};

/// The number of buckets of the set-associative tables. An entry lies in the bucket that its hash selects or,
/// if that one is full, in the next. The kernel looks into the next bucket only if the first has its overflow
/// flag set.
pub const ADDRESS_BUCKETS: u32 = 4096;
pub const SERVICE_BUCKETS: u32 = 16_384;

pub const ADDRESS_WAYS: usize = 4;
pub const SERVICE_WAYS: usize = 4;

/// Copies of the address and service tables. One is current; user space fills the others in turn.
pub const TABLE_COPIES: u32 = 8;

/// Indexes of the words that select the current tables. The words of addresses and services hold the index of
/// the first bucket, that of source prefixes a [`crate::prefix::Table`].
pub const CURRENT_ADDRESSES: u32 = 0;
pub const CURRENT_SERVICES: u32 = 1;
pub const CURRENT_PREFIXES: u32 = 2;
pub const CURRENT_WORDS: u32 = 3;

/// Maglev tables in one map, one after the other.
pub const SLAB_TABLES: u32 = 16;

/// The Maglev table of pools that do not exist: no slot has a backend.
pub const EMPTY_TABLE: u32 = 0;

/// Addresses that concern the balancer: VIPs, our source addresses, and NAT backends whose replies pass us.
pub type AddressBucket = [Address; ADDRESS_WAYS];

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Address {
    pub addr: Addr,
    /// The kinds of the address: a sum of the `Address::` flags; 0 marks a free entry.
    pub flags: u32,
    /// The id of a VIP or a source address, part of the keys of flows.
    pub id: u16,
    pub _pad: u16,
    /// For a VIP, the services of every port without a service of its own.
    pub any_port: AnyPort,
}

/// The services of every port of a VIP, by L4 protocol.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AnyPort {
    pub tcp: u16,
    pub udp: u16,
    pub _pad: u32,
}

impl Address {
    /// A virtual IP, which clients connect to.
    pub const VIP: u32 = 1;
    /// Our source address, which backends reply to.
    pub const SOURCE: u32 = 2;
    /// A NAT backend that replies to its clients' own addresses, through us.
    pub const BACKEND: u32 = 4;
    /// On a VIP: drop packets to ports without a service, instead of passing them to the kernel.
    pub const DROP_CLOSED: u32 = 8;
    /// On a VIP: raise upcalls for ports without a service.
    pub const UPCALL: u32 = 16;
    /// Any of the kinds above: the entry is in use.
    pub const ANY: u32 = Self::VIP | Self::SOURCE | Self::BACKEND;

    /// On the first entry of every bucket: the table has `BACKEND` entries, so source addresses have to be
    /// looked up.
    pub const TRANSPARENT: u32 = 1 << 30;
    /// On the first entry of a bucket: look into the next bucket too.
    pub const OVERFLOWED: u32 = 1 << 31;

    #[inline(always)]
    pub const fn bucket(addr: Addr) -> u32 {
        hash::addr(addr) as u32 & (ADDRESS_BUCKETS - 1)
    }
}

/// Services by VIP, port and protocol.
pub type ServiceBucket = [ServiceEntry; SERVICE_WAYS];

#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServiceEntry {
    /// [`ServiceEntry::key`]; 0 marks a free entry.
    pub key: u64,
    pub service: u16,
    /// 1 on the first entry of a bucket: look into the next bucket too.
    pub overflowed: u16,
    pub _pad: u32,
}

impl ServiceEntry {
    /// Never 0, because the protocol is not.
    #[inline(always)]
    pub const fn key(vip: u16, port: Be16, l4: L4) -> u64 {
        vip as u64 | (port.word() as u64) << 16 | (l4 as u64) << 32
    }

    #[inline(always)]
    pub const fn bucket(key: u64) -> u32 {
        hash::word(key) as u32 & (SERVICE_BUCKETS - 1)
    }
}

/// A service, by service id.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Service {
    /// The pool of clients without a source prefix; 0 means none.
    pub pool: u16,
    pub flags: u16,
    pub limits: Limits,
    /// The lengths of the server ids in QUIC connection ids, if the flag `QUIC` is set.
    pub quic: quic::Lengths,
}

impl Service {
    /// Source prefixes select the pools of the clients that they cover.
    pub const BY_SOURCE: u16 = 1;
    /// Answer a client that cannot be served with a RST or an ICMP unreachable, instead of dropping its
    /// packets.
    pub const REJECT: u16 = 2;
    /// Connection ids of QUIC may name the backend. TCP services do not have this flag.
    pub const QUIC: u16 = 4;
    /// Only routes for every port cover the service's port. If the VIP is an address of this host, they leave
    /// protected ports and the host's own connections to it.
    pub const EVERY_PORT: u16 = 8;
}

/// The key of a backend that connection ids of QUIC name.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServerKey {
    pub id: u64,
    /// The service, the configuration, and the length of the id.
    scope: u64,
}

impl ServerKey {
    #[inline(always)]
    pub const fn new(service: u16, server: &quic::Server) -> Self {
        let scope = service as u64 | (server.config as u64) << 16 | (server.len as u64) << 24;
        ServerKey { id: server.id, scope }
    }

    pub const fn service(&self) -> u16 {
        self.scope as u16
    }

    pub const fn server(&self) -> quic::Server {
        quic::Server { config: (self.scope >> 16) as u8, len: (self.scope >> 24) as u8, id: self.id }
    }
}

/// A backend, by backend id. One cache line.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backend {
    pub addr: Addr,
    /// Our address towards it: the source of SNAT and of outer headers.
    pub source: Addr,
    pub hop: NextHop,
    /// 0 keeps the client's destination port.
    pub port: Be16,
    /// Distinguishes this backend from earlier ones with the same id.
    pub generation: u8,
    pub mode: u8,
    pub flags: u8,
    /// The length of the prefix of the backend's link, in v4-mapped bits; clients within it are on that link.
    pub link_prefix: u8,
    /// The id of `source` among the addresses.
    pub source_id: u16,
    /// The longest IP packet, outer header included, that may be sent to it.
    pub mtu: u16,
    /// The limits of the route that the backend serves.
    pub limits: Limits,
    /// The id of its instance's capacity; 0 means unlimited. It stays in the row when the backend is gone, so
    /// that its flows can be taken off the count.
    pub capacity: u16,
}

impl Backend {
    /// In use. Flows to a backend without this flag are stale.
    pub const PRESENT: u8 = 1;
    /// Takes no new flows: UDP flows move, TCP flows stay.
    pub const DRAINING: u8 = 2;
    /// `hop` and `source` are known.
    pub const RESOLVED: u8 = 4;
    /// Every client's address is translated to `source` (SNAT).
    pub const SNAT_ALWAYS: u8 = 8;
    /// The addresses of clients on the backend's link are translated to `source`.
    pub const SNAT_ON_LINK: u8 = 16;
    /// On this host: a process, or a container behind a bridge. `hop` has no MAC addresses, and packets are
    /// sent to it from TC ingress and not from XDP.
    pub const LOCAL: u8 = 32;
    /// `source` is also a VIP, so SNAT must not use a port that has a service.
    pub const SOURCE_IS_VIP: u8 = 64;
    /// UDP flows move when the Maglev table has another backend in their slot.
    pub const UDP_REBALANCE: u8 = 128;

    pub const NAT: u8 = 0;
    pub const DSR_L2: u8 = 1;
    pub const DSR_IPIP: u8 = 2;
    pub const GUE: u8 = 3;

    #[inline(always)]
    pub const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// The port of the backend for flows to this port of the service.
    #[inline(always)]
    pub const fn port_for(&self, service_port: Be16) -> Be16 {
        if self.port.is_zero() { service_port } else { self.port }
    }
}

/// The next hop: both MAC addresses of the link header, and the interface. The MAC addresses lie in naturally
/// aligned words, so that the compiler makes no loads that the verifier refuses on the stack.
#[repr(C)]
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct NextHop {
    dst_first: u32,
    dst_last: u16,
    src_last: u16,
    src_first: u32,
    pub ifindex: u32,
}

impl NextHop {
    #[inline(always)]
    pub const fn new(dst: Mac, src: Mac, ifindex: u32) -> Self {
        NextHop {
            dst_first: dst.first,
            dst_last: dst.last,
            src_last: src.last,
            src_first: src.first,
            ifindex,
        }
    }

    #[inline(always)]
    pub const fn dst(&self) -> Mac {
        Mac { first: self.dst_first, last: self.dst_last }
    }

    #[inline(always)]
    pub const fn src(&self) -> Mac {
        Mac { first: self.src_first, last: self.src_last }
    }

    /// A next hop whose MAC address the kernel's stack resolves.
    #[inline(always)]
    pub const fn without_macs(ifindex: u32) -> Self {
        Self::new(Mac::NONE, Mac::NONE, ifindex)
    }
}

impl core::fmt::Debug for NextHop {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{:?} from {:?} dev {}", self.dst(), self.src(), self.ifindex)
    }
}

/// Per-CPU counts of a backend.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct BackendStats {
    pub new_flows: u64,
    /// IP packets from clients and their bytes, as received.
    pub packets: u64,
    pub bytes: u64,
    /// Replies, where they pass us.
    pub reply_packets: u64,
    pub reply_bytes: u64,
    /// TCP resets from the backend.
    pub resets: u64,
}

impl Add for BackendStats {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        BackendStats {
            new_flows: self.new_flows + other.new_flows,
            packets: self.packets + other.packets,
            bytes: self.bytes + other.bytes,
            reply_packets: self.reply_packets + other.reply_packets,
            reply_bytes: self.reply_bytes + other.reply_bytes,
            resets: self.resets + other.resets,
        }
    }
}

impl Sub for BackendStats {
    type Output = Self;

    fn sub(self, other: Self) -> Self {
        BackendStats {
            new_flows: self.new_flows - other.new_flows,
            packets: self.packets - other.packets,
            bytes: self.bytes - other.bytes,
            reply_packets: self.reply_packets - other.reply_packets,
            reply_bytes: self.reply_bytes - other.reply_bytes,
            resets: self.resets - other.resets,
        }
    }
}

/// Two chains of rate limits: the id of the first limit for new flows, and of the first for all packets. The
/// others follow by [`Limit::next`]; 0 means none.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    pub flows: u16,
    pub packets: u16,
}

impl Limits {
    pub const NONE: Limits = Limits { flows: 0, packets: 0 };

    /// As the value of a map.
    #[inline(always)]
    pub const fn word(self) -> u32 {
        self.flows as u32 | (self.packets as u32) << 16
    }

    #[inline(always)]
    pub const fn from_word(word: u32) -> Self {
        Limits { flows: word as u16, packets: (word >> 16) as u16 }
    }
}

/// The rate limits that all services have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommonLimits {
    pub all: Limits,
    /// Whether any source prefix has limits of each kind: 0 or 1.
    pub by_source: Limits,
}

/// A rate limit, by limit id. A packet has to be admitted by each of its windows.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    pub windows: [Window; LIMIT_WINDOWS],
    /// The unit that the limit counts.
    pub unit: u16,
    /// The id of the next limit in the chain.
    pub next: u16,
    pub _pad: u32,
}

/// A second, a minute and an hour.
pub const LIMIT_WINDOWS: usize = 3;

/// The longest chain of limits: of all services, of a service, of a route, or of a source with all prefixes
/// that cover it.
pub const LIMIT_CHAIN: usize = 16;

impl Limit {
    pub const FLOWS: u16 = 0;
    pub const PACKETS: u16 = 1;
    pub const BYTES: u16 = 2;
}

/// Per-CPU counts of a rate limit, in its unit.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitStats {
    pub passed: u64,
    pub refused: u64,
}

/// The index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;

/// The most links that lead to this host itself or to its containers, and VLANs that end there.
pub const LOCAL_LINKS: usize = 4096;

/// The key of a local link; with a VLAN id, the key of a VLAN for which this host has a device on that link.
#[inline(always)]
pub const fn local_link(ifindex: u32, vlan: u16) -> u64 {
    ifindex as u64 | (vlan as u64) << 32
}

/// Which failed redirects are counted: those from devices in the network namespace with this cookie; and
/// where the kernel's structs have the fields that say so, as offsets in bytes.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RedirectFilter {
    pub cookie: u64,
    /// `net_device.ifindex`
    pub dev_ifindex: u32,
    /// `net_device.nd_net.net`
    pub dev_net: u32,
    /// `net.net_cookie`
    pub net_cookie: u32,
    pub _pad: u32,
}

/// The most pairs of an interface and an error that failed redirects are counted by.
pub const LOST_REDIRECTS: usize = 1024;

/// The key of packets that a redirect to an interface lost, with the kernel's error as a negative number.
#[inline(always)]
pub const fn lost_redirect(ifindex: u32, error: i32) -> u64 {
    ifindex as u64 | (error.unsigned_abs() as u64) << 32
}

/// The interface and the positive error number of such a key.
pub const fn lost_redirect_of(key: u64) -> (u32, i32) {
    (key as u32, (key >> 32) as i32)
}

/// The most addresses of this host.
pub const HOST_ADDRESSES: usize = 4096;

/// The length of the bitmap of protected ports, in words.
pub const PORT_WORDS: u32 = 1024;

/// The word and the bit of a port in that bitmap.
#[inline(always)]
pub const fn port_bit(port: Be16) -> (u32, u64) {
    (port.get() as u32 / 64, 1 << (port.get() % 64))
}

/// The interfaces that the map of own MAC addresses has room for.
const INTERFACE_SLOTS: u32 = 64;

/// The place in that map of the MAC address that all interfaces have: there is one interface, or the ports of
/// one bond. Packets then need not look at the interface's index.
pub const COMMON_MAC: u32 = INTERFACE_SLOTS;

/// The length of the map.
pub const INTERFACE_MACS: u32 = INTERFACE_SLOTS + 1;

/// The place of an interface in the map.
#[inline(always)]
pub const fn interface_slot(ifindex: u32) -> u32 {
    ifindex % INTERFACE_SLOTS
}

/// A MAC address as one word.
#[inline(always)]
pub const fn common_mac(mac: Mac) -> u64 {
    mac.first as u64 | (mac.last as u64) << 32
}

/// An interface and a MAC address as one word. The index is complete with [`interface_slot`] up to 2^22, and
/// the kernel counts it up by one for each new interface.
#[inline(always)]
pub const fn interface_mac(ifindex: u32, mac: Mac) -> u64 {
    common_mac(mac) | ((ifindex / INTERFACE_SLOTS) as u64) << 48
}

/// The most MAC addresses that interfaces accept beside their own.
pub const ACCEPTED_MACS: usize = 4096;

/// A destination MAC address that an interface accepts.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AcceptedMac {
    pub ifindex: u32,
    pub first: u32,
    pub last: u32,
}

impl AcceptedMac {
    #[inline(always)]
    pub const fn new(ifindex: u32, mac: Mac) -> Self {
        AcceptedMac { ifindex, first: mac.first, last: mac.last as u32 }
    }

    pub const fn mac(self) -> Mac {
        Mac { first: self.first, last: self.last as u16 }
    }

    /// The entry of an interface that accepts every address.
    #[inline(always)]
    pub const fn any(ifindex: u32) -> Self {
        AcceptedMac::new(ifindex, Mac::BROADCAST)
    }
}

/// A packet for user space. The frame follows, from the Ethernet header on.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Punted {
    /// For `NEXT_HOP`, the address whose MAC is not known yet.
    pub next_hop: Addr,
    /// The interface that the packet came from.
    pub ifindex: u32,
    /// The length of the frame. User space gets the beginning of a frame that is only read.
    pub len: u32,
    /// What user space does with the packet: one of the constants below.
    pub task: u16,
    /// For `FRAGMENT` and `TOO_BIG`, the longest IP packet that fits.
    pub mtu: u16,
    /// 1 if the program at TC ingress punted it, 0 if that for XDP did.
    pub at_tc: u32,
}

impl Punted {
    /// Runs the program on it again when the next hop is known.
    pub const NEXT_HOP: u16 = 0;
    /// Runs the program on its fragments.
    pub const FRAGMENT: u16 = 1;
    /// Answers it with an ICMP error that names the MTU.
    pub const TOO_BIG: u16 = 2;
    /// Reads it: an ICMP error about a tunnel packet that this node may have sent.
    pub const TUNNEL_ERROR: u16 = 3;
}

/// The longest frame that waits for its next hop, and what is read of others.
pub const PUNTED_BYTES: usize = 2048;

/// The longest frame of a driver that is punted to be fragmented: a jumbo frame.
pub const PUNTED_FRAME_BYTES: usize = 9216;

/// The longest datagram of a local stack: 65,535 bytes and the Ethernet header.
pub const PUNTED_DATAGRAM_BYTES: usize = 65_552;

/// An upcall: the first packet to a destination without a service, as user space receives it.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Upcall {
    /// [`ServiceEntry::key`] of the destination, the key of its state.
    pub key: u64,
    /// When the upcall was raised, in nanoseconds by the programs' clock.
    pub asked_at: u64,
    pub vip: Addr,
    pub client: Addr,
    pub port: Be16,
    pub client_port: Be16,
    /// The L4 protocol's number.
    pub protocol: u16,
    pub _pad: u16,
}

/// What the fragments of one packet have in common.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentKey {
    pub src: Addr,
    pub dst: Addr,
    /// In memory order.
    pub id: u32,
    /// The protocol, for IPv4, whose ids are unique by protocol; 0 for IPv6.
    pub protocol: u32,
}

/// Where a packet's first fragment went.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FragmentEntry {
    /// The addresses after translation.
    pub src: Addr,
    pub dst: Addr,
    pub backend: u16,
    pub service: u16,
    /// The tick in which the first fragment was sent.
    pub at: u16,
    /// The backend's generation.
    pub generation: u8,
    /// Where the other fragments go: one of the constants below.
    pub path: u8,
    /// The flow's hash.
    pub hash: u64,
}

impl FragmentEntry {
    pub const NONE: FragmentEntry = FragmentEntry {
        src: Addr::UNSPECIFIED,
        dst: Addr::UNSPECIFIED,
        backend: 0,
        service: 0,
        at: 0,
        generation: 0,
        path: 0,
        hash: 0,
    };

    /// To the backend.
    pub const TO_BACKEND: u8 = 0;
    /// From the backend to the client.
    pub const TO_CLIENT: u8 = 1;
    /// To user space, where the first one is: it was too long.
    pub const PUNTED: u8 = 2;
    /// To the kernel's stack, and there to the program at TC ingress.
    pub const LOCAL: u8 = 3;
}

/// The most packets whose first fragment is stored.
pub const FRAGMENT_ENTRIES: usize = 16_384;

/// The most destinations with the state of an upcall. Beyond that, the kernel evicts those that were longest
/// without a packet.
pub const UPCALL_STATES: usize = 8192;

/// The ring buffer of upcalls: 1,024 of them.
pub const UPCALL_BYTES: usize = 1 << 16;

/// Load-time settings of the programs: the verifier knows their values, and prunes code that they disable.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// The number of buckets of the flow table, less 1; the number is a power of two.
    pub flow_mask: u32,
    /// Ticks are jiffies shifted right by this: 512 ms at 250 and 1,000 Hz, 640 ms at 100 Hz, 853 ms at 300
    /// Hz.
    pub tick_shift: u32,
    /// Idle times in ticks after which a flow may be evicted: before it is established, while it is, after
    /// FIN or RST, and for UDP.
    pub opening: u16,
    pub established: u16,
    pub closing: u16,
    pub udp: u16,
    /// The first source port of SNAT, and the number of ports.
    pub snat_first: u16,
    pub snat_count: u16,
    /// The step from one port that a search tries to the next, less than their number and without a common
    /// divisor, so that it leads through all of them.
    pub snat_stride: u16,
    /// The ticks for which the port of a closed connection rests.
    pub time_wait: u16,
    /// 1 to send packets by XDP_TX through the interface they came from, 0 to redirect them there.
    pub use_tx: u32,
    /// The length of a jiffy in nanoseconds.
    pub jiffy: u32,
    /// 1 if source addresses for SNAT are set.
    pub snat_addresses: u32,
}

/// The most source addresses of SNAT in a family.
pub const SNAT_SOURCES: usize = 16;

/// Our source addresses for SNAT, if they are set, in place of those that the kernel's routes prefer.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatSources {
    pub addrs: [SnatSource; SNAT_SOURCES],
    /// How many there are; 0 means that they are not set.
    pub count: u32,
    pub _pad: u32,
}

/// A source address, and its id among the addresses.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnatSource {
    pub addr: Addr,
    pub id: u16,
    pub _pad: [u16; 3],
}

impl SnatSources {
    pub const NONE: SnatSources = SnatSources {
        addrs: [SnatSource { addr: Addr::UNSPECIFIED, id: 0, _pad: [0; 3] }; SNAT_SOURCES],
        count: 0,
        _pad: 0,
    };
}

macro_rules! sizes {
    ($($type:ty = $size:literal),+ $(,)?) => { $(const _: () = assert!(size_of::<$type>() == $size);)+ };
}
sizes!(
    Address = 32,
    ServiceEntry = 16,
    Service = 12,
    ServerKey = 16,
    Backend = 64,
    NextHop = 16,
    BackendStats = 48,
    Limits = 4,
    CommonLimits = 8,
    Limit = 104,
    LimitStats = 16,
    Punted = 32,
    Upcall = 56,
    FragmentKey = 40,
    FragmentEntry = 48,
    AcceptedMac = 12,
    Settings = 36,
    SnatSource = 24,
    SnatSources = 392,
    RedirectFilter = 24,
    crate::sources::Sources = 24,
);

// The records of ring buffers, as user space reads them. SAFETY: `repr(C)` made of integers, with every gap
// declared as a field, as the size assertions above bear out.
unsafe impl Wire for Punted {}
// SAFETY: as above.
unsafe impl Wire for Upcall {}

#[cfg(feature = "user")]
mod user {
    use super::*;

    macro_rules! pod {
        ($($type:ty),+ $(,)?) => {$(
            // SAFETY: `repr(C)` made of integers and arrays of them, with every gap declared as a field, as
            // the size assertions above bear out.
            unsafe impl aya::Pod for $type {}
        )+};
    }
    pod!(
        Address,
        ServiceEntry,
        Service,
        ServerKey,
        Backend,
        BackendStats,
        CommonLimits,
        Limit,
        LimitStats,
        AcceptedMac,
        RedirectFilter,
        Settings,
        SnatSource,
        SnatSources,
        FragmentKey,
        FragmentEntry,
        crate::sources::Sources,
    );
}

/// The elements of a Maglev table have room for all slots.
const _: () = assert!(maglev::LINES * maglev::SLOTS_PER_LINE >= maglev::SLOTS);
