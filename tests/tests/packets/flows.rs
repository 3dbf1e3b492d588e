//! Flows: which backend they keep, and what happens when it is removed.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use anyhow::Result;
use nlb::compile::FlowTuple;
use nlb::model::{Destination, ForwardMode, Health, L4, Module, Route, Routes};
use nlb_common::abi::PUNTED_BYTES;
use nlb_common::net::Addr;

use crate::packet::{ACK, FIN, Packet, RST, Transport};
use crate::rig::{Family, Rig, XDP_DROP, XDP_REDIRECT, families, load_config, module};

/// A rig with modules m1 to m4, which differ by the destination MAC of forwarded packets.
pub fn four(load_config: &nlb::datapath::loader::LoadConfig) -> Result<Rig> {
    four_in(ForwardMode::DsrL2, load_config)
}

fn four_in(mode: ForwardMode, load_config: &nlb::datapath::loader::LoadConfig) -> Result<Rig> {
    let mut rig = Rig::sized(mode, load_config)?;
    for host in 2..=5 {
        let name = format!("m{}", host - 1);
        let module = module(mode, host);
        for (addr, source) in [
            (module.data.v4.map(Into::into), families()[0].source),
            (module.data.v6.map(Into::into), families()[1].source),
        ] {
            let addr = addr.expect("both families");
            rig.know(addr, source);
            let hop = rig.hops.get_mut(&addr).expect("just put there");
            let mac = nlb_common::net::Mac::new([2, 0, 0, 0, 1, host]);
            hop.hop = nlb_common::abi::NextHop::new(mac, hop.hop.src(), hop.hop.ifindex);
        }
        rig.desired.modules.insert(name, module.into());
    }
    rig.apply()?;
    Ok(rig)
}

/// The number of the module that a packet goes to.
pub fn goes_to(rig: &mut Rig, packet: &Packet) -> Result<u8> {
    let outcome = rig.run(packet)?;
    assert_eq!(outcome.action, XDP_REDIRECT, "{packet:?}: {:?}", outcome.counted);
    Ok(outcome.frame[5] - 1)
}

fn segment(packet: &Packet, flags: u8) -> Packet {
    packet.with(|p| p.l4 = Transport::Tcp { flags, seq: 5000 })
}

pub fn set_health(rig: &mut Rig, module: u8, health: Health) -> Result<()> {
    rig.module(&format!("m{module}")).health = health;
    rig.apply()
}

#[test]
fn row_14_unknown_connection_is_forwarded_by_hash() -> Result<()> {
    for family in families() {
        let mut rig = four(&load_config())?;
        let mut seen = BTreeSet::new();
        for sport in 10_000..10_064 {
            let packet = family.ack().with(|p| p.sport = sport);
            let flow =
                FlowTuple { client: packet.src, client_port: sport, vip: packet.dst, port: 80, l4: L4::Tcp };
            let chosen = rig.image().choose(&flow).expect("a backend").instance_id.clone();
            let module = goes_to(&mut rig, &packet)?;
            assert_eq!(format!("m{module}"), chosen, "user space and the kernel must agree");
            seen.insert(module);
        }
        assert_eq!(seen.len(), 4, "64 flows are not spread over all four modules");
    }
    Ok(())
}

#[test]
fn row_13_retransmits_and_open_connections_keep_their_backend() -> Result<()> {
    for family in families() {
        let mut rig = four(&load_config())?;
        let syn = family.syn();
        let module = goes_to(&mut rig, &syn)?;
        // New flows go to other modules now, and this one stays.
        rig.module(&format!("m{module}")).weight = 0;
        rig.apply()?;
        assert_eq!(goes_to(&mut rig, &syn)?, module, "a retransmitted SYN");
        assert_eq!(goes_to(&mut rig, &family.ack())?, module, "a held connection");
        assert_ne!(goes_to(&mut rig, &syn.with(|p| p.sport += 1))?, module, "weight 0 takes no new flows");
    }
    Ok(())
}

#[test]
fn row_13_syn_after_a_reset_opens_a_new_connection() -> Result<()> {
    for (what, ends) in [("reset", vec![RST]), ("closed from both sides", vec![FIN | ACK])] {
        for family in families() {
            let mut rig = four(&load_config())?;
            let module = goes_to(&mut rig, &family.syn())?;
            goes_to(&mut rig, &family.ack())?;
            rig.module(&format!("m{module}")).weight = 0;
            rig.apply()?;
            for flags in ends.clone() {
                assert_eq!(goes_to(&mut rig, &segment(&family.ack(), flags))?, module);
            }
            let again = goes_to(&mut rig, &family.syn())?;
            if what == "reset" {
                assert_ne!(again, module, "{what}");
            } else {
                // With DSR the backend's FIN is never seen, so the next SYN may be a retransmission.
                assert_eq!(again, module, "{what}");
            }
        }
    }
    Ok(())
}

#[test]
fn row_15_forged_reset_does_not_move_an_open_connection() -> Result<()> {
    for family in families() {
        let mut rig = four(&load_config())?;
        let module = goes_to(&mut rig, &family.syn())?;
        goes_to(&mut rig, &family.ack())?;
        rig.module(&format!("m{module}")).weight = 0;
        rig.apply()?;
        goes_to(&mut rig, &segment(&family.ack(), RST))?;
        assert_eq!(goes_to(&mut rig, &family.ack())?, module, "data after the reset");
        assert_eq!(goes_to(&mut rig, &family.syn())?, module, "a SYN is a retransmission again");
    }
    Ok(())
}

#[test]
fn row_32_udp_flows_leave_a_draining_module_and_tcp_connections_stay() -> Result<()> {
    let modes = [ForwardMode::DsrL2, ForwardMode::DsrIpip, ForwardMode::Gue];
    for (mode, family) in modes.into_iter().flat_map(|mode| families().map(|family| (mode, family))) {
        let mut rig = four_in(mode, &load_config())?;
        for health in [Health::Stopping, Health::Unhealthy] {
            let (udp, tcp) = (goes_to(&mut rig, &family.udp())?, goes_to(&mut rig, &family.syn())?);
            goes_to(&mut rig, &family.ack())?;
            set_health(&mut rig, udp, health)?;
            set_health(&mut rig, tcp, health)?;
            assert_ne!(goes_to(&mut rig, &family.udp())?, udp, "{health:?}");
            assert_eq!(goes_to(&mut rig, &family.ack())?, tcp, "{health:?}");
            assert_ne!(goes_to(&mut rig, &family.syn())?, tcp, "{health:?}: a new connection goes elsewhere");
            set_health(&mut rig, udp, Health::Healthy)?;
            set_health(&mut rig, tcp, Health::Healthy)?;
        }
    }
    Ok(())
}

#[test]
fn flows_of_a_removed_backend_are_stale_after_its_id_is_reused() -> Result<()> {
    let mut small = load_config();
    // With few ids, one is reused soon.
    small.limits.backends = 20;
    for family in families() {
        let mut rig = four(&small)?;
        let module_number = goes_to(&mut rig, &family.syn())?;
        goes_to(&mut rig, &family.ack())?;
        let name = format!("m{module_number}");
        let removed = rig.desired.modules.remove(&name).expect("registered");
        let old_addr = match family.vip {
            IpAddr::V4(_) => removed.data.v4.map(|addr| Addr::v4(addr.octets())),
            IpAddr::V6(_) => removed.data.v6.map(|addr| Addr::v6(addr.octets())),
        };
        rig.apply()?;
        // Modules of weight 0 at its address are added and removed until one of them has the flow's id.
        let other = Arc::new(Module { weight: 0, ..Module::clone(&removed) });
        let mut rounds = 0;
        while !rig.image().rows.backends.values().any(|row| row.generation > 0 && Some(row.addr) == old_addr)
        {
            rounds += 1;
            assert!(rounds < 40, "no id was reused");
            rig.desired.modules.insert(format!("x{rounds}"), other.clone());
            rig.desired.modules.remove(&format!("x{}", rounds - 1));
            rig.apply()?;
        }
        let flow =
            FlowTuple { client: family.client, client_port: 40_000, vip: family.vip, port: 80, l4: L4::Tcp };
        let chosen = rig.image().choose(&flow).expect("a backend").addr;
        let module = goes_to(&mut rig, &family.ack())?;
        assert_ne!(module, module_number, "the removed module");
        assert_eq!(Some(module + 1), last_byte(chosen), "a stale flow is balanced anew");
    }
    Ok(())
}

fn last_byte(addr: IpAddr) -> Option<u8> {
    match addr {
        IpAddr::V4(v4) => v4.octets().last().copied(),
        IpAddr::V6(v6) => v6.octets().last().copied(),
    }
}

#[test]
fn row_2_packets_to_a_service_without_backends_are_dropped() -> Result<()> {
    for family in families() {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        set_health(&mut rig, 1, Health::Stopping)?;
        for packet in [family.syn(), family.ack(), family.udp()] {
            let outcome = rig.run(&packet)?;
            assert_eq!(outcome.action, XDP_DROP);
            assert_eq!(outcome.counted, [("drop no_backend".to_owned(), 1)].into());
        }
        // With every module unhealthy, the pool fails open.
        set_health(&mut rig, 1, Health::Unhealthy)?;
        assert_eq!(rig.run(&family.syn())?.action, XDP_REDIRECT);
        rig.desired.fail_open = false;
        rig.apply()?;
        assert_eq!(rig.run(&family.syn().with(|p| p.sport += 1))?.action, XDP_DROP);
    }
    Ok(())
}

#[test]
fn row_37_sources_that_no_other_host_has_open_no_flow() -> Result<()> {
    for mode in [ForwardMode::Nat, ForwardMode::DsrL2] {
        let mut rig = Rig::new(mode)?;
        for family in families() {
            let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
            let mut martians = vec![family.vip];
            martians.extend(match family.vip.is_ipv4() {
                true => ["0.0.0.0", "127.0.0.1", "224.0.0.1", "255.255.255.255"].map(ip),
                false => ["::", "::1", "ff02::1", "ff0e::1"].map(ip),
            });
            // With direct server return no packet comes to this address.
            martians.extend((mode == ForwardMode::Nat).then_some(family.source));
            for packet in [family.syn(), family.ack(), family.udp()] {
                for src in &martians {
                    let outcome = rig.run(&packet.with(|p| p.src = *src))?;
                    let dropped = [("drop martian_source".to_owned(), 1)].into();
                    assert_eq!((outcome.action, outcome.counted), (XDP_DROP, dropped), "from {src}");
                }
                assert_eq!(rig.run(&packet)?.action, XDP_REDIRECT);
            }
        }
    }
    Ok(())
}

#[test]
fn row_22_packet_without_a_known_next_hop_is_punted_unchanged() -> Result<()> {
    for family in families() {
        let mut rig = Rig::new(ForwardMode::Nat)?;
        rig.hops.remove(&family.backend);
        rig.apply()?;
        let outcome = rig.run(&family.syn())?;
        assert_eq!(outcome.counted, [("park next_hop".to_owned(), 1)].into());
        assert_eq!(outcome.frame, family.syn().bytes());
        assert_eq!(rig.punted(), [family.syn().bytes()]);
        let headers = family.syn().bytes().len();
        let of_length = |len: usize| {
            let bytes = (0..len - headers).map(|n| n as u8);
            family.syn().with(|p| p.payload = bytes.collect())
        };
        for len in (1000..1008).chain(PUNTED_BYTES - 7..=PUNTED_BYTES) {
            rig.run(&of_length(len))?;
            assert_eq!(rig.punted(), [of_length(len).bytes()], "{len} bytes");
        }
        let long = rig.run(&of_length(PUNTED_BYTES + 1))?;
        assert_eq!(long.counted, [("drop park_full".to_owned(), 1)].into(), "too long to be punted");
        assert!(rig.punted().is_empty());
        rig.know(family.backend, family.source);
        rig.apply()?;
        assert_eq!(rig.run(&family.syn())?.action, XDP_REDIRECT);
    }
    Ok(())
}

#[test]
fn row_24_full_bucket_forwards_by_hash_and_keeps_established_flows() -> Result<()> {
    let mut small = load_config();
    small.flows.max = 4;
    assert_eq!(small.flow_buckets(), 1, "all flows share one bucket of four");
    for family in families() {
        let mut rig = four(&small)?;
        let flow = |n: u16| family.syn().with(|p| p.sport = 20_000 + n);
        let middle = |n: u16| family.ack().with(|p| p.sport = 20_000 + n);
        for n in 0..4 {
            goes_to(&mut rig, &flow(n))?;
            goes_to(&mut rig, &middle(n))?;
        }
        for n in 4..40 {
            let outcome = rig.run(&flow(n))?;
            let counted = [("send forward".to_owned(), 1), ("unrecorded".to_owned(), 1)];
            assert_eq!((outcome.action, outcome.counted), (XDP_REDIRECT, counted.into()));
        }
        for n in 0..4 {
            let chosen = goes_to(&mut rig, &middle(n))?;
            // With weight 0 the module keeps the recorded flows, and no others.
            rig.module(&format!("m{chosen}")).weight = 0;
            rig.apply()?;
            assert_eq!(goes_to(&mut rig, &middle(n))?, chosen, "flow {n} was evicted");
            rig.module(&format!("m{chosen}")).weight = 100;
            rig.apply()?;
        }
        // The program looks for room in a full bucket once a tick.
        rig.forget_flows();
        rig.wait_ticks(1)?;
        for n in 40..44 {
            let outcome = rig.run(&flow(n))?;
            assert_eq!(
                (outcome.action, outcome.counted),
                (XDP_REDIRECT, [("send forward".to_owned(), 1)].into())
            );
        }
    }
    Ok(())
}

#[test]
fn sources_are_matched_by_priority_and_prefix() -> Result<()> {
    let [family, _]: [Family; 2] = families();
    let mut rig = four(&load_config())?;
    let restrict = |rig: &mut Rig, module: &str, source: &str, priority: i32| {
        let route = rig.route(module, "tcp");
        (route.source, route.priority) = (Some(source.parse().expect("a prefix")), priority);
    };
    restrict(&mut rig, "m1", "198.51.0.0/16", 10);
    restrict(&mut rig, "m2", "198.51.100.0/24", 0);
    restrict(&mut rig, "m3", "203.0.113.0/24", 0);
    rig.apply()?;
    let from = |source: &str| family.syn().with(|p| p.src = source.parse().expect("an address"));
    assert_eq!(goes_to(&mut rig, &from("198.51.100.7"))?, 1, "the higher priority beats the longer prefix");
    assert_eq!(goes_to(&mut rig, &from("198.51.1.1"))?, 1);
    assert_eq!(goes_to(&mut rig, &from("203.0.113.200"))?, 3);
    assert_eq!(goes_to(&mut rig, &from("192.88.99.1"))?, 4, "other sources");
    restrict(&mut rig, "m1", "198.51.0.0/16", 0);
    rig.apply()?;
    let fresh = from("198.51.100.7").with(|p| p.sport += 1);
    assert_eq!(goes_to(&mut rig, &fresh)?, 2, "at equal priority, the longer prefix wins");
    Ok(())
}

#[test]
fn row_33_services_differ_by_protocol_port_and_vip() -> Result<()> {
    for family in families() {
        let mut rig = four(&load_config())?;
        let route = Route::clone(&rig.module("m1").routes["tcp"]);
        let udp = Route::clone(&rig.module("m1").routes["udp"]);
        let with = |change: &dyn Fn(&mut Route)| {
            let mut route = route.clone();
            change(&mut route);
            route
        };
        // TCP of one port goes to m1, UDP to m2, other ports of the VIP to m3, the same port of another VIP
        // to m4.
        rig.module("m1").routes =
            Routes::unit("a".to_owned(), with(&|r| r.destination = Destination::Address(family.vip)).into());
        rig.module("m2").routes = Routes::unit("b".to_owned(), Route { port: Some(80), ..udp }.into());
        rig.module("m3").routes =
            (8000..8008).map(|port| (port.to_string(), with(&|r| r.port = Some(port)))).collect();
        rig.module("m4").routes =
            Routes::unit("d".to_owned(), with(&|r| r.destination = Destination::Address(family.vip2)).into());
        rig.apply()?;
        for sport in 30_000..30_050 {
            let tcp = family.syn().with(|p| p.sport = sport);
            let udp = family.udp().with(|p| (p.sport, p.dport) = (sport, 80));
            let port = 8000 + sport % 8;
            assert_eq!(goes_to(&mut rig, &tcp)?, 1);
            assert_eq!(goes_to(&mut rig, &udp)?, 2);
            assert_eq!(goes_to(&mut rig, &tcp.with(|p| p.dport = port))?, 3);
            assert_eq!(goes_to(&mut rig, &tcp.with(|p| p.dst = family.vip2))?, 4);
        }
    }
    Ok(())
}
