//! Modules and clients on the NLB's own host: in containers on a bridge, and as processes.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs;
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::clients::{Connection, L4, assert_shares, flows, on, request_udp};
use crate::fleet::{Fleet, Mode, vips};

const BOTH: &[(&str, u32)] = &[("m0", 1), ("m1", 1)];

fn fleet(clients: usize, modules: usize, served: usize) -> Result<Fleet> {
    Fleet::start(Lab::same_host(clients, modules)?, Mode::Nat, &vec![100; served], &[])
}

/// Checks the shares of TCP and UDP flows over IPv4 and IPv6 from so many ports.
fn serves(client: &Host, shares: &[(&str, u32)], count: u16) -> Result<()> {
    serves_from(client, shares, 20_000, count)
}

fn serves_from(client: &Host, shares: &[(&str, u32)], first: u16, count: u16) -> Result<()> {
    for vip in vips() {
        for l4 in [L4::Tcp, L4::Udp] {
            assert_shares(&flows(client, l4, vip, first, count)?, shares);
        }
    }
    Ok(())
}

#[test]
fn clients_on_the_link_reach_modules_in_containers() -> Result<()> {
    let fleet = fleet(1, 2, 2)?;
    serves(&fleet.lab.clients[0], BOTH, 200)
}

#[test]
fn clients_on_the_host_reach_modules_in_containers() -> Result<()> {
    let fleet = fleet(0, 2, 2)?;
    serves(&fleet.lab.nlb, BOTH, 200)?;
    // A socket without an address gets the VIP as its source.
    on(&fleet.lab.nlb, || async {
        for vip in vips() {
            let mut connection = Connection::open(vip).await?;
            let name = connection.request().await?;
            ensure!(connection.request().await? == name, "answered by two modules");
            let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
            let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
            socket.connect(vip).await?;
            ensure!(socket.local_addr()?.ip() == vip.ip());
            request_udp(&socket).await?;
        }
        Ok(())
    })
}

#[test]
fn clients_in_containers_reach_other_containers_and_themselves() -> Result<()> {
    let fleet = fleet(0, 3, 2)?;
    serves(&fleet.lab.modules[2], BOTH, 200)?;
    serves(&fleet.lab.modules[0], BOTH, 200)
}

#[test]
fn clients_on_the_host_and_in_containers_reach_modules_on_the_link() -> Result<()> {
    let lab = Lab::same_host(1, 1)?;
    let mut fleet = Fleet::start(lab, Mode::Nat, &[], &[])?;
    fleet.modules.push(programs::echo(&fleet.lab, &fleet.lab.clients[0], "m0", &[])?);
    fleet.wait_for(1)?;
    for client in [&fleet.lab.nlb, &fleet.lab.modules[0]] {
        serves(client, &[("m0", 1)], 100)?;
    }
    Ok(())
}

#[test]
fn a_module_that_is_a_process_of_the_host_is_reached_from_everywhere() -> Result<()> {
    let mut fleet = fleet(1, 2, 1)?;
    let process = programs::echo(&fleet.lab, &fleet.lab.nlb, "m1", &[])?;
    fleet.modules.push(process);
    fleet.wait_for(2)?;
    for client in [&fleet.lab.clients[0], &fleet.lab.modules[1], &fleet.lab.nlb] {
        serves(client, BOTH, 200)?;
    }
    Ok(())
}

#[test]
fn container_with_reply_path_nlb_sees_client_addresses() -> Result<()> {
    let lab = Lab::same_host(1, 2)?;
    let fleet = Fleet::start(lab, Mode::Nat, &[100, 100], &["--metadata", "reply_path=nlb"])?;
    for client in [&fleet.lab.clients[0], &fleet.lab.nlb] {
        serves(client, BOTH, 200)?;
    }
    let client = &fleet.lab.clients[0];
    on(client, || async {
        let mut held = Connection::open(vips()[0]).await?;
        held.request().await?;
        let seen = fleet.lab.modules.iter().map(|host| output(host.netns.command("ss").args(["-tnH"])));
        let seen = seen.collect::<Result<String>>()?;
        ensure!(seen.contains(&format!(":{}]:", client.v4)), "no module sees {}:\n{seen}", client.v4);
        Ok(())
    })
}

#[test]
fn generic_mode_passes_local_traffic_to_the_stack() -> Result<()> {
    let fleet = Fleet::start_generic(Lab::same_host(1, 2)?, &[100, 100])?;
    serves(&fleet.lab.clients[0], BOTH, 50)?;
    serves(&fleet.lab.nlb, BOTH, 50)
}

#[test]
fn port_unreachable_of_a_container_reaches_its_client() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::same_host(1, 1)?, Mode::Nat, 53, 5353)?;
    for client in [&fleet.lab.clients[0], &fleet.lab.nlb] {
        on(client, || async {
            for vip in vips() {
                let any: IpAddr = if vip.is_ipv4() { [0; 4].into() } else { [0; 16].into() };
                let socket = UdpSocket::bind(SocketAddr::new(any, 0)).await?;
                socket.connect(SocketAddr::new(vip.ip(), 53)).await?;
                socket.send(b"is anybody there?").await?;
                let result = timeout(MAX_WAIT, socket.recv(&mut [0; 64])).await;
                let result =
                    result.with_context(|| format!("{vip}: no error"))?.err().map(|error| error.kind());
                ensure!(result == Some(ErrorKind::ConnectionRefused), "{vip}: {result:?}");
            }
            Ok(())
        })?;
    }
    Ok(())
}

#[test]
fn module_is_reached_in_its_new_container() -> Result<()> {
    let mut fleet = fleet(1, 2, 1)?;
    serves(&fleet.lab.clients[0], &[("m0", 1)], 20)?;
    drop(fleet.modules.pop());
    let again = programs::echo(&fleet.lab, &fleet.lab.modules[1], "m0", &[])?;
    fleet.modules.push(again);
    let moved = fleet.lab.modules[1].v4.to_string();
    fleet.wait_until("the module is in its new container", |modules| {
        modules.get("m0").is_some_and(|module| {
            module["health"] == "HEALTHY" && module["address"].as_str().is_some_and(|a| a.contains(&moved))
        })
    })?;
    // The client's ports are in TIME_WAIT for a minute.
    serves_from(&fleet.lab.clients[0], &[("m0", 1)], 21_000, 20)
}

#[test]
fn direct_server_return_on_the_same_host_is_refused_with_the_reason() -> Result<()> {
    let lab = Lab::same_host(0, 1)?;
    let nlb = programs::serve(&lab, "eth0", &[])?;
    for (host, mode) in [(&lab.modules[0], "dsr-ipip"), (&lab.nlb, "dsr-ipip"), (&lab.modules[0], "gue")] {
        let mut module = programs::echo(&lab, host, "m0", &["--mode", mode])?;
        let log = module.log().to_owned();
        module.wait_until("the reason is logged", MAX_WAIT, || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("is on the NLB's own host"))
        })?;
    }
    drop(nlb);
    Ok(())
}
