//! Sets a case up: the balancer with the state of the case, and the frame.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use ipnet::{IpNet, Ipv4Net};
use nix::net::if_::if_nametoindex;
use nlb::config::Flows as FlowSettings;
use nlb::datapath::loader::LoadConfig;
use nlb::model::settings::TableSizes;
use nlb::model::{Destination, L4, LimitTarget, LimitUnit, RateLimit, Route, Texts};
use nlb_common::abi::AcceptedMac;
use nlb_common::net::Mac;
use nlb_testkit::packet::{ACK, Packet, Transport};
use nlb_testkit::rig::{self, Family, Rig, XDP_REDIRECT, XDP_TX, families, module};

use super::cases::{Case, Extra, Kind};
use super::driver::{Driver, FIRST_SERVICE, FRAME, Flows};

pub struct Testbed {
    pub rig: Rig,
    pub traffic: Traffic,
}

/// The frame, and how it varies.
pub struct Traffic {
    frame: Vec<u8>,
    flows: Flows,
    number: u32,
    ifindex: u32,
}

impl Traffic {
    pub fn driver(&self) -> Result<Driver> {
        Driver::new(&self.frame, self.flows, self.number, self.ifindex, 1)
    }
}

impl Case {
    pub fn set_up(&self) -> Result<Testbed> {
        let load_config = rig::load_config();
        let flows = FlowSettings { max: self.room, ..load_config.flows };
        let limits = TableSizes {
            backends: 12_000,
            services: 12_000,
            pools: 12_000,
            source_prefixes: 200_000,
            ..load_config.limits
        };
        let mut rig = Rig::sized(self.mode, &LoadConfig { flows, limits, ..load_config })?;
        rig.enter()?;
        let [v4, v6] = families();
        let family = if self.v6 { v6 } else { v4 };
        // The driver's clients are behind the rig's client.
        for (flag, clients, gateway) in
            [("-4", "198.51.0.0/18", v4.client), ("-6", "2001:db8:c::c633:0/112", v6.client)]
        {
            let gateway = gateway.to_string();
            rig.namespace().ip(&[flag, "route", "add", clients, "via", &gateway, "dev", "up0"])?;
        }
        self.extra.add_to(&mut rig, &family)?;
        let ifindex = if_nametoindex("up0").context("the rig's interface")?;
        // Packets leave by the interface that they came in by, as with the baselines.
        for way in rig.hops.values_mut() {
            way.hop.ifindex = ifindex;
        }
        rig.apply()?;
        let frame = match self.packet {
            Kind::Reply => answer(&mut rig, &family)?,
            Kind::Error => error(&mut rig, &family)?,
            _ => self.request(&family).bytes(),
        };
        let flows = match (self.packet, self.extra) {
            (Kind::Reply | Kind::Error | Kind::Echo, _) => Flows::ONE,
            (_, Extra::Services(_)) => Flows::SERVICES,
            _ if self.v6 => Flows::V6,
            _ => Flows::V4,
        };
        let mac = frame[..6].try_into().expect("six bytes");
        rig.accept_only(AcceptedMac::new(ifindex, Mac::new(mac)))?;
        Ok(Testbed { rig, traffic: Traffic { frame, flows, number: self.flows, ifindex } })
    }

    fn request(&self, family: &Family) -> Packet {
        filled(match self.packet {
            Kind::Syn => family.syn(),
            Kind::Udp => family.udp(),
            Kind::NotOurs => family.ack().with(|p| p.dst = family.stranger),
            Kind::Echo => return icmp(family, [8, 0], &[0x2a; FRAME]),
            Kind::Tcp | Kind::Reply | Kind::Error => family.ack(),
        })
    }
}

impl Extra {
    fn add_to(self, rig: &mut Rig, family: &Family) -> Result<()> {
        match self {
            Extra::Nothing => {}
            Extra::Routes(number) => {
                let to_all = rig.route("m1", "tcp").clone();
                let routes = &mut rig.module("m1").routes;
                routes.clear();
                routes.extend((0..number).map(|n| {
                    let source = Some(source(n));
                    (format!("r{n}"), Arc::new(Route { source, ..to_all.clone() }))
                }));
            }
            Extra::Services(number) => {
                let any = rig.route("m1", "tcp").clone();
                rig.module("m1").routes.extend((0..number).map(|n| {
                    let (destination, port) = (Destination::Address(family.vip), Some(FIRST_SERVICE + n));
                    (format!("s{n}"), Arc::new(Route { destination, port, ..any.clone() }))
                }));
            }
            Extra::Backends(number) => {
                for n in 1..number {
                    let address = Ipv4Addr::from_bits(0x0a00_0100 + u32::from(n));
                    let mut more = module(rig.module("m1").mode, 2);
                    (more.data.v4, more.data.v6) = (Some(address), None);
                    rig.know(address.into(), family.source);
                    rig.desired.modules.insert(format!("m{}", n + 1), more.into());
                }
            }
            Extra::Limits => {
                let IpAddr::V4(client) = family.client else { unreachable!("the case is IPv4") };
                let source = IpNet::from(Ipv4Net::new(client, 16)?.trunc());
                for target in [LimitTarget::Service(family.vip, 80, L4::Tcp), LimitTarget::Source(source)] {
                    let limit = RateLimit {
                        target: target.clone(),
                        unit: LimitUnit::Packets,
                        per_second: 1_000_000_000,
                        per_minute: 0,
                        per_hour: 0,
                        burst: 1_000_000_000,
                        enabled: true,
                        metadata: Texts::new(),
                    };
                    rig.desired.rate_limits.insert(format!("{target:?}"), limit.into());
                }
            }
        }
        Ok(())
    }
}

/// Prefixes of four lengths. The first ones cover the driver's clients, so that each flow matches one.
fn source(n: u32) -> IpNet {
    let [clients, elsewhere] = [0xc633_0000, 0x0100_0000_u32];
    let net = match n {
        0 => Ipv4Net::new(Ipv4Addr::from_bits(clients), 16),
        1..1024 => Ipv4Net::new(Ipv4Addr::from_bits(clients + (n << 4)), 28),
        _ => Ipv4Net::new(Ipv4Addr::from_bits(elsewhere + (n << 10)), [22, 24, 27, 32][n as usize % 4]),
    };
    net.expect("lengths of IPv4").into()
}

/// A backend's reply.
fn answer(rig: &mut Rig, family: &Family) -> Result<Vec<u8>> {
    let request = family.translated(&family.syn(), opened(rig, family)?);
    Ok(filled(family.answer(&request, Transport::Tcp { flags: ACK, seq: 2 })).bytes())
}

/// A router's ICMP error to the VIP: a reply was too long.
fn error(rig: &mut Rig, family: &Family) -> Result<Vec<u8>> {
    opened(rig, family)?;
    let syn = family.syn();
    let answer = filled(syn.with(|p| {
        (p.src, p.dst) = (family.vip, family.client);
        (p.sport, p.dport) = (syn.dport, syn.sport);
        p.l4 = Transport::Tcp { flags: ACK, seq: 2 };
    }));
    let kind = if family.vip.is_ipv4() { [3, 4] } else { [2, 0] };
    Ok(icmp(family, kind, &answer.bytes()[14..]).bytes())
}

/// Opens the client's connection. Returns the port that the backend sees.
fn opened(rig: &mut Rig, family: &Family) -> Result<u16> {
    let syn = rig.run(&family.syn())?;
    ensure!(syn.action == XDP_TX || syn.action == XDP_REDIRECT, "a SYN: {syn:?}");
    Ok(rig::source_port(&syn.frame))
}

/// ICMP to the VIP, with as much of `body` as fits.
fn icmp(family: &Family, kind: [u8; 2], body: &[u8]) -> Packet {
    let headers = if family.vip.is_ipv4() { 14 + 20 + 8 } else { 14 + 40 + 8 };
    family.syn().with(|p| p.src = family.stranger).icmp(kind, &body[..FRAME - headers])
}

/// Fills a packet up to the driver's length.
pub fn filled(packet: Packet) -> Packet {
    packet.with(|p| {
        p.payload.clear();
        let headers = p.bytes().len();
        p.payload = vec![0x2a; FRAME - headers];
    })
}
