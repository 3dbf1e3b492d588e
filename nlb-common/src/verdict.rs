//! How the data path ends with a packet: every exit has one name and one counter.
//!
//! The counters of all exits add up to the packets seen; a test holds the program to that. `nlb-ebpf` turns a verdict
//! into the kernel's action in one place.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Left to the kernel's own network stack, untouched.
    Pass(PassReason),
    /// Sent on, rewritten, through the interface with this index.
    Send(SendReason, u32),
    /// Handed to user space, untouched, until its next hop is known; then it starts again.
    Punt,
    /// Discarded.
    Drop(DropReason),
    /// No exit yet: another program goes on with it.
    TailCall(Program),
}

/// The programs that the balancer goes on in, by their index in the map of programs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Program {
    Icmp,
    TooBig,
    Fragments,
    Gue,
    Quic,
    Reject,
}

impl Program {
    pub const ALL: [Program; 6] =
        [Program::Icmp, Program::TooBig, Program::Fragments, Program::Gue, Program::Quic, Program::Reject];
}

pub const PROGRAMS: usize = Program::ALL.len();

/// What a program or a part of it ends with. `Err` is a verdict too: one that ends the packet's way at once, by `?`.
pub type Outcome = Result<Verdict, Verdict>;

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident from $base:literal { $($(#[$vdoc:meta])* $variant:ident = $text:literal,)+ }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[repr(u8)]
        pub enum $name { $($(#[$vdoc])* $variant,)+ }

        impl $name {
            pub const ALL: &[$name] = &[$($name::$variant),+];

            /// The index of its counter.
            #[inline(always)]
            pub const fn counter(self) -> u32 {
                $base + self as u32
            }

            /// Its name in metrics and on the command line.
            pub const fn name(self) -> &'static str {
                match self { $($name::$variant => $text,)+ }
            }
        }
    };
}

reasons! {
    /// Why a packet was left to the kernel.
    PassReason from 0 {
        /// Neither IPv4 nor IPv6: ARP, LLDP and so on.
        NotIp = "not_ip",
        /// Broadcast or multicast, by its destination MAC.
        Group = "group",
        /// For no VIP, and no reply to us.
        NotOurs = "not_ours",
        /// To a VIP, but neither TCP nor UDP: ICMP, SCTP, GRE, ESP.
        Protocol = "protocol",
        /// To a VIP, on a port without a service.
        ClosedPort = "closed_port",
        /// To one of our own addresses, and part of no flow.
        NoFlow = "no_flow",
        /// A tunnel packet from a peer that is not listed (`nlb decap`).
        NotPeer = "not_peer",
        /// Unwrapped and left to the kernel (`nlb decap`).
        Decapsulated = "decapsulated",
        /// For or from a module or a client on this host: left to the program at the stack's door, which counts it anew.
        Local = "local",
    }
}

reasons! {
    /// Why a packet was sent on.
    SendReason from 16 {
        /// From a client to a backend.
        Forward = "forward",
        /// From a backend back to its client.
        Reply = "reply",
        /// Answered with a TCP RST or an ICMP unreachable, since the service has no usable backend.
        Reject = "reject",
        /// An ICMP error, to whom the flow belongs that it is about.
        IcmpError = "icmp_error",
        /// Answered with an ICMP error that says how long a packet may be.
        TooBig = "too_big",
    }
}

/// The counter of punted packets.
pub const PUNT_COUNTER: u32 = 31;

reasons! {
    /// Why a packet was discarded.
    DropReason from 32 {
        /// Shorter than its headers need.
        Truncated = "truncated",
        /// IP version, header length or total length contradict each other or the frame.
        IpHeader = "ip_header",
        /// UDP length below 8 or beyond the IP packet, TCP data offset below 5 or beyond it.
        L4Header = "l4_header",
        /// IPv6 extension headers that are unknown or more than 8.
        Ipv6Extensions = "ipv6_extensions",
        /// A fragment to a VIP whose first fragment was not seen.
        Fragment = "fragment",
        /// A service without a usable backend.
        NoBackend = "no_backend",
        /// TTL or hop limit too small to be forwarded.
        TtlExceeded = "ttl_exceeded",
        /// Our own packet came back.
        Loop = "loop",
        /// No free source port towards the backend.
        SnatPorts = "snat_ports",
        /// No entry of the flow table to spare for a NAT flow, which cannot do without.
        FlowTable = "flow_table",
        /// No route to where the packet should go.
        NoRoute = "no_route",
        /// Longer than the next hop's MTU takes.
        TooBig = "too_big",
        /// The next hop is not known yet, and there is no room to park.
        PuntFull = "park_full",
        /// On a port of a VIP that has no service, where the VIP is set to drop those.
        ClosedPort = "closed_port",
        /// The kernel gave no room for the outer header.
        Headroom = "headroom",
        /// A tunnel packet whose inner packet is broken (`nlb decap`).
        InnerHeader = "inner_header",
        /// Over a rate limit, which counts it too.
        RateLimit = "rate_limit",
        /// On a port of a VIP that has no service, while modules are asked who can handle it.
        UpcallPending = "asking",
        /// A map lookup failed that cannot fail; a fault of ours.
        Internal = "internal",
    }
}

/// Packets seen, which all the others add up to.
pub const SEEN_COUNTER: u32 = 63;

/// Flows that were forwarded by hash alone because no slot of the flow table was free for them. They are counted as
/// `forward` too, so this one is outside the sum.
pub const UNRECORDED_COUNTER: u32 = 62;

/// Questions that modules should have been asked and were not, because there was no room to put them. Their packets are
/// counted as those of closed ports, so this one is outside the sum too.
pub const UPCALL_LOST_COUNTER: u32 = 61;

/// Length of the map of counters.
pub const COUNTERS: u32 = 64;

impl Verdict {
    /// Something failed that cannot fail.
    pub const INTERNAL: Verdict = Verdict::Drop(DropReason::Internal);

    /// The index of the counter of this exit.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        match self {
            Verdict::Pass(reason) => reason.counter(),
            Verdict::Send(reason, _) => reason.counter(),
            Verdict::Punt => PUNT_COUNTER,
            Verdict::Drop(reason) => reason.counter(),
            // It comes here only if that program is missing.
            Verdict::TailCall(_) => DropReason::Internal.counter(),
        }
    }
}

/// The exit that a counter counts, as (verdict, reason); `None` for the other counters and unused ones.
pub fn exit_name(counter: u32) -> Option<(&'static str, &'static str)> {
    let pass = PassReason::ALL.iter().map(|r| (r.counter(), ("pass", r.name())));
    let send = SendReason::ALL.iter().map(|r| (r.counter(), ("send", r.name())));
    let drop = DropReason::ALL.iter().map(|r| (r.counter(), ("drop", r.name())));
    let park = [(PUNT_COUNTER, ("park", "next_hop"))];
    pass.chain(send).chain(drop).chain(park).find(|(index, _)| *index == counter).map(|(_, name)| name)
}

const _: () = assert!(
    PassReason::ALL.len() <= 16 && SendReason::ALL.len() <= 15 && DropReason::ALL.len() <= 29,
    "the ranges of the counters must not overlap"
);
