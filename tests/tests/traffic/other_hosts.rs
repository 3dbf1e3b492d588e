//! Frames to other hosts' MAC addresses, which a switch sends to every port while it does not know the port
//! of an address: the NLB leaves them alone. The addresses of virtual routers (VRRP) are its own while it is
//! active.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nlb_testkit::lab::{Lab, VIP4, VIP6};
use nlb_testkit::process::MAX_WAIT;
use serde_json::Value;

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, PORT, vips};
use crate::interfaces::wait_for_log;

const VRRP_MAC: &str = "00:00:5e:00:01:33";
const CONNECTIONS: usize = 20;
const SERVED: &str = "send.forward";
const PASSED: &str = "pass.other_host";

/// A switch that learns no addresses sends every frame to every port.
fn flood(lab: &Lab) -> Result<()> {
    lab.switch().ip(&["link", "set", "lan", "type", "bridge", "ageing_time", "0", "fdb_flush"]).map(drop)
}

/// The number of packets that took this exit.
fn exits(fleet: &Fleet, exit: &str) -> Result<u64> {
    let status: Value = serde_json::from_str(&fleet.nlb(&["status", "--packets", "--output", "json"])?)?;
    let count = &status["details"][format!("packets.{exit}")];
    Ok(count.as_str().map_or(Ok(0), str::parse)?)
}

/// Answers each line with "active", as the echo modules answer with their names.
fn serve(listener: TcpListener) {
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || answer(stream));
        }
    });
}

fn answer(mut stream: TcpStream) -> Option<()> {
    for line in BufReader::new(stream.try_clone().ok()?).lines() {
        stream.write_all(format!("active {}\n", line.ok()?).as_bytes()).ok()?;
    }
    Some(())
}

#[test]
fn connections_of_the_active_host_do_not_break_on_a_flooding_switch() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 3)?, Mode::Nat, &[100, 100], &[])?;
    let (standby, active) = (&fleet.lab.nlb.netns, &fleet.lab.modules[2].netns);
    flood(&fleet.lab)?;
    for (vip, prefix) in [(VIP4.to_string(), "32"), (VIP6.to_string(), "128")] {
        let address = format!("{vip}/{prefix}");
        standby.ip(&["address", "delete", &address, "dev", "eth0"])?;
        let nodad: &[&str] = if prefix == "128" { &["nodad"] } else { &[] };
        active.ip(&[&["address", "add", &address, "dev", "eth0"], nodad].concat())?;
        fleet.lab.clients[0].netns.ip(&["neigh", "flush", "dev", "eth0"])?;
    }
    serve(active.run(|| TcpListener::bind(("::", PORT)))??);
    on(&fleet.lab.clients[0], || async {
        for vip in vips() {
            for n in 0..CONNECTIONS {
                let name = Connection::open(vip).await?.request().await;
                let name = name.with_context(|| format!("connection {n} to {vip}"))?;
                ensure!(name == "active", "connection {n} to {vip} reached {name}, a module of the standby");
            }
        }
        Ok(())
    })?;
    // The daemon reads the counters twice a second. A client sends at least SYN, ACK, a line and FIN.
    let (start, least) = (Instant::now(), 2 * 4 * CONNECTIONS as u64);
    while exits(&fleet, PASSED)? < least {
        let packets = || fleet.nlb(&["status", "--packets"]).unwrap_or_default();
        ensure!(start.elapsed() < MAX_WAIT, "the switch did not flood: {}", packets());
        thread::sleep(Duration::from_millis(50));
    }
    ensure!(exits(&fleet, SERVED)? == 0, "the standby forwarded packets of the active host's clients");
    Ok(())
}

/// Has the client send packets to the VIPs to this MAC address.
fn send_to(fleet: &Fleet, mac: &str) -> Result<()> {
    for vip in vips() {
        let vip = vip.ip().to_string();
        fleet.lab.clients[0].netns.ip(&["neigh", "replace", &vip, "lladdr", mac, "dev", "eth0"])?;
    }
    Ok(())
}

/// The exit of a new flow's packet to a VIP.
fn exit_of_datagram(fleet: &Fleet, vip: SocketAddr) -> Result<&'static str> {
    let before = [exits(fleet, SERVED)?, exits(fleet, PASSED)?];
    let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    fleet.lab.clients[0].netns.run(|| UdpSocket::bind(any)?.send_to(b"who?", vip))??;
    let sent = Instant::now();
    while sent.elapsed() < MAX_WAIT {
        for (exit, before) in [SERVED, PASSED].into_iter().zip(before) {
            if exits(fleet, exit)? > before {
                return Ok(exit);
            }
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("a datagram to {vip} took neither exit: {}", fleet.nlb(&["status", "--packets"])?)
}

/// Waits until packets to both VIPs take this exit.
fn wait_for_exit(fleet: &Fleet, exit: &str) -> Result<()> {
    for vip in vips() {
        let start = Instant::now();
        while exit_of_datagram(fleet, vip)? != exit {
            ensure!(start.elapsed() < MAX_WAIT, "packets to {vip} do not take the exit {exit}");
        }
    }
    Ok(())
}

#[test]
fn configured_mac_addresses_are_served() -> Result<()> {
    let accept = ["--accept-mac", "eth0=00:00:5e:00:01:33"];
    let fleet = Fleet::start_with(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[], &accept)?;
    flood(&fleet.lab)?;
    send_to(&fleet, VRRP_MAC)?;
    for vip in vips() {
        ensure!(exit_of_datagram(&fleet, vip)? == SERVED, "{vip}");
    }
    send_to(&fleet, "00:00:5e:00:01:34")?;
    for vip in vips() {
        ensure!(exit_of_datagram(&fleet, vip)? == PASSED, "{vip}");
    }
    Ok(())
}

#[test]
fn virtual_routers_are_served_while_they_hold_an_address() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    flood(&fleet.lab)?;
    send_to(&fleet, VRRP_MAC)?;
    wait_for_exit(&fleet, PASSED)?;
    nlb.ip(&["link", "add", "vrrp51", "link", "eth0", "address", VRRP_MAC, "type", "macvlan"])?;
    nlb.ip(&["link", "set", "vrrp51", "up"])?;
    wait_for_log(&fleet, "attached nlb_tc to vrrp51", 1)?;
    wait_for_exit(&fleet, PASSED)?;
    nlb.ip(&["address", "add", "10.77.0.200/32", "dev", "vrrp51"])?;
    wait_for_exit(&fleet, SERVED)?;
    nlb.ip(&["address", "delete", "10.77.0.200/32", "dev", "vrrp51"])?;
    wait_for_exit(&fleet, PASSED)
}

/// An operator or a bond may change the address of an interface at any time.
#[test]
fn an_interfaces_new_mac_address_is_served_and_its_old_one_is_not() -> Result<()> {
    const NEW: &str = "02:aa:bb:cc:dd:01";
    let fleet = Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    flood(&fleet.lab)?;
    let links: Vec<Value> = serde_json::from_str(&nlb.ip(&["-json", "link", "show", "dev", "eth0"])?)?;
    let old = links[0]["address"].as_str().context("eth0 has an address")?;
    send_to(&fleet, old)?;
    wait_for_exit(&fleet, SERVED)?;
    nlb.ip(&["link", "set", "eth0", "address", NEW])?;
    wait_for_exit(&fleet, PASSED)?;
    send_to(&fleet, NEW)?;
    wait_for_exit(&fleet, SERVED)?;
    // Linux does not tell its neighbours.
    fleet.lab.modules[0].netns.ip(&["neigh", "flush", "dev", "eth0"])?;
    on(&fleet.lab.clients[0], || async {
        for vip in vips() {
            Connection::open(vip).await?.request().await?;
        }
        Ok(())
    })
}
