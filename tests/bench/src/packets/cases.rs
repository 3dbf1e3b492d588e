//! The cases: a packet, the state of the tables, and the intended maximum cost.

use nlb::model::ForwardMode;
use nlb_testkit::rig::{XDP_PASS, XDP_TX};

/// The intended maximum cost of a case, as a multiple of another figure of the same run.
#[derive(Clone, Copy)]
pub struct Goal {
    pub most: f64,
    /// The name of another case; `None` is the baseline `ipip`.
    pub of: Option<&'static str>,
    /// The cost of Katran, as a multiple of `ipip`.
    pub katran: &'static str,
}

pub struct Case {
    pub name: &'static str,
    pub goal: Option<Goal>,
    pub mode: ForwardMode,
    pub packet: Kind,
    pub v6: bool,
    /// The number of flows, a power of two.
    pub flows: u32,
    /// The size of the flow table.
    pub room: u32,
    /// Whether every packet belongs to a new flow.
    pub fresh: bool,
    /// The state in addition to one service with one backend.
    pub extra: Extra,
    /// The expected action of the program.
    pub action: u32,
}

#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    Tcp,
    Syn,
    Udp,
    /// A packet to an address that is no VIP.
    NotOurs,
    /// A backend's answer.
    Reply,
    /// A ping to the VIP.
    Echo,
    /// An ICMP error about a backend's answer.
    Error,
}

#[derive(Clone, Copy)]
pub enum Extra {
    Nothing,
    /// The total number of routes, each for clients of another prefix.
    Routes(u32),
    /// The total number of services, on ports of the VIP; packets are for 8192 of them.
    Services(u16),
    /// The total number of backends.
    Backends(u16),
    /// A rate limit for the service and one for the client, which no packet exceeds.
    Limits,
}

const fn case(name: &'static str, mode: ForwardMode, packet: Kind) -> Case {
    let action = if matches!(packet, Kind::NotOurs | Kind::Echo) { XDP_PASS } else { XDP_TX };
    Case {
        name,
        goal: None,
        mode,
        packet,
        v6: false,
        flows: 1,
        room: 1 << 16,
        fresh: false,
        extra: Extra::Nothing,
        action,
    }
}

/// Packets of flows for which the flow table has no room: all but four are forwarded by hash.
const fn stateless(name: &'static str) -> Case {
    case(name, ForwardMode::DsrIpip, Kind::Tcp).flows(1 << 10, 4)
}

const fn known(name: &'static str) -> Case {
    case(name, ForwardMode::DsrIpip, Kind::Tcp)
}

impl Case {
    const fn v6(self) -> Case {
        Case { v6: true, ..self }
    }

    const fn flows(self, flows: u32, room: u32) -> Case {
        Case { flows, room, ..self }
    }

    const fn fresh(self) -> Case {
        Case { fresh: true, ..self }
    }

    const fn extra(self, extra: Extra) -> Case {
        Case { extra, ..self }
    }

    const fn goal(self, most: f64, katran: &'static str) -> Case {
        Case { goal: Some(Goal { most, of: None, katran }), ..self }
    }

    /// Sets a goal: at most `most` times the cost of another case.
    const fn times(self, most: f64, of: &'static str) -> Case {
        Case { goal: Some(Goal { most, of: Some(of), katran: "" }), ..self }
    }
}

/// The case that `scale` runs on several CPUs at once.
pub const KNOWN_AMONG_64K: Case =
    known("known flow among 64k, dsr-ipip, TCP v4").flows(1 << 16, 1 << 20).goal(1.8, "2.6-5.4");

pub const KNOWN_AMONG_1M: Case =
    known("known flow among 1M, dsr-ipip, TCP v4").flows(1 << 20, 1 << 22).goal(2.2, "4.3-5.4");
pub const KNOWN_AMONG_16M: Case = known("known flow among 16M, dsr-ipip, TCP v4").flows(1 << 24, 1 << 26);

pub const NEW_FLOW: Case = case("new flow recorded, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Syn)
    .flows(1 << 24, 1 << 22)
    .fresh()
    .goal(2.0, "9.8");

pub const TEN_ROUTES: Case = stateless("stateless pick, 10 routes").extra(Extra::Routes(10));
pub const MANY_ROUTES: Case =
    stateless("stateless pick, 100,000 routes").extra(Extra::Routes(100_000)).times(1.25, TEN_ROUTES.name);

pub const CASES: &[Case] = &[
    case("not ours: pass", ForwardMode::DsrIpip, Kind::NotOurs).goal(0.2, "1.0-1.2"),
    known("known flow, dsr-ipip, TCP v4").goal(1.0, "2.3-2.8"),
    known("known flow, dsr-ipip, TCP v6").v6().goal(1.2, "2.8"),
    case("known flow, dsr-ipip, UDP v4", ForwardMode::DsrIpip, Kind::Udp).goal(1.0, "3.7"),
    case("known flow, gue, TCP v4", ForwardMode::Gue, Kind::Tcp).goal(1.3, "7.2"),
    case("known flow, gue, TCP v6", ForwardMode::Gue, Kind::Tcp).v6().goal(1.3, "7.2"),
    case("known flow, dsr-l2, TCP v4", ForwardMode::DsrL2, Kind::Tcp).goal(0.8, ""),
    case("known flow, nat, request, TCP v4", ForwardMode::Nat, Kind::Tcp).goal(1.3, ""),
    case("known flow, nat, answer, TCP v4", ForwardMode::Nat, Kind::Reply).goal(1.3, ""),
    case("known flow, nat, request, TCP v6", ForwardMode::Nat, Kind::Tcp).v6().goal(1.3, ""),
    case("known flow, nat, answer, TCP v6", ForwardMode::Nat, Kind::Reply).v6().goal(1.3, ""),
    case("ICMP error about an answer, nat, v4", ForwardMode::Nat, Kind::Error),
    case("ICMP error about an answer, nat, v6", ForwardMode::Nat, Kind::Error).v6(),
    case("ICMP echo to the VIP: pass", ForwardMode::DsrIpip, Kind::Echo),
    stateless("stateless pick, dsr-ipip, TCP v4").goal(1.0, "2.6"),
    NEW_FLOW,
    case("SYN flood of 1M sources, dsr-ipip, v4", ForwardMode::DsrIpip, Kind::Syn)
        .flows(1 << 20, 1 << 16)
        .goal(2.0, "9.8"),
    known("known flow among 1k, dsr-ipip, TCP v4").flows(1 << 10, 1 << 16).goal(1.0, "3.0"),
    KNOWN_AMONG_64K,
    KNOWN_AMONG_1M,
    KNOWN_AMONG_16M,
    stateless("stateless pick, 1 route").extra(Extra::Routes(1)),
    TEN_ROUTES,
    stateless("stateless pick, 1,000 routes").extra(Extra::Routes(1000)),
    stateless("stateless pick, 10,000 routes").extra(Extra::Routes(10_000)),
    MANY_ROUTES,
    known("known flow, 100,000 routes")
        .extra(Extra::Routes(100_000))
        .times(1.25, "known flow, dsr-ipip, TCP v4"),
    known("known flow among 8k, dsr-ipip, TCP v4").flows(1 << 13, 1 << 16),
    known("known flow among 8k, of as many services").flows(1 << 13, 1 << 16).extra(Extra::Services(10_000)),
    stateless("stateless pick, 10 backends").extra(Extra::Backends(10)),
    stateless("stateless pick, 1,000 backends").extra(Extra::Backends(1000)),
    known("known flow among 1k, 1,000 backends").flows(1 << 10, 1 << 16).extra(Extra::Backends(1000)),
    known("known flow, under rate limits").extra(Extra::Limits),
];
