//! QUIC (row 35): packets whose connection ids name their server, whatever the client's address.

use std::net::IpAddr;

use anyhow::Result;
use nlb::compile::FlowTuple;
use nlb::model::{Destination, ForwardMode, Health, L4, Server};

use crate::flows::{four, goes_to, set_health};
use crate::packet::{Packet, Transport, UdpChecksum};
use crate::rig::{
    CLIENT_MAC, Family, OUR_MAC, Rig, XDP_PASS, XDP_REDIRECT, XDP_TX, families, load_config, module,
};

/// The configuration of the modules' ids.
const CONFIG: u8 = 2;

/// The server id of module `n`.
fn server(n: u8) -> Server {
    Server::new(CONFIG, &[0xa5, n]).expect("a server id")
}

/// A connection id of a server with this configuration. The rest of it varies with `own`.
fn connection_id(config: u8, server: &[u8], own: u8) -> Vec<u8> {
    [&[config << 5 | own & 0x1f][..], server, &[own, own ^ 0xff, 0x33, own.wrapping_mul(7)]].concat()
}

/// The encrypted part of a packet.
const REST: [u8; 20] = [0x6b; 20];

/// A packet of an open connection.
fn short(id: &[u8]) -> Vec<u8> {
    [&[0x41][..], id, &REST].concat()
}

/// A handshake packet, of any version.
fn long(id: &[u8], version: u32) -> Vec<u8> {
    let source = [4, 1, 2, 3, 4];
    [&[0xe3][..], &version.to_be_bytes(), &[id.len() as u8], id, &source, &REST].concat()
}

fn carrying(family: &Family, payload: Vec<u8>) -> Packet {
    family.udp().with(|p| p.payload = payload)
}

/// Four modules with direct server return and server ids.
fn four_servers() -> Result<Rig> {
    let mut rig = four(&load_config())?;
    for n in 1..=4 {
        rig.module(&format!("m{n}")).quic = Some(server(n));
    }
    rig.apply()?;
    Ok(rig)
}

/// The module that a packet's flow belongs to by its hash.
fn by_hash(rig: &Rig, packet: &Packet) -> u8 {
    let flow = FlowTuple {
        client: packet.src,
        client_port: packet.sport,
        vip: packet.dst,
        port: packet.dport,
        l4: L4::Udp,
    };
    let name = &rig.image().choose(&flow).expect("a backend").instance_id;
    name[1..].parse().expect("a module of the rig")
}

fn elsewhere(family: &Family) -> IpAddr {
    let address = if family.client.is_ipv4() { "203.0.113.77" } else { "2001:db8:7::77" };
    address.parse().expect("an address")
}

#[test]
fn row_35_packets_go_to_the_server_of_their_connection_id() -> Result<()> {
    let mut rig = four_servers()?;
    for family in families() {
        for n in 1..=4 {
            for own in 0..16 {
                let id = connection_id(CONFIG, &[0xa5, n], own * 16 + n);
                let forms = [short(&id), long(&id, 1), long(&id, 0x6b33_43cf), long(&id, 0xfafa_fafa)];
                for (form, payload) in forms.into_iter().enumerate() {
                    let here =
                        carrying(&family, payload).with(|p| p.sport += 16 * u16::from(own) + form as u16);
                    let moved = here.with(|p| (p.src, p.sport) = (elsewhere(&family), p.sport + 1000));
                    let tagged = moved.with(|p| {
                        p.tags = vec![(0x88a8, 42), (0x8100, 7)];
                        match p.src {
                            IpAddr::V4(_) => p.options = vec![1; 12],
                            IpAddr::V6(_) => p.extensions = vec![(60, vec![0, 1, 4, 0, 0, 0, 0])],
                        }
                        p.sport += 1000;
                    });
                    for packet in [here, moved, tagged] {
                        assert_eq!(goes_to(&mut rig, &packet)?, n, "{packet:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_35_server_ids_have_1_to_8_octets_and_configurations_their_own_lengths() -> Result<()> {
    let mut rig = four(&load_config())?;
    for len in 1..=8 {
        for family in families() {
            let ids: [(u8, Vec<u8>); 4] = [
                (0, vec![0; len]),
                (0, [vec![0; len - 1], vec![1]].concat()),
                (1, vec![0; 9 - len]),
                (6, vec![0xff; len]),
            ];
            for ((config, id), n) in ids.iter().zip(1..) {
                rig.module(&format!("m{n}")).quic = Server::new(*config, id);
            }
            rig.apply()?;
            for ((config, id), n) in ids.iter().zip(1..) {
                for own in 0..4 {
                    let id = connection_id(*config, id, own);
                    let packets = [short(&id), long(&id, 1)].map(|payload| carrying(&family, payload));
                    for packet in packets.map(|packet| packet.with(|p| p.sport += u16::from(own))) {
                        assert_eq!(goes_to(&mut rig, &packet)?, n, "{len} octets: {packet:?}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[test]
fn row_35_packets_without_a_known_server_id_go_by_hash() -> Result<()> {
    let id = |config, server: [u8; 2]| connection_id(config, &server, 9);
    let named = id(CONFIG, [0xa5, 1]);
    let too_short = [&[0xe3, 0, 0, 0, 1, 6][..], &named[..6], &[4, 1, 2, 3, 4], &REST].concat();
    let payloads = [
        ("an unknown server", short(&id(CONFIG, [0xa5, 9]))),
        ("likewise, with a long header", long(&id(CONFIG, [0xa5, 9]), 1)),
        ("another configuration", short(&id(CONFIG + 1, [0xa5, 1]))),
        ("the configuration without server ids", short(&id(7, [0xa5, 1]))),
        ("likewise, with a long header", long(&id(7, [0xa5, 1]), 1)),
        ("an id that is too short for a nonce", too_short),
        ("no connection id", long(&[], 1)),
        ("a truncated id", short(&named)[..9].to_vec()),
        ("a truncated id, with a long header", long(&named, 1)[..14].to_vec()),
        ("a byte", vec![0x41]),
        ("nothing", Vec::new()),
    ];
    let mut rig = four_servers()?;
    for family in families() {
        for (what, payload) in &payloads {
            let mut others = 0;
            for sport in 20_000..20_032 {
                let packet = carrying(&family, payload.clone()).with(|p| p.sport = sport);
                rig.forget_flows();
                let module = goes_to(&mut rig, &packet)?;
                assert_eq!(module, by_hash(&rig, &packet), "{what}");
                others += u32::from(module != 1);
            }
            assert!(others > 10, "{what}: the hash chose m1 for nearly all");
        }
    }
    Ok(())
}

/// The bytes after a datagram are not part of it.
#[test]
fn row_35_connection_id_in_the_padding_is_ignored() -> Result<()> {
    let mut rig = four_servers()?;
    for family in families() {
        let named = short(&connection_id(CONFIG, &[0xa5, 1], 3));
        for inside in 0..10 {
            for sport in 20_000..20_016 {
                let packet = carrying(&family, named[..inside].to_vec())
                    .with(|p| (p.sport, p.padding) = (sport, named[inside..].to_vec()));
                assert_eq!(goes_to(&mut rig, &packet)?, by_hash(&rig, &packet), "{inside} bytes");
            }
        }
    }
    Ok(())
}

#[test]
fn row_35_services_without_server_ids_ignore_connection_ids() -> Result<()> {
    let mut rig = four_servers()?;
    for n in 1..=4 {
        rig.module(&format!("m{n}")).quic = None;
    }
    rig.apply()?;
    for family in families() {
        for sport in 20_000..20_064 {
            let id = connection_id(CONFIG, &[0xa5, 1 + (sport % 4) as u8], sport as u8);
            let packet = carrying(&family, short(&id)).with(|p| p.sport = sport);
            assert_eq!(goes_to(&mut rig, &packet)?, by_hash(&rig, &packet));
        }
    }
    Ok(())
}

#[test]
fn row_35_connection_id_replaces_the_recorded_flow() -> Result<()> {
    let mut rig = four_servers()?;
    for family in families() {
        let initial = carrying(&family, long(&[0xff; 18], 1));
        let first = goes_to(&mut rig, &initial)?;
        let other = first % 4 + 1;
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, other], 1)));
        assert_eq!(goes_to(&mut rig, &named)?, other);
        assert_eq!(goes_to(&mut rig, &initial)?, other, "the flow table has the new module");
        assert_eq!(goes_to(&mut rig, &named)?, other);
    }
    Ok(())
}

#[test]
fn row_35_packets_of_one_connection_id_open_one_flow() -> Result<()> {
    let mut rig = four_servers()?;
    let new_flows = |rig: &Rig| -> Result<u64> {
        let ids = rig.image().backend_ids.iter();
        ids.map(|(id, _)| Ok(rig.readings().backend(id)?.new_flows)).sum()
    };
    for family in families() {
        let before = new_flows(&rig)?;
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, 2], 1)));
        for _ in 0..5 {
            assert_eq!(goes_to(&mut rig, &named)?, 2);
        }
        assert_eq!(new_flows(&rig)? - before, 1);
    }
    Ok(())
}

/// New connections go to other servers. Open ones name their server and stay.
#[test]
fn row_35_a_draining_server_keeps_its_connections_and_gets_no_new_ones() -> Result<()> {
    let mut rig = four_servers()?;
    for (family, health) in families().into_iter().zip([Health::Stopping, Health::Unhealthy]) {
        let initial = carrying(&family, long(&[0xff; 18], 1));
        let module = goes_to(&mut rig, &initial)?;
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, module], 1)));
        set_health(&mut rig, module, health)?;
        assert_eq!(goes_to(&mut rig, &named)?, module, "{health:?}");
        let moved = named.with(|p| p.sport += 1);
        for _ in 0..3 {
            assert_eq!(goes_to(&mut rig, &moved)?, module, "{health:?}, from another port");
        }
        assert_ne!(goes_to(&mut rig, &initial)?, module, "{health:?}: a new connection");
        set_health(&mut rig, module, Health::Healthy)?;
    }
    Ok(())
}

#[test]
fn row_35_weights_and_versions_apply_to_new_connections_only() -> Result<()> {
    let mut rig = four_servers()?;
    rig.module("m1").weight = 0;
    rig.module("m2").version = "v2".to_owned();
    rig.desired.version_weights = [("v2".to_owned(), 0)].into();
    rig.route("m3", "udp").priority = -1;
    rig.apply()?;
    for family in families() {
        for n in 1..=4 {
            let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, n], 1)));
            assert_eq!(goes_to(&mut rig, &named.with(|p| p.sport += u16::from(n)))?, n);
        }
        for sport in 20_000..20_016 {
            assert_eq!(
                goes_to(&mut rig, &carrying(&family, long(&[0xff; 18], 1)).with(|p| p.sport = sport))?,
                4
            );
        }
    }
    Ok(())
}

#[test]
fn row_35_server_id_of_a_removed_module_is_free_for_another() -> Result<()> {
    let mut rig = four_servers()?;
    for family in families() {
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, 3], 1)));
        assert_eq!(goes_to(&mut rig, &named)?, 3);
        let removed = rig.desired.modules.remove("m3").expect("a module of the rig");
        rig.apply()?;
        assert_eq!(goes_to(&mut rig, &named)?, by_hash(&rig, &named));
        rig.module("m4").quic = Some(server(3));
        rig.apply()?;
        assert_eq!(goes_to(&mut rig, &named)?, 4);
        let before = carrying(&family, short(&connection_id(CONFIG, &[0xa5, 4], 1))).with(|p| p.sport += 1);
        assert_eq!(goes_to(&mut rig, &before)?, by_hash(&rig, &before), "its former id names no module");
        rig.module("m4").quic = Some(server(4));
        rig.desired.modules.insert("m3".to_owned(), removed);
        rig.apply()?;
    }
    Ok(())
}

/// A connection id does not give other sources access to a service.
#[test]
fn row_35_connection_id_does_not_admit_sources_without_a_route() -> Result<()> {
    let mut rig = four_servers()?;
    for family in families() {
        let near = if family.client.is_ipv4() { "198.51.100.0/24" } else { "2001:db8:c::/64" };
        for n in 1..=4 {
            let route = rig.route(&format!("m{n}"), "udp");
            route.source = Some(near.parse()?);
            route.destination = Destination::Address(family.vip);
        }
        rig.apply()?;
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, 3], 1)));
        assert_eq!(goes_to(&mut rig, &named)?, 3);
        let outcome = rig.run(&named.with(|p| p.src = elsewhere(&family)))?;
        assert_eq!(outcome.action, XDP_PASS);
        assert_eq!(outcome.counted, [("pass closed_port".to_owned(), 1)].into());
    }
    Ok(())
}

/// QUIC has none (RFC 9000 section 14).
#[test]
fn row_35_connection_ids_in_fragments_are_ignored() -> Result<()> {
    let mut rig = four_servers()?;
    let [family, _] = families();
    for n in 1..=4 {
        for sport in 20_000..20_008 {
            let id = connection_id(CONFIG, &[0xa5, n], 1);
            let whole = carrying(&family, [short(&id), vec![0x77; 99]].concat()).with(|p| {
                p.sport = sport + 8 * u16::from(n);
                p.id = p.sport;
            });
            let first = whole.with(|p| p.fragment = (0, true));
            let later = whole.with(|p| {
                (p.fragment, p.l4) = ((17, false), Transport::Other(17));
                p.payload.truncate(40);
            });
            let module = by_hash(&rig, &whole);
            assert_eq!((goes_to(&mut rig, &first)?, goes_to(&mut rig, &later)?), (module, module));
        }
    }
    Ok(())
}

/// The server of a client that changes its port sees another translated port, and its answers reach the
/// client.
#[test]
fn row_35_a_client_that_moves_is_answered_through_nat() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for (n, host) in [(1, 2), (2, 3)] {
        let mut module = module(ForwardMode::Nat, host);
        module.quic = Some(server(n));
        let addresses = [module.data.v4.map(IpAddr::from), module.data.v6.map(IpAddr::from)];
        for (address, family) in addresses.into_iter().flatten().zip(families()) {
            rig.know(address, family.source);
        }
        rig.desired.modules.insert(format!("m{n}"), module.into());
    }
    rig.apply()?;
    for family in families() {
        let mut ports = Vec::new();
        for (n, host) in [(1, 2), (2, 3), (1, 2)] {
            let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, n], 1)));
            for sport in [41_000, 41_001] {
                let request = named.with(|p| p.sport = sport);
                let outcome = rig.run(&request)?;
                assert_eq!(outcome.action, XDP_REDIRECT, "{:?}", outcome.counted);
                let port = crate::rig::source_port(&outcome.frame);
                let mut sent = family.translated(&request, port);
                sent.dst = with_host(sent.dst, host);
                assert_eq!(outcome.frame, sent.bytes());

                let answer = family.answer(&sent, Transport::Udp { checksum: UdpChecksum::Computed });
                let outcome = rig.run(&answer)?;
                assert_eq!(outcome.counted, [("send reply".to_owned(), 1)].into(), "m{n} from port {sport}");
                let received = answer.with(|p| {
                    (p.dst_mac, p.src_mac) = (CLIENT_MAC, OUR_MAC);
                    (p.src, p.dst) = (request.dst, request.src);
                    (p.sport, p.dport) = (request.dport, request.sport);
                    p.ttl -= 1;
                });
                assert_eq!(outcome.frame, received.bytes());
                ports.push((n, sport, port));
            }
        }
        assert_ne!(ports[0].2, ports[1].2, "two flows of a client have two ports");
    }
    Ok(())
}

fn with_host(address: IpAddr, host: u8) -> IpAddr {
    match address {
        IpAddr::V4(v4) => {
            let [a, b, c, _] = v4.octets();
            [a, b, c, host].into()
        }
        IpAddr::V6(v6) => {
            let mut octets = v6.octets();
            octets[15] = host;
            octets.into()
        }
    }
}

/// Such a packet is punted before a flow is recorded (row 22), and answered if its TTL has expired.
#[test]
fn row_35_packet_to_an_unreachable_server_is_punted() -> Result<()> {
    let mut rig = Rig::new(ForwardMode::Nat)?;
    for family in families() {
        rig.module("m1").quic = Some(server(1));
        rig.hops.remove(&family.backend);
        rig.apply()?;
        let named = carrying(&family, short(&connection_id(CONFIG, &[0xa5, 1], 1)));
        let outcome = rig.run(&named)?;
        assert_eq!(outcome.counted, [("park next_hop".to_owned(), 1)].into());
        let outcome = rig.run(&named.with(|p| p.ttl = 1))?;
        assert_eq!((outcome.action, outcome.counted), (XDP_TX, [("send ttl_exceeded".to_owned(), 1)].into()));
    }
    Ok(())
}

/// A packet that names a full module does not reach it, and the flow that it came by stays where it counts.
#[test]
fn row_35_no_connection_id_leads_past_a_limit() -> Result<()> {
    let mut rig = four_servers()?;
    for n in 1..=2 {
        rig.module(&format!("m{n}")).max_connections = 3;
    }
    rig.apply()?;
    for family in families() {
        let packet = |n: u8, port: u16| {
            let id = connection_id(CONFIG, &[0xa5, n], 7);
            carrying(&family, short(&id)).with(|p| p.sport = port)
        };
        for port in 0..3 {
            assert_eq!(goes_to(&mut rig, &packet(1, 1000 + port))?, 1);
            assert_eq!(goes_to(&mut rig, &packet(2, 2000 + port))?, 2);
        }
        for port in (1000..1003).chain(3000..3003) {
            let outcome = rig.run(&packet(2, port))?;
            assert_eq!(outcome.counted, [("drop full".to_owned(), 1), ("full".to_owned(), 1)].into());
        }
        assert_eq!(rig.counted(), [3, 3]);
        for port in 1000..1003 {
            assert_eq!(goes_to(&mut rig, &packet(1, port))?, 1, "open flows go on");
        }
        assert_eq!(goes_to(&mut rig, &packet(3, 1000))?, 3, "a flow that moves makes room");
        assert_eq!(rig.counted(), [2, 3]);
        assert_eq!(goes_to(&mut rig, &packet(1, 3000))?, 1);
        rig.lose_flows()?;
        assert_eq!(rig.counted(), [0, 0]);
    }
    Ok(())
}
