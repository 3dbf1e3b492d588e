//! Desired states and networks, drawn from so few addresses, ports and names that they overlap in every way.

use std::net::IpAddr;

use nlb::model::next_hop::{Hop, Hops};
use nlb::model::settings::TableSizes;
use nlb::model::*;
use nlb_common::maglev::SLOTS;
use proptest::collection::{btree_map, vec};
use proptest::option::weighted;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::invariants::Flow;

pub const LIMITS: TableSizes = TableSizes {
    backends: 1000,
    services: 1000,
    pools: 1000,
    addresses: 1000,
    rate_limits: 1000,
    source_prefixes: 1000,
    counted_routes: 2,
};

/// The first two are configured.
const VIPS: [&str; 3] = ["192.0.2.1", "2001:db8::1", "192.0.2.9"];
const PORTS: [u16; 3] = [53, 80, 443];
/// Server ids of two configurations, the first of which has ids of two lengths: states may disagree about the
/// length, one after the other.
const SERVERS: [(u8, &[u8]); 4] = [(0, &[1]), (0, &[2]), (0, &[1, 0]), (1, &[1])];
/// Three of these contain each other.
const SOURCES: [&str; 4] = ["10.0.0.0/8", "10.1.0.0/16", "10.1.0.0/24", "2001:db8:c::/48"];
const CLIENTS: [&str; 4] = ["10.1.0.1", "10.9.0.1", "198.51.100.1", "2001:db8:c::1"];

/// The input of the compiler.
#[derive(Clone, Debug)]
pub struct World {
    pub desired: Desired,
    pub hops: Hops,
}

pub fn world() -> impl Strategy<Value = World> {
    let desired = (
        btree_map("[ab]-[12]", module(), 0..4),
        btree_map("op-[12]", route(), 0..2),
        // Learned routes, about which modules may have answers, below.
        (any::<bool>(), btree_map("r[12]", route(), 0..2)),
        (btree_map(deployment(), weights(), 0..3), weights()),
        any::<bool>(),
    );
    (desired, hops()).prop_map(
        |(
            (modules, operator_routes, (learn_routes, learned_routes), (splits, version_weights), fail_open),
            hops,
        )| {
            World {
                desired: Desired {
                    vips: VIPS[..2].iter().copied().map(address).collect(),
                    fail_open,
                    modules: modules.into(),
                    operator_routes: operator_routes.into(),
                    learn_routes,
                    learned_routes: learned_routes.into(),
                    splits,
                    version_weights,
                    ..Desired::default()
                },
                hops,
            }
        },
    )
}

fn module_type() -> impl Strategy<Value = ModuleType> {
    select(vec![ModuleType::Alb, ModuleType::Dblb])
}

fn deployment() -> impl Strategy<Value = Deployment> {
    module_type().prop_map(Deployment::from)
}

fn weights() -> impl Strategy<Value = VersionWeights> {
    btree_map("v[12]", select(vec![0_u32, 5, 95]), 0..2)
}

fn module() -> impl Strategy<Value = Module> {
    use ForwardMode::*;
    use Health::*;
    let part = (
        module_type(),
        "v[12]",
        select(vec![0_u32, 1, 100]),
        select(vec![Healthy, Healthy, Healthy, Degraded, Starting, Unhealthy, Stopping]),
    );
    let way = (
        weighted(0.9, 1..4_u8),
        weighted(0.5, 1..4_u8),
        select(vec![Nat, Nat, DsrL2, DsrIpip, Gue]),
        select(vec![Snat::Always, Snat::OnLink, Snat::Never]),
        weighted(0.5, select(servers())),
        select(vec![0, 0, 3]),
    );
    let ability = (any::<bool>(), 0..2_i32);
    let ability = ability.prop_map(|(can_handle, priority)| Ability { can_handle, priority });
    let ability = btree_map(("r[12]", any::<bool>()), ability, 0..3);
    (part, way, btree_map("r[1-6]", route(), 0..7), ability).prop_map(|(part, way, routes, ability)| {
        let (module_type, version, weight, health) = part;
        let (v4, v6, mode, snat, quic, max_connections) = way;
        let data = DataAddresses {
            v4: v4.map(|host| [10, 0, 0, host].into()),
            v6: v6.map(|host| [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(host)].into()),
        };
        let key = |(id, operators)| RouteKey { id, operators };
        let abilities = ability.into_iter().map(|(route, ability)| (key(route), ability)).collect();
        let listen_port = None;
        Module {
            module_type,
            deployment: module_type.into(),
            version,
            weight,
            health,
            data,
            mode,
            snat,
            listen_port,
            max_connections,
            quic,
            routes: routes.into(),
            abilities,
        }
    })
}

fn route() -> impl Strategy<Value = Route> {
    let destination = prop_oneof![
        Just(Destination::EveryVip),
        select(&VIPS[..]).prop_map(|vip| Destination::Address(address(vip))),
        Just(Destination::Prefix("192.0.2.0/24".parse().expect("a prefix"))),
    ];
    let protocol = select(vec![Protocol::Tcp, Protocol::Udp, Protocol::Mysql]);
    let source = weighted(0.4, select(&SOURCES[..]).prop_map(|net| net.parse().expect("a prefix")));
    (protocol, source, destination, weighted(0.7, select(&PORTS[..])), 0..2_i32).prop_map(
        |(protocol, source, destination, port, priority)| Route {
            protocol,
            source,
            destination,
            port,
            priority,
            listen_port: None,
            targets: Targets::Implied,
            headers: Texts::new(),
            path_pattern: String::new(),
            metadata: Texts::new(),
        },
    )
}

/// Next hops to some of the modules, each from one of two addresses of ours.
fn hops() -> impl Strategy<Value = Hops> {
    let hosts: Vec<IpAddr> =
        ["10.0.0.1", "10.0.0.2", "10.0.0.3", "fd00::1", "fd00::2", "fd00::3"].map(address).to_vec();
    let known = subsequence(hosts, 0..=6);
    (known, vec(any::<bool>(), 6)).prop_map(|(known, others)| {
        let way = |(host, other): (IpAddr, bool)| {
            let source = match (host.is_ipv4(), other) {
                (true, false) => "10.0.0.100",
                (true, true) => "10.0.0.101",
                (false, false) => "fd00::100",
                (false, true) => "fd00::101",
            };
            (
                host,
                Hop {
                    hop: Default::default(),
                    source: address(source),
                    mtu: 1500,
                    link_prefix: 120,
                    local: false,
                },
            )
        };
        known.into_iter().zip(others).map(way).collect()
    })
}

/// The server ids of modules.
pub fn servers() -> Vec<Server> {
    let server = |(config, octets)| Server::new(config, octets).expect("a server id");
    SERVERS.into_iter().map(server).collect()
}

/// One flow of each kind that the states above distinguish, at slots all over the tables.
pub fn flows() -> impl Iterator<Item = Flow> {
    let slots = (0..SLOTS as usize).step_by(SLOTS as usize / 5);
    let kinds = CLIENTS.iter().flat_map(|client| VIPS.iter().map(move |vip| (address(client), address(vip))));
    kinds.filter(|(client, vip)| client.is_ipv4() == vip.is_ipv4()).flat_map(move |(client, vip)| {
        let slots = slots.clone();
        [53, 80, 443, 3306, 9999].into_iter().flat_map(move |port| {
            let slots = slots.clone();
            [L4::Tcp, L4::Udp]
                .into_iter()
                .flat_map(move |l4| slots.clone().map(move |slot| Flow { client, vip, port, l4, slot }))
        })
    })
}

fn address(text: &str) -> IpAddr {
    text.parse().expect("an address")
}
