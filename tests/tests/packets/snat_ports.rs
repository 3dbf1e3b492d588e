//! Which port a new flow of NAT gets: the order in which ports are used again.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, bail};
use nlb::model::snat::SnatAddresses;
use nlb::model::{ForwardMode, Route, Snat};
use nlb_common::flow::IdleTimes;

use crate::connection::{Connection, tcp};
use crate::packet::{ACK, FIN, PSH, Packet, RST, SYN, Transport, UdpChecksum};
use crate::rig::{Family, Rig, XDP_REDIRECT, families, load_config, source_port};

/// A rig with so many ports.
fn rig(ports: u16) -> Result<(Rig, IdleTimes)> {
    rig_with_addresses(ports, &[])
}

/// A rig with so many ports of each of these addresses.
fn rig_with_addresses(ports: u16, addresses: &[IpAddr]) -> Result<(Rig, IdleTimes)> {
    let mut load_config = load_config();
    load_config.snat_ports = 2000..=1999 + ports;
    load_config.snat_addresses = SnatAddresses::new(addresses.to_vec()).map_err(Error::msg)?;
    let rig = Rig::sized(ForwardMode::Nat, &load_config)?;
    let idle = rig.idle_times(&load_config);
    Ok((rig, idle))
}

/// The port that the backend sees; `None` if the packet is dropped because all are taken.
fn port_of(rig: &mut Rig, packet: &Packet) -> Result<Option<u16>> {
    let outcome = rig.run(packet)?;
    if outcome.counted.contains_key("drop snat_ports") {
        return Ok(None);
    }
    assert_eq!(outcome.action, XDP_REDIRECT, "{packet:?}: {:?}", outcome.counted);
    Ok(Some(source_port(&outcome.frame)))
}

/// The port of a packet that begins a flow, after other packets were dropped. A CPU does not search again in
/// the tick in which it found no port.
fn port_later(rig: &mut Rig, packet: &Packet) -> Result<u16> {
    let end = Instant::now() + Duration::from_secs(60);
    while Instant::now() < end {
        if let Some(port) = port_of(rig, packet)? {
            return Ok(port);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("no port is found")
}

/// Closes a connection, the backend first. The client's FIN has this sequence number.
fn close(connection: &Connection, rig: &mut Rig, seq: u32) -> Result<()> {
    connection.answers(rig, FIN | ACK)?;
    connection.sends(rig, FIN | ACK, seq)
}

fn syn(family: &Family, n: u16) -> Packet {
    family.syn().with(|p| p.sport = 40_000 + n)
}

/// A client that has sent all waits for the answer for as long as it takes.
#[test]
fn half_closed_connection_keeps_its_port() -> Result<()> {
    for (family, by_client) in families().into_iter().flat_map(|family| [(family, false), (family, true)]) {
        let (mut rig, idle) = rig(1)?;
        let connection = Connection::open(&mut rig, family, syn(&family, 0))?;
        if by_client {
            connection.sends(&mut rig, FIN | ACK, 2000)?;
        } else {
            connection.answers(&mut rig, FIN | ACK)?;
        }
        rig.age_flows(idle.time_wait + idle.closing);
        assert_eq!(port_of(&mut rig, &syn(&family, 1))?, None);
        connection.answers(&mut rig, ACK)?;
        connection.sends(&mut rig, ACK, 2001)?;
    }
    Ok(())
}

#[test]
fn every_port_of_a_small_range_is_found() -> Result<()> {
    for family in families() {
        let (mut rig, _) = rig(200)?;
        let mut ports = BTreeSet::new();
        for n in 0..200 {
            ports.extend(port_of(&mut rig, &syn(&family, n))?);
        }
        assert_eq!(ports, (2000..2200).collect());
        assert_eq!(port_of(&mut rig, &syn(&family, 200))?, None);
    }
    Ok(())
}

#[test]
fn ports_of_closed_connections_rest_while_others_are_free() -> Result<()> {
    for family in families() {
        let (mut rig, idle) = rig(4)?;
        let mut used = BTreeSet::new();
        for n in 0..4 {
            let connection = Connection::open(&mut rig, family, syn(&family, n))?;
            close(&connection, &mut rig, 2000)?;
            assert!(used.insert(connection.port), "a port was used twice");
            rig.age_flows(idle.closing + 1);
        }
        // All four have closed; the first one has rested longest.
        rig.age_flows(idle.time_wait - 4 * (idle.closing + 1) + 1);
        assert!(used.contains(&port_of(&mut rig, &syn(&family, 9))?.expect("a port")));
    }
    Ok(())
}

/// Of ports that no connection may use yet, the one that has rested longest is used.
#[test]
fn the_port_that_closed_first_is_used_again_first() -> Result<()> {
    for family in families() {
        let (mut rig, _) = rig(4)?;
        let mut ports = Vec::new();
        for n in 0..4 {
            // A SYN is never above this number, so the backend might refuse any.
            let connection = Connection::open(&mut rig, family, syn(&family, n))?;
            close(&connection, &mut rig, 1000)?;
            ports.push(connection.port);
            rig.age_flows(2);
        }
        for (n, expected) in (10..).zip(ports) {
            let connection = Connection::open(&mut rig, family, syn(&family, n))?;
            assert_eq!(connection.port, expected);
            close(&connection, &mut rig, 1000)?;
            rig.age_flows(2);
        }
    }
    Ok(())
}

/// The backend has all four connections in TIME_WAIT, and accepts a SYN with a higher sequence number (RFC
/// 6191).
#[test]
fn a_port_whose_last_sequence_number_is_lower_is_used_again_first() -> Result<()> {
    const HIGH: u32 = 0xa000_0000;
    for family in families() {
        let (mut rig, _) = rig(4)?;
        let mut low = 0;
        for n in 0..4 {
            let connection = Connection::open(&mut rig, family, syn(&family, n))?;
            let seq = if n == 2 { 0x1000_0000 } else { HIGH };
            close(&connection, &mut rig, seq)?;
            if n == 2 {
                low = connection.port;
            }
        }
        rig.age_flows(2);
        let between = tcp(&syn(&family, 10), SYN, 0x5000_0000);
        assert_eq!(port_of(&mut rig, &between)?, Some(low));
        let above_all = tcp(&syn(&family, 11), SYN, HIGH + 0x1000_0000);
        assert!(port_of(&mut rig, &above_all)?.is_some_and(|port| port != low));
    }
    Ok(())
}

/// With timestamps, those count (RFC 7323 section 5.5).
#[test]
fn a_port_whose_last_timestamp_is_lower_is_used_again_first() -> Result<()> {
    const STAMP: u32 = 0x9000_0000;
    for family in families() {
        let stamped = |n: u16, stamp| syn(&family, n).with(|p| p.timestamp = Some(stamp));
        let (mut rig, _) = rig(4)?;
        let mut ports = Vec::new();
        for (n, stamp) in [(0, STAMP), (1, STAMP), (2, 0x1000_0000), (3, STAMP)] {
            let connection = Connection::open(&mut rig, family, stamped(n, stamp))?;
            // Lower than the sequence number of the SYN below.
            close(&connection, &mut rig, 1000)?;
            ports.push(connection.port);
        }
        rig.age_flows(2);
        let begins = tcp(&stamped(10, 0x5000_0000), SYN, 0x5000_0000);
        assert_eq!(port_of(&mut rig, &begins)?, Some(ports[2]));
    }
    Ok(())
}

#[test]
fn a_connection_that_opens_again_keeps_its_port() -> Result<()> {
    for family in families() {
        let (mut rig, _) = rig(100)?;
        let connection = Connection::open(&mut rig, family, syn(&family, 0))?;
        close(&connection, &mut rig, 0x9000_0000)?;
        let again = Connection::open(&mut rig, family, syn(&family, 0))?;
        assert_eq!(again.port, connection.port);
        again.answers(&mut rig, ACK)?;
    }
    Ok(())
}

/// A NAT flow needs an entry, and may evict another flow's. The reply entry of that one lies in another
/// bucket.
#[test]
fn a_flow_that_lost_its_entry_has_its_port_again() -> Result<()> {
    for (family, snat) in
        families().into_iter().flat_map(|family| [(family, Snat::Always), (family, Snat::Never)])
    {
        let (mut rig, _) = rig(100)?;
        rig.module("m1").snat = snat;
        rig.apply()?;
        let connection = Connection {
            family,
            syn: syn(&family, 0),
            port: port_of(&mut rig, &syn(&family, 0))?.expect("a port"),
        };
        connection.sends(&mut rig, ACK, 1001)?;
        let flows = rig.readings().flows.all().iter().flat_map(|bucket| &bucket.entries);
        let forward =
            flows.filter_map(|entry| Some((entry, entry.snapshot()?))).find(|(_, (key, _))| key.is_forward());
        let (entry, (_, state)) = forward.expect("the flow has one");
        assert!(entry.remove(state));
        connection.sends(&mut rig, ACK, 1002)?;

        // Other limits of a route make it another backend with the same address and port.
        let id = |rig: &Rig| rig.image().backend_ids.iter().map(|(id, _)| id).collect::<Vec<_>>();
        let before = id(&rig);
        let module = rig.module("m1");
        let route = module.routes.get("tcp").expect("a route").clone();
        module.routes.remove("tcp");
        module.routes.insert("renamed".to_owned(), route);
        rig.apply()?;
        assert_ne!(id(&rig), before);
        connection.sends(&mut rig, ACK, 1003)?;
        if snat == Snat::Never {
            rig.module("m1").snat = Snat::OnLink;
            rig.apply()?;
            connection.sends(&mut rig, ACK, 1004)?;
        }
    }
    Ok(())
}

/// No stack sends such packets after a SYN, and a flood of them must not hold ports for hours.
#[test]
fn packets_without_an_ack_establish_nothing() -> Result<()> {
    for (family, flags) in
        families().into_iter().flat_map(|family| [(family, FIN), (family, 0), (family, PSH)])
    {
        let (mut rig, idle) = rig(1)?;
        assert!(port_of(&mut rig, &syn(&family, 0))?.is_some());
        assert!(port_of(&mut rig, &tcp(&syn(&family, 0), flags, 1001))?.is_some());
        rig.age_flows(idle.opening + 1);
        assert!(port_of(&mut rig, &syn(&family, 1))?.is_some(), "{flags:#x}");
    }
    Ok(())
}

/// Where all ports are in use, those that are idle give way: a flood of SYNs does not keep them.
#[test]
fn a_port_of_an_idle_flow_is_used_when_none_has_rested() -> Result<()> {
    for family in families() {
        let (mut rig, idle) = rig(4)?;
        for n in 0..4 {
            assert!(port_of(&mut rig, &syn(&family, n))?.is_some());
        }
        assert_eq!(port_of(&mut rig, &syn(&family, 4))?, None, "they opened just now");
        rig.age_flows(2);
        port_later(&mut rig, &syn(&family, 4))?;

        let udp = |n: u16| family.udp().with(|p| p.sport = 40_000 + n);
        let mut ports = Vec::new();
        for n in 0..4 {
            let port = port_of(&mut rig, &udp(n))?.expect("a port");
            let request = family.translated(&udp(n), port);
            let answer = Transport::Udp { checksum: UdpChecksum::Computed };
            assert_eq!(rig.run(&family.answer(&request, answer))?.action, XDP_REDIRECT);
            ports.push(port);
            rig.age_flows(1);
        }
        assert_eq!(port_of(&mut rig, &udp(4))?, None);
        rig.age_flows(idle.closing - 2);
        assert_eq!(port_later(&mut rig, &udp(5))?, ports[0], "idle longest");
    }
    Ok(())
}

/// A backend has nothing left of a connection that was reset.
#[test]
fn a_port_rests_after_a_reset_for_the_closing_time_only() -> Result<()> {
    for family in families() {
        let (mut rig, idle) = rig(1)?;
        let connection = Connection::open(&mut rig, family, syn(&family, 0))?;
        connection.answers(&mut rig, RST)?;
        assert_eq!(port_of(&mut rig, &syn(&family, 1))?, None, "the reset may be forged");
        rig.age_flows(idle.closing + 1);
        assert_eq!(port_later(&mut rig, &syn(&family, 1))?, 2000);
    }
    Ok(())
}

/// A host with one address: it is the VIP, and backends reply to it.
fn with_one_address(rig: &mut Rig, family: Family) -> Result<Family> {
    rig.know(family.backend, family.vip);
    rig.apply()?;
    Ok(Family { source: family.vip, ..family })
}

#[test]
fn replies_to_a_vip_with_a_route_for_every_port_reach_their_clients() -> Result<()> {
    for family in families() {
        let (mut rig, _) = rig(100)?;
        rig.route("m1", "tcp").port = None;
        let family = with_one_address(&mut rig, family)?;
        // The backend's own port, because a route for every port keeps the port.
        let syn = |n| syn(&family, n).with(|p| p.dport = 8080);
        let connection = Connection::open(&mut rig, family, syn(0))?;
        connection.answers(&mut rig, ACK)?;
        let towards_snat_port = syn(1).with(|p| p.dport = connection.port);
        let outcome = rig.run(&towards_snat_port)?;
        assert_eq!(
            outcome.counted,
            [("send forward".to_owned(), 1)].into(),
            "another client's, to that port"
        );
        connection.answers(&mut rig, ACK)?;
        // The backend as a client of the VIP.
        let own = syn(2).with(|p| (p.src, p.sport, p.dport) = (family.backend, 8080, connection.port + 1));
        assert_eq!(rig.run(&own)?.counted, [("send forward".to_owned(), 1)].into());
        close(&connection, &mut rig, 5000)?;
    }
    Ok(())
}

#[test]
fn ports_with_a_service_are_not_used_at_a_vip() -> Result<()> {
    for family in families() {
        let (mut rig, _) = rig(4)?;
        let module = rig.module("m1");
        let route = Arc::new(Route { port: Some(2001), ..(*module.routes["tcp"]).clone() });
        module.routes.insert("second".to_owned(), route);
        for (one_address, expected) in [(false, vec![2000, 2001, 2002, 2003]), (true, vec![2000, 2002, 2003])]
        {
            let family = if one_address { with_one_address(&mut rig, family)? } else { family };
            rig.apply()?;
            let mut ports = BTreeSet::new();
            for n in 0..4 {
                ports.extend(port_of(
                    &mut rig,
                    &syn(&family, n).with(|p| p.sport += 100 * u16::from(one_address)),
                )?);
            }
            assert_eq!(ports, expected.into_iter().collect());
        }
    }
    Ok(())
}

#[test]
fn several_source_addresses_have_several_times_the_ports() -> Result<()> {
    let more = |family: Family| match family.source {
        IpAddr::V4(addr) => [1, 2].map(|n| IpAddr::V4((u32::from(addr) + 16 + n).into())),
        IpAddr::V6(addr) => [1_u32, 2].map(|n| IpAddr::V6((u128::from(addr) + 16 + u128::from(n)).into())),
    };
    let addresses: Vec<IpAddr> = families().into_iter().flat_map(more).collect();
    for family in families() {
        let (mut rig, _) = rig_with_addresses(4, &addresses)?;
        let mut used = BTreeSet::new();
        for n in 0..100 {
            let outcome = rig.run(&syn(&family, n))?;
            if outcome.counted.contains_key("drop snat_ports") {
                continue;
            }
            let (mut seen, port) = (family, source_port(&outcome.frame));
            let is_right = |source: &IpAddr| {
                let expected = Family { source: *source, ..family }.translated(&syn(&family, n), port);
                expected.bytes() == outcome.frame
            };
            seen.source = *more(family).iter().find(|source| is_right(source)).expect("one of the addresses");
            assert!(used.insert((seen.source, port)), "two flows have {} port {port}", seen.source);
            let connection = Connection { family: seen, syn: syn(&family, n), port };
            connection.answers(&mut rig, SYN | ACK)?;
            connection.sends(&mut rig, ACK, 1001)?;
            // What another flow keeps is no port of this one.
            let request = Family { source: family.source, ..seen }.translated(&syn(&family, n), port);
            let astray = family.answer(&request, Transport::Tcp { flags: ACK, seq: 9000 });
            assert_eq!(rig.run(&astray)?.counted, [("pass not_ours".to_owned(), 1)].into());
        }
        assert_eq!(used.len(), 8, "four ports of two addresses");
    }
    Ok(())
}
