//! What is measured: a packet, the state that it meets, and how many flows there are.

use anyhow::{Context, Result, ensure};
use nix::net::if_::if_nametoindex;
use nlb::config::Flows;
use nlb::loader::Sizes;
use nlb::model::ForwardMode;
use nlb_tests::packet::{ACK, Packet, Transport};
use nlb_tests::rig::{self, Family, Rig, XDP_PASS, XDP_TX, families};

use super::driver::{Client, FRAME};

/// What a case costs at most, as a multiple of the floor `ipip` in the same run, and what the best known peer costs.
#[derive(Clone, Copy)]
pub struct Goal {
    pub most: f64,
    pub peer: &'static str,
}

pub struct Case {
    pub name: &'static str,
    pub goal: Option<Goal>,
    mode: ForwardMode,
    packet: Kind,
    v6: bool,
    /// A power of two.
    pub flows: u32,
    /// Room in the flow table.
    room: u32,
    /// Whether every run is to meet a flow that nobody knows.
    pub fresh: bool,
    /// What has to become of the packet.
    pub action: u32,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Tcp,
    Syn,
    Udp,
    /// To an address that is no VIP.
    Stranger,
    /// A backend's answer.
    Reply,
}

const fn case(name: &'static str, mode: ForwardMode, packet: Kind) -> Case {
    let action = if matches!(packet, Kind::Stranger) { XDP_PASS } else { XDP_TX };
    Case { name, goal: None, mode, packet, v6: false, flows: 1, room: 1 << 16, fresh: false, action }
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

    const fn goal(self, most: f64, peer: &'static str) -> Case {
        Case { goal: Some(Goal { most, peer }), ..self }
    }
}

pub const CASES: &[Case] = &[
    case("not ours: pass", ForwardMode::DsrIpip, Kind::Stranger).goal(0.2, "1.0-1.2"),
    case("known flow, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Tcp).goal(1.0, "2.3-2.8"),
    case("known flow, dsr-ipip, TCP v6", ForwardMode::DsrIpip, Kind::Tcp).v6().goal(1.2, "2.8"),
    case("known flow, dsr-ipip, UDP v4", ForwardMode::DsrIpip, Kind::Udp).goal(1.0, "3.7"),
    case("known flow, gue, TCP v4", ForwardMode::Gue, Kind::Tcp).goal(1.3, "7.2"),
    case("known flow, gue, TCP v6", ForwardMode::Gue, Kind::Tcp).v6().goal(1.3, "7.2"),
    case("known flow, dsr-l2, TCP v4", ForwardMode::DsrL2, Kind::Tcp).goal(0.8, "-"),
    case("known flow, nat, request, TCP v4", ForwardMode::Nat, Kind::Tcp).goal(1.3, "-"),
    case("known flow, nat, answer, TCP v4", ForwardMode::Nat, Kind::Reply).goal(1.3, "-"),
    case("known flow, nat, request, TCP v6", ForwardMode::Nat, Kind::Tcp).v6().goal(1.3, "-"),
    case("known flow, nat, answer, TCP v6", ForwardMode::Nat, Kind::Reply).v6().goal(1.3, "-"),
    // One bucket of four entries, which are taken: all others are forwarded by hash.
    case("stateless pick, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Tcp)
        .flows(1 << 10, 4)
        .goal(1.0, "2.6"),
    case("new flow recorded, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Syn)
        .flows(1 << 24, 1 << 22)
        .fresh()
        .goal(2.0, "9.8"),
    case("known flow among 1k, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Tcp)
        .flows(1 << 10, 1 << 16)
        .goal(1.0, "3.0"),
    case("known flow among 64k, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Tcp)
        .flows(1 << 16, 1 << 20)
        .goal(1.8, "2.6-5.4"),
    case("known flow among 1M, dsr-ipip, TCP v4", ForwardMode::DsrIpip, Kind::Tcp)
        .flows(1 << 20, 1 << 22)
        .goal(2.2, "4.3-5.4"),
    case("SYN flood of 1M sources, dsr-ipip, v4", ForwardMode::DsrIpip, Kind::Syn)
        .flows(1 << 20, 1 << 16)
        .goal(2.0, "9.8"),
];

/// A case, set up.
pub struct Scene {
    pub rig: Rig,
    pub frame: Vec<u8>,
    pub client: Client,
    pub ifindex: u32,
}

impl Case {
    pub fn set_up(&self) -> Result<Scene> {
        let sizes = rig::sizes();
        let sizes = Sizes { flows: Flows { max: self.room, ..sizes.flows }, ..sizes };
        let mut rig = Rig::sized(self.mode, &sizes)?;
        rig.enter()?;
        let [v4, v6] = families();
        let family = if self.v6 { v6 } else { v4 };
        // Clients that the driver makes up are behind the one that there is.
        for (flag, clients, gateway) in
            [("-4", "198.51.0.0/18", v4.client), ("-6", "2001:db8:c::c633:0/112", v6.client)]
        {
            rig.namespace().ip(&[
                flag,
                "route",
                "add",
                clients,
                "via",
                &gateway.to_string(),
                "dev",
                "up0",
            ])?;
        }
        let ifindex = if_nametoindex("up0").context("the rig's interface")?;
        // Out by the interface that it came in by, like the floors.
        for way in rig.hops.values_mut() {
            way.hop.ifindex = ifindex;
        }
        rig.apply()?;
        let (frame, client) = match self.packet {
            Kind::Reply => (self.answer(&mut rig, &family)?, Client::NONE),
            _ => (self.request(&family).bytes(), if self.v6 { Client::V6 } else { Client::V4 }),
        };
        Ok(Scene { rig, frame, client, ifindex })
    }

    fn request(&self, family: &Family) -> Packet {
        filled(match self.packet {
            Kind::Syn => family.syn(),
            Kind::Udp => family.udp(),
            Kind::Stranger => family.ack().with(|p| p.dst = family.stranger),
            Kind::Tcp | Kind::Reply => family.ack(),
        })
    }

    /// The frame that a backend answers a request with.
    fn answer(&self, rig: &mut Rig, family: &Family) -> Result<Vec<u8>> {
        let syn = rig.run(&family.syn())?;
        ensure!(syn.action == XDP_TX || syn.action == rig::XDP_REDIRECT, "a SYN: {syn:?}");
        let port = rig::source_port(&syn.frame);
        let request = family.translated(&family.syn(), port);
        Ok(filled(family.answer(&request, Transport::Tcp { flags: ACK, seq: 2 })).bytes())
    }
}

/// As long as the driver wants it.
pub fn filled(packet: Packet) -> Packet {
    packet.with(|p| {
        p.payload.clear();
        let headers = p.bytes().len();
        p.payload = vec![0x2a; FRAME - headers];
    })
}
