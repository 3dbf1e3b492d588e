//! The selection among thousands of overlapping routes equals a linear search, also while routes change.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use aya::programs::Xdp;
use ipnet::IpNet;
use nlb::datapath::loader::LoadConfig;
use nlb::model::next_hop::Hop;
use nlb::model::settings::TableSizes;
use nlb::model::{Destination, ForwardMode, L4, Protocol, Route, Routes, Targets, Texts};
use nlb_common::abi::NextHop;
use nlb_common::net;

use crate::packet::{Packet, Transport, UdpChecksum};
use crate::random::Random;
use crate::rig::{self, OUR_BACK_MAC, Rig, XDP_PASS, XDP_REDIRECT, families, module, test_run};

const MODULES: u8 = 4;
const ROUTES_EACH: usize = 400;
const PORTS: [u16; 4] = [53, 80, 443, 5000];

#[test]
fn thousands_of_routes_match_a_linear_search() -> Result<()> {
    let mut random = Random::new(0x0c1a_5517);
    let mut rig = rig()?;
    let mut before = Vec::new();
    let mut sent_meanwhile = 0;
    for generation in 0..4 {
        let rules = rules(&mut random);
        for number in 1..=MODULES {
            rig.module(&name(number)).routes = routes(&rules, number);
        }
        let mut switching = Random::new(generation);
        let mut steered = Vec::new();
        rig.apply_under(|program| {
            let flow = flow(&mut switching);
            let module = steer(program, &flow)?;
            steered.push((flow, module));
            Ok(())
        })?;
        sent_meanwhile += steered.len();
        // A later flow with the same addresses and ports must not find the record of one of these.
        rig.forget_flows();
        for (flow, module) in &steered {
            check_selected(flow, *module, &[&before, &rules])?;
        }
        for _ in 0..1000 {
            let flow = flow(&mut random);
            let module = steer(rig.balancer()?, &flow)?;
            check_selected(&flow, module, &[&rules])?;
        }
        before = rules;
    }
    println!("{sent_meanwhile} packets were sent while routes were switched");
    ensure!(sent_meanwhile > 100, "only {sent_meanwhile} packets were sent while routes were switched");
    Ok(())
}

/// A larger table replaces that of source prefixes while packets search it.
#[test]
fn growing_prefix_table_finds_every_prefix() -> Result<()> {
    // Each takes two entries, since no two share a marker. One slab has room for 90,000.
    const HOSTS: u32 = 60_000;
    let host = |n: u32| IpAddr::from((0x0a00_0001 + (n << 8)).to_be_bytes());
    let (around, outside) = (IpAddr::from([10, 255, 0, 2]), IpAddr::from([11, 0, 0, 1]));
    let vip = families()[0].vip;
    let rule = |module, source: IpNet| Rule {
        module,
        udp: false,
        source: Some(source),
        destination: Destination::Address(vip),
        port: Some(443),
        priority: 0,
    };
    let mut rig = rig()?;
    rig.module("m1").routes = routes(&[rule(1, "10.0.0.0/8".parse()?)], 1);
    rig.apply()?;

    let mut random = Random::new(7);
    let mut check = |program: &Xdp, client, modules: &[Option<u8>]| {
        let client_port = random.below(1 << 16).max(1) as u16;
        let flow = Flow { client, client_port, vip, port: 443, udp: false };
        let module = steer(program, &flow)?;
        ensure!(modules.contains(&module), "{flow} went to {module:?}, not to one of {modules:?}");
        Ok(())
    };
    let hosts: Vec<Rule> = (0..HOSTS).map(|n| rule(2, host(n).into())).collect();
    for (routes, then) in [(routes(&hosts, 2), Some(2)), (Routes::default(), Some(1))] {
        rig.module("m2").routes = routes;
        let mut number = 0;
        rig.apply_under(|program| {
            number = (number + 7919) % HOSTS;
            check(program, host(number), &[Some(1), Some(2)])?;
            check(program, around, &[Some(1)])?;
            check(program, outside, &[None])
        })?;
        for n in (0..HOSTS).step_by(997) {
            check(rig.balancer()?, host(n), &[then])?;
        }
    }
    Ok(())
}

/// The parts of a module's route that select packets.
struct Rule {
    module: u8,
    udp: bool,
    source: Option<IpNet>,
    destination: Destination,
    port: Option<u16>,
    priority: i32,
}

/// The first packet of a flow.
struct Flow {
    client: IpAddr,
    client_port: u16,
    vip: IpAddr,
    port: u16,
    udp: bool,
}

/// The module that the program selects for a new flow.
fn steer(program: &Xdp, flow: &Flow) -> Result<Option<u8>> {
    let (action, frame) = test_run(program, &flow.packet().bytes())?;
    match action {
        XDP_PASS => Ok(None),
        XDP_REDIRECT => Ok(Some(frame[5])),
        other => bail!("{flow} was answered by action {other}"),
    }
}

/// Checks that one of these sets of rules selects this module for the flow.
fn check_selected(flow: &Flow, module: Option<u8>, generations: &[&Vec<Rule>]) -> Result<()> {
    let allowed: Vec<BTreeSet<u8>> = generations.iter().map(|rules| flow.served_by(rules)).collect();
    let right = allowed.iter().any(|modules| match module {
        None => modules.is_empty(),
        Some(module) => modules.contains(&module),
    });
    ensure!(right, "{flow} went to {module:?} instead of one of {allowed:?}");
    Ok(())
}

impl Flow {
    /// The modules of the best matching rules, by a linear search.
    fn served_by(&self, rules: &[Rule]) -> BTreeSet<u8> {
        let matching = || rules.iter().filter_map(|rule| Some((self.rank(rule)?, rule.module)));
        let best = matching().map(|(rank, _)| rank).max();
        matching().filter(|(rank, _)| Some(*rank) == best).map(|(_, module)| module).collect()
    }

    /// The rank of a matching rule (docs/contract.md): by priority, source, destination, and port.
    fn rank(&self, rule: &Rule) -> Option<(i32, u8, u8, bool)> {
        let source = match rule.source {
            None => 0,
            Some(net) if net.contains(&self.client) => net.prefix_len(),
            Some(_) => return None,
        };
        let destination = match rule.destination {
            Destination::EveryVip => 0,
            Destination::Address(vip) if vip == self.vip => u8::MAX,
            Destination::Prefix(net) if net.contains(&self.vip) => net.prefix_len(),
            _ => return None,
        };
        let port = rule.port.is_none_or(|port| port == self.port);
        (port && rule.udp == self.udp).then_some((rule.priority, source, destination, rule.port.is_some()))
    }

    fn packet(&self) -> Packet {
        let family = families()[self.vip.is_ipv6() as usize];
        let mut packet = family.syn();
        (packet.src, packet.dst) = (self.client, self.vip);
        (packet.sport, packet.dport) = (self.client_port, self.port);
        if self.udp {
            packet.l4 = Transport::Udp { checksum: UdpChecksum::Computed };
        }
        packet
    }
}

impl std::fmt::Display for Flow {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let l4 = if self.udp { L4::Udp } else { L4::Tcp };
        write!(f, "{l4:?} from {} to {} port {}", self.client, self.vip, self.port)
    }
}

/// The two VIPs of both families are configured.
fn vips() -> Vec<IpAddr> {
    families().iter().flat_map(|family| [family.vip, family.vip2]).collect()
}

fn rules(random: &mut Random) -> Vec<Rule> {
    (1..=MODULES).flat_map(|number| vec![number; ROUTES_EACH]).map(|number| rule(random, number)).collect()
}

fn rule(random: &mut Random, module: u8) -> Rule {
    let destination = match random.below(4) {
        0 => Destination::Address(random.pick(&vips())),
        1 => Destination::Prefix(
            random.pick(&["192.0.2.0/24", "192.0.2.10/31", "2001:db8::/64"]).parse().expect("a prefix"),
        ),
        _ => Destination::EveryVip,
    };
    Rule {
        module,
        udp: random.once_in(2),
        source: (!random.once_in(20)).then(|| source(random)),
        destination,
        port: (!random.once_in(4)).then(|| random.pick(&PORTS)),
        priority: random.below(3) as i32,
    }
}

/// A prefix that contains some client or is near it.
fn source(random: &mut Random) -> IpNet {
    let client = client(random);
    let bits = if client.is_ipv4() { [0, 8, 15, 16, 24, 31, 32] } else { [0, 32, 47, 48, 64, 127, 128] };
    // Long prefixes are more frequent, because short ones contain most clients.
    let bits = bits[random.below(7).max(random.below(7))];
    IpNet::new(client, bits).expect("a length of that family").trunc()
}

/// Clients have near addresses, so that prefixes contain several of them and overlap.
fn client(random: &mut Random) -> IpAddr {
    let mut near = |beyond: usize| random.below(beyond) as u8;
    let [a, b, c] = [near(2), near(4), near(8)];
    if near(2) == 0 {
        [10, a, b, c].into()
    } else {
        [0x2001, 0xdb8, a.into(), b.into(), 0, 0, 0, u16::from(c)].into()
    }
}

fn flow(random: &mut Random) -> Flow {
    let client = client(random);
    let vips: Vec<IpAddr> = vips().into_iter().filter(|vip| vip.is_ipv4() == client.is_ipv4()).collect();
    Flow {
        client,
        client_port: random.below(1 << 16).max(1) as u16,
        vip: random.pick(&vips),
        port: random.pick(&[53, 80, 443, 5000, 9999]),
        udp: random.once_in(2),
    }
}

/// A rig whose modules have different MAC addresses, which show the selected module.
fn rig() -> Result<Rig> {
    let load_config = rig::load_config();
    let limits =
        TableSizes { pools: 1000, source_prefixes: 100_000, counted_routes: 0, ..load_config.limits };
    let mut rig = Rig::sized(ForwardMode::DsrL2, &LoadConfig { limits, ..load_config })?;
    rig.desired.modules.remove("m1");
    rig.apply()?;
    for number in 1..=MODULES {
        let module = module(ForwardMode::DsrL2, number);
        let mac = net::Mac::new([2, 0, 0, 0, 1, number]);
        for (addr, source) in module
            .data
            .v4
            .map(IpAddr::from)
            .into_iter()
            .zip(["10.0.0.100"])
            .chain(module.data.v6.map(IpAddr::from).into_iter().zip(["fd00::100"]))
        {
            let hop = NextHop::new(mac, net::Mac::new(OUR_BACK_MAC), rig::BACK_IFINDEX);
            let source = source.parse()?;
            rig.hops.insert(addr, Hop { hop, source, mtu: rig::BACK_MTU, link_prefix: 24, local: false });
        }
        rig.desired.modules.insert(name(number), module.into());
    }
    Ok(rig)
}

fn name(number: u8) -> String {
    format!("m{number}")
}

fn routes(rules: &[Rule], module: u8) -> Routes {
    let own = rules.iter().filter(|rule| rule.module == module).enumerate();
    own.map(|(number, rule)| (format!("r{number}"), Arc::new(route(rule)))).collect()
}

fn route(rule: &Rule) -> Route {
    Route {
        protocol: if rule.udp { Protocol::Udp } else { Protocol::Tcp },
        source: rule.source,
        destination: rule.destination,
        port: rule.port,
        priority: rule.priority,
        listen_port: None,
        targets: Targets::Implied,
        headers: Texts::new(),
        path_pattern: String::new(),
        metadata: Texts::new(),
    }
}
