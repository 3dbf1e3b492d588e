//! Interfaces that XDP cannot serve, and interfaces that are removed and created while it serves them.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{DefaultRoute, Host, Lab};
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::{self, built};
use tokio::net::UdpSocket;
use tokio::time::timeout;

use crate::bulk::{download_beside, offload};
use crate::clients::{Connection, L4, flows, on, request_udp};
use crate::fleet::{Fleet, LEASE, Mode, vips};

#[test]
fn interfaces_that_xdp_cannot_serve_are_refused_with_an_alternative() -> Result<()> {
    let lab = Lab::one_arm(1, 0)?;
    let (nlb, other) = (&lab.nlb.netns, &lab.clients[0].netns);
    for command in [
        "link add link eth0 name over0 type macvlan mode bridge",
        "link add link over0 name over1 type macvlan mode bridge",
        "link add name br0 type bridge",
        "link add name port0 type veth peer name far0",
        "link set port0 master br0",
        "link add link br0 name over2 type macvlan mode bridge",
        "tuntap add name tun0 mode tun",
    ] {
        nlb.ip(&command.split(' ').collect::<Vec<_>>())?;
    }
    other.ip(&["link", "add", "link", "eth0", "name", "over3", "netns", nlb.name(), "type", "macvlan"])?;
    for (interface, advice) in [
        ("eth9", "--iface eth9: there is no such interface"),
        ("tun0", "--iface tun0: there is no such interface with MAC addresses"),
        ("lo", "--iface lo: loopback is served without being named"),
        ("over0", "--iface over0 is a macvlan device; XDP receives its packets on eth0: name eth0"),
        ("over1", "--iface over1 is a macvlan device; XDP receives its packets on eth0: name eth0"),
        ("over2", "--iface over2 is a macvlan device; XDP receives its packets on br0: name br0"),
        ("over3", "in another network namespace: run the NLB there"),
        ("port0", "--iface port0 is a port of the bridge br0, which has its addresses and routes: name br0"),
    ] {
        let mut serve = nlb.command(built("nlb")?);
        serve.args(["serve", "--iface", &format!("eth0,{interface}"), "--state-dir"]);
        let refused = output(serve.arg(lab.files().join("state"))).err();
        let message = refused.with_context(|| format!("{interface} was not refused"))?.to_string();
        ensure!(message.contains(advice), "{interface}: {message}");
    }
    Ok(())
}

/// The bridge is served like one to containers only.
#[test]
fn bridge_to_other_hosts_serves_nat_without_being_named() -> Result<()> {
    let lab = Lab::one_arm(1, 2)?;
    bridge(&lab)?;
    lab.nlb.netns.ip(&["link", "add", "other0", "type", "veth", "peer", "name", "other1"])?;
    let nlb = programs::serve(&lab, "other0", &["--heartbeat-interval", "60s"])?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    fleet.enlist(Mode::Nat, &[100, 100], &[])?;
    serves(&fleet.lab.clients[0], 20_000)?;
    download_beside(&fleet, Mode::Nat)
}

/// Replaces the NLB's `eth0` by a bridge, with a cable to the segment as its port.
fn bridge(lab: &Lab) -> Result<()> {
    let mac = lab.unplug("eth0")?;
    let nlb = &lab.nlb.netns;
    nlb.ip(&["link", "add", "eth0", "address", &mac, "type", "bridge"])?;
    lab.cable("near0", "far0")?;
    nlb.ip(&["link", "set", "near0", "master", "eth0"])?;
    nlb.ip(&["link", "set", "eth0", "up"])?;
    lab.add_addresses()
}

/// What native XDP redirects to a bridge is lost, and the uplink could run in native mode.
#[test]
fn native_and_generic_mode_are_not_mixed() -> Result<()> {
    let lab = Lab::two_arm(1, 1, DefaultRoute::Nlb)?;
    let nlb = &lab.nlb.netns;
    nlb.ip(&["link", "add", "br1", "type", "bridge"])?;
    nlb.ip(&["address", "flush", "dev", "eth1"])?;
    nlb.ip(&["link", "set", "eth1", "master", "br1"])?;
    nlb.ip(&["link", "set", "br1", "up"])?;
    nlb.add_address("br1", [10, 77, 1, 1].into(), 24)?;
    nlb.add_address("br1", [0xfd77, 0, 0, 1, 0, 0, 0, 1].into(), 64)?;
    let nlb = programs::serve(&lab, "eth0,br1", &LEASE)?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    fleet.enlist(Mode::Nat, &[100], &[])?;
    let status = fleet.nlb(&["status"])?;
    for interface in ["xdp.eth0", "xdp.br1"] {
        let mode = status.lines().find(|line| line.starts_with(interface)).unwrap_or_default();
        ensure!(mode.ends_with("generic"), "{status}");
    }
    for vip in vips() {
        ensure!(flows(&fleet.lab.clients[0], L4::Tcp, vip, 20_000, 20)?["m0"] == 20);
    }
    ensure!(fleet.nlb.output().contains("generic mode is used on all interfaces"), "{}", fleet.nlb.output());
    Ok(())
}

/// An interface that returns without native XDP has generic mode only, and the others could run in native
/// mode.
#[test]
fn modes_are_not_mixed_by_an_interface_that_returns() -> Result<()> {
    let fleet = Fleet::start(Lab::two_arm(1, 2, DefaultRoute::Nlb)?, Mode::Nat, &[100, 100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    let mac = nlb.mac("eth1")?;
    nlb.ip(&["link", "set", "eth1", "down"])?;
    nlb.ip(&["link", "set", "eth1", "name", "port1"])?;
    wait_for_log(&fleet, "eth1 is gone", 1)?;
    nlb.ip(&["address", "flush", "dev", "port1"])?;
    nlb.ip(&["link", "add", "eth1", "address", &mac, "type", "bridge"])?;
    nlb.ip(&["link", "set", "port1", "master", "eth1", "up"])?;
    nlb.ip(&["link", "set", "eth1", "up"])?;
    nlb.add_address("eth1", [10, 77, 1, 1].into(), 24)?;
    nlb.add_address("eth1", [0xfd77, 0, 0, 1, 0, 0, 0, 1].into(), 64)?;
    offload(&fleet.lab.nlb, "port1", &["gro", "off"])?;
    wait_for_log(&fleet, "eth1 has no native XDP, so generic mode is used on all interfaces", 1)?;
    fleet.wait_for(2)?;
    serves(&fleet.lab.clients[0], 20_000)
}

/// A veth takes redirected packets only while its other end has GRO or an XDP program.
#[test]
fn failed_redirects_are_counted_and_logged_with_the_remedy() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[])?;
    let client = &fleet.lab.clients[0];
    serves(client, 20_000)?;
    let other_end =
        |gro| output(fleet.lab.switch().command("ethtool").args(["-K", "lan-nlb", "gro", gro])).map(drop);
    ensure!(lost_redirects(&fleet)? == 0);
    other_end("off")?;
    on(client, || async {
        let unanswered = timeout(Duration::from_millis(200), Connection::open(vips()[0])).await;
        ensure!(unanswered.is_err(), "packets get through, so this test shows nothing");
        Ok(())
    })?;
    wait_for_log(&fleet, "redirected to eth0 are lost (E", 1)?;
    wait_for_log(&fleet, "`ethtool -K <its other end> gro on`", 1)?;
    fleet.wait_until("they are counted", |_| lost_redirects(&fleet).is_ok_and(|lost| lost > 0))?;
    other_end("on")?;
    serves(client, 21_000)?;
    let lost = lost_redirects(&fleet)?;
    serves(client, 22_000)?;
    ensure!(lost_redirects(&fleet)? == lost, "packets that arrive count as lost");
    Ok(())
}

/// Packets that a redirect to `eth0` lost.
fn lost_redirects(fleet: &Fleet) -> Result<u64> {
    let rows = fleet.nlb(&["metrics", "--output", "json", "nlb_lost_redirects_total"])?;
    let rows: Vec<serde_json::Value> = serde_json::from_str(&rows)?;
    let of_eth0 = rows.iter().filter(|row| row["labels"]["interface"] == "eth0");
    Ok(of_eth0.filter_map(|row| row["value"].as_f64()).sum::<f64>() as u64)
}

#[test]
fn settings_that_a_veths_other_end_lacks_are_logged() -> Result<()> {
    let lab = Lab::one_arm(1, 0)?;
    let nlb = &lab.nlb.netns;
    for (near, far) in [("near0", "far0"), ("near1", "far1")] {
        nlb.ip(&["link", "add", near, "type", "veth", "peer", "name", far])?;
        nlb.ip(&["link", "set", near, "up"])?;
        nlb.ip(&["link", "set", far, "up"])?;
    }
    offload(&lab.nlb, "far0", &["gro", "off", "tx", "on"])?;
    offload(&lab.nlb, "far1", &["gro", "on", "tx", "off"])?;
    let mut nlb = programs::serve(&lab, "eth0,near0,near1", &LEASE)?;
    let file = nlb.log().to_owned();
    nlb.wait_until("it serves", MAX_WAIT, || {
        std::fs::read_to_string(&file).is_ok_and(|log| log.contains("serving on"))
    })?;
    let log = nlb.output();
    for expected in [
        "packets that XDP redirects to near0 are lost: far0",
        "`ethtool -K far0 gro on`",
        "packets from far0, the other end of near0, have unfinished checksums",
        "`ethtool -K far0 tx off`",
        "eth0 is a veth, and its other end is in another network namespace",
    ] {
        ensure!(log.contains(expected), "{expected}: {log}");
    }
    ensure!(!log.contains("far1"), "{log}");
    Ok(())
}

#[test]
fn bridge_to_other_hosts_is_served_in_generic_mode() -> Result<()> {
    for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrIpip] {
        let lab = Lab::one_arm(1, 2)?;
        bridge(&lab)?;
        let fleet = Fleet::start(lab, mode, &[100, 100], &[])?;
        let status = fleet.nlb(&["status"])?;
        let mode_line = status.lines().find(|line| line.starts_with("xdp.eth0")).unwrap_or_default();
        ensure!(mode_line.ends_with("generic"), "{status}");
        wait_for_log(&fleet, "`ethtool -K <port> gro off`", 1)?;
        offload(&fleet.lab.nlb, "near0", &["gro", "off"])?;
        serves(&fleet.lab.clients[0], 20_000).with_context(|| format!("{mode:?}"))?;
        download_beside(&fleet, mode).with_context(|| format!("{mode:?}"))?;
    }
    Ok(())
}

/// Checks that new connections and datagrams from these ports are answered.
pub fn serves(client: &Host, first: u16) -> Result<()> {
    for vip in vips() {
        for l4 in [L4::Tcp, L4::Udp] {
            flows(client, l4, vip, first, 20)?;
        }
    }
    Ok(())
}

/// Checks that open connections continue after a change of the network.
fn connections_outlive(fleet: &Fleet, change: impl FnOnce() -> Result<()> + Send) -> Result<()> {
    on(&fleet.lab.clients[0], || async {
        let mut held = Vec::new();
        for vip in vips() {
            let mut connection = Connection::open(vip).await?;
            held.push((connection.request().await?, connection));
        }
        change()?;
        for (module, connection) in &mut held {
            let again = connection.request().await.with_context(|| format!("the connection to {module}"))?;
            ensure!(again == *module, "answered by {module}, then by {again}");
        }
        Ok(())
    })
}

pub fn wait_for_log(fleet: &Fleet, what: &str, times: usize) -> Result<()> {
    fleet.wait_until(&format!("the log has: {what}"), |_| fleet.nlb.output().matches(what).count() >= times)
}

#[test]
fn modules_and_clients_behind_a_macvlan_device_are_reached_through_the_stack() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    nlb.ip(&["link", "add", "link", "eth0", "name", "over0", "type", "macvlan", "mode", "bridge"])?;
    nlb.ip(&["link", "set", "over0", "up"])?;
    let by_macvlan = |host: &Host| -> Result<()> {
        let ours = &fleet.lab.nlb;
        for (to, from) in
            [(host.v4.to_string(), ours.v4.to_string()), (host.v6.to_string(), ours.v6.to_string())]
        {
            nlb.ip(&["route", "add", &to, "dev", "over0", "src", &from])?;
        }
        Ok(())
    };
    by_macvlan(&fleet.lab.modules[0])?;
    fleet.wait_for(2)?;
    serves(&fleet.lab.clients[0], 20_000)?;
    by_macvlan(&fleet.lab.modules[1])?;
    by_macvlan(&fleet.lab.clients[0])?;
    fleet.wait_for(2)?;
    serves(&fleet.lab.clients[0], 21_000)?;
    let frames = nlb.ip(&["-s", "-j", "link", "show", "over0"])?;
    let sent: serde_json::Value = serde_json::from_str(&frames)?;
    ensure!(sent[0]["stats64"]["tx"]["packets"].as_u64() > Some(1_000), "{frames}");
    let mut module = programs::echo(
        &fleet.lab,
        &fleet.lab.modules[0],
        "direct",
        &["--mode", "dsr-l2", "--listen", "[::]:80"],
    )?;
    let log = module.log().to_owned();
    module.wait_until("the reason is logged", MAX_WAIT, || {
        std::fs::read_to_string(&log).is_ok_and(|log| log.contains("behind over0, a macvlan device"))
    })
}

#[test]
fn recreated_interface_is_served_again() -> Result<()> {
    for (mode, interfaces) in [("auto", ["eth0", "eth1"]), ("generic", ["eth1", "eth0"])] {
        let lab = Lab::two_arm(1, 2, DefaultRoute::Gateway)?;
        let fleet = Fleet::start_with(lab, Mode::Nat, &[100, 100], &[], &["--xdp-mode", mode])?;
        for (first, interface) in [20_000, 21_000].into_iter().zip(interfaces) {
            connections_outlive(&fleet, || {
                let mac = fleet.lab.unplug(interface)?;
                // The daemon's gRPC server has no address while eth0 is gone, so only its log is read.
                let started = Instant::now();
                while !fleet.nlb.output().contains(&format!("{interface} is gone")) {
                    ensure!(started.elapsed() < MAX_WAIT, "the log does not report the removal");
                    std::thread::sleep(Duration::from_millis(20));
                }
                fleet.lab.plug(interface, &mac)?;
                wait_for_log(&fleet, &format!("{interface} is back and served again"), 1)
            })
            .with_context(|| format!("{interface}, {mode}\n{}", fleet.nlb.output()))?;
            fleet.wait_for(2)?;
            serves(&fleet.lab.clients[0], first)?;
        }
    }
    Ok(())
}

#[test]
fn a_link_that_goes_down_and_up_serves_as_before() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    // Without this, the kernel removes the IPv6 addresses of a link that goes down.
    nlb.sysctl("net/ipv6/conf/eth0/keep_addr_on_down", 1)?;
    connections_outlive(&fleet, || {
        nlb.ip(&["link", "set", "eth0", "down"])?;
        // The connections have to survive a link that is down for longer than an instant.
        std::thread::sleep(Duration::from_millis(300));
        nlb.ip(&["link", "set", "eth0", "up"]).map(drop)
    })?;
    fleet.wait_for(2)?;
    serves(&fleet.lab.clients[0], 20_000)
}

#[test]
fn modules_are_reached_from_a_changed_interface_address() -> Result<()> {
    let fleet = Fleet::start(Lab::two_arm(1, 2, DefaultRoute::Gateway)?, Mode::Nat, &[100, 100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    serves(&fleet.lab.clients[0], 20_000)?;
    for (old, new, prefix) in [("10.77.1.1", "10.77.1.2", 24), ("fd77:0:0:1::1", "fd77:0:0:1::2", 64)] {
        nlb.ip(&["address", "delete", &format!("{old}/{prefix}"), "dev", "eth1"])?;
        nlb.add_address("eth1", new.parse()?, prefix)?;
    }
    // Packets that the NLB still sends from the old address are not answered.
    on(&fleet.lab.clients[0], || async {
        for vip in vips() {
            answered_by_all(vip, &["m0", "m1"]).await?;
        }
        Ok(())
    })?;
    fleet.wait_for(2)?;
    serves(&fleet.lab.clients[0], 21_000)
}

/// Sends datagrams, each from a port of its own, until all of these modules have answered.
async fn answered_by_all(vip: SocketAddr, modules: &[&str]) -> Result<()> {
    let (started, mut answered) = (Instant::now(), BTreeSet::new());
    while !modules.iter().all(|module| answered.contains(*module)) {
        ensure!(started.elapsed() < MAX_WAIT, "of {modules:?}, only {answered:?} answer {vip}");
        let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
        socket.connect(vip).await?;
        if let Ok(module) = timeout(Duration::from_millis(200), request_udp(&socket)).await {
            answered.insert(module?);
        }
    }
    Ok(())
}
