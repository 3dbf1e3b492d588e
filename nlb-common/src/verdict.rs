//! Verdicts: each has a name and a counter.
//!
//! The counters of all verdicts add up to the packets seen, which a test checks. `nlb-ebpf` turns a verdict
//! into the action of the kernel in one place for XDP, and in one for TC.

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Passed to the kernel's stack, unchanged.
    Pass(PassReason),
    /// Sent through the interface with this index.
    Send(SendReason, u32),
    /// Handed to user space, which has the programs run on it again.
    Punt(PuntReason),
    /// Discarded.
    Drop(DropReason),
    /// Not final: another program continues.
    TailCall(Program),
}

/// The programs that the balancer calls by tail calls, by their index in the map of programs.
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

/// The result of a program or a part of it. `Err` holds a verdict too: `?` ends the program with it.
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
    /// Why a packet was passed to the kernel.
    PassReason from 0 {
        /// Neither IPv4 nor IPv6: ARP, LLDP and so on.
        NotIp = "not_ip",
        /// Broadcast or multicast, by its destination MAC.
        Group = "group",
        /// To no VIP, and no reply to us.
        NotOurs = "not_ours",
        /// To a VIP, but neither TCP nor UDP: ICMP, SCTP, GRE, ESP.
        Protocol = "protocol",
        /// To a VIP, on a port without a service.
        ClosedPort = "closed_port",
        /// To one of our own addresses, and part of no flow.
        NoFlow = "no_flow",
        /// A tunnel packet from a peer that is not listed (`nlb decap`).
        NotPeer = "not_peer",
        /// Decapsulated and passed to the kernel (`nlb decap`).
        Decapsulated = "decapsulated",
        /// To or from a module or a client on this host: the program at TC ingress gets the packet, and
        /// counts it again.
        Local = "local",
        /// To a MAC address that the interface does not accept: a switch sends frames to every port while it
        /// does not know the port of an address.
        OtherHost = "other_host",
        /// To an address of this host that is a VIP, and to a protected port or part of the host's own
        /// connection, although a route for every port covers it.
        Host = "host",
    }
}

reasons! {
    /// Why a packet was sent.
    SendReason from 16 {
        /// From a client to a backend.
        Forward = "forward",
        /// From a backend back to its client.
        Reply = "reply",
        /// Answered with a TCP RST or an ICMP unreachable, since the service has no usable backend.
        Reject = "reject",
        /// An ICMP error, to the end of the flow that sent the quoted packet.
        IcmpError = "icmp_error",
        /// Answered with an ICMP error that names the MTU.
        TooBig = "too_big",
        /// Answered with an ICMP time exceeded.
        TtlExceeded = "ttl_exceeded",
    }
}

reasons! {
    /// Why a packet was handed to user space.
    PuntReason from 28 {
        /// The next hop is not known: the packet waits, unchanged, until it is.
        NextHop = "next_hop",
        /// Longer than the MTU, and its sender allows fragments (IPv4); or a fragment of such a packet, to
        /// keep their order.
        Fragment = "fragment",
    }
}

reasons! {
    /// Why a packet was discarded.
    DropReason from 32 {
        /// Shorter than its headers.
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
        /// TTL or hop limit too small for forwarding, and not answered.
        TtlExceeded = "ttl_exceeded",
        /// A packet that this node sent came back.
        Loop = "loop",
        /// No free source port towards the backend.
        SnatPorts = "snat_ports",
        /// No entry of the flow table can be evicted for a NAT flow, which needs one.
        FlowTable = "flow_table",
        /// No route to the destination.
        NoRoute = "no_route",
        /// Longer than the MTU.
        TooBig = "too_big",
        /// The next hop is not known, and there is no room to punt the packet.
        PuntFull = "park_full",
        /// To a port without a service, on a VIP that is set to drop such packets.
        ClosedPort = "closed_port",
        /// The kernel has no room for the outer header.
        Headroom = "headroom",
        /// A tunnel packet with an invalid inner packet (`nlb decap`).
        InnerHeader = "inner_header",
        /// Over a rate limit, which counts the packet too.
        RateLimit = "rate_limit",
        /// To a port without a service, while an upcall is pending.
        UpcallPending = "asking",
        /// From a source that no other host has.
        MartianSource = "martian_source",
        /// A new flow, while every instance of its pool has as many as it takes.
        Full = "full",
        /// A map look-up failed that cannot fail: a bug.
        Internal = "internal",
    }
}

/// Packets seen: the sum of all verdicts.
pub const SEEN_COUNTER: u32 = 63;

/// Packets of flows that were forwarded by hash alone because no entry of the flow table was free. They are
/// counted as `forward` too, so this counter is outside the sum.
pub const UNRECORDED_COUNTER: u32 = 62;

/// Upcalls that were not raised because the ring buffer was full. Their packets are counted as those of
/// closed ports, so this counter is outside the sum.
pub const UPCALL_LOST_COUNTER: u32 = 61;

/// New flows that found every instance of the pool of highest priority full, whatever became of them. This
/// counter is outside the sum.
pub const FULL_COUNTER: u32 = 60;

/// The length of the map of counters.
pub const COUNTERS: u32 = 64;

impl Verdict {
    /// A look-up failed that cannot fail: a bug.
    pub const INTERNAL: Verdict = Verdict::Drop(DropReason::Internal);

    /// The index of its counter.
    #[inline(always)]
    pub const fn counter(self) -> u32 {
        match self {
            Verdict::Pass(reason) => reason.counter(),
            Verdict::Send(reason, _) => reason.counter(),
            Verdict::Punt(reason) => reason.counter(),
            Verdict::Drop(reason) => reason.counter(),
            // The tail call failed, because that program is not loaded.
            Verdict::TailCall(_) => DropReason::Internal.counter(),
        }
    }
}

/// The verdict that a counter counts, as (verdict, reason); `None` for the other counters and unused ones.
pub fn exit_name(counter: u32) -> Option<(&'static str, &'static str)> {
    let pass = PassReason::ALL.iter().map(|r| (r.counter(), ("pass", r.name())));
    let send = SendReason::ALL.iter().map(|r| (r.counter(), ("send", r.name())));
    let drop = DropReason::ALL.iter().map(|r| (r.counter(), ("drop", r.name())));
    let park = PuntReason::ALL.iter().map(|r| (r.counter(), ("park", r.name())));
    pass.chain(send).chain(drop).chain(park).find(|(index, _)| *index == counter).map(|(_, name)| name)
}

const _: () = assert!(
    PassReason::ALL.len() <= 16
        && SendReason::ALL.len() <= 12
        && PuntReason::ALL.len() <= 4
        && DropReason::ALL.len() <= 28,
    "the ranges of the counters must not overlap"
);
