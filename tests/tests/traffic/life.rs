//! Modules that are killed, drain and change their weights, and a daemon that is stopped.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::{serve as serve_lab, terminate};
use tokio::net::UdpSocket;

use crate::clients::{Connection, L4, assert_shares, flows, on, request_udp};
use crate::fleet::{Fleet, LEASE, Mode, vips};

/// Opens so many connections to both VIPs, each with the module that answers.
pub async fn hold(count: usize) -> Result<Vec<(String, Connection)>> {
    let mut held = Vec::new();
    for n in 0..count {
        let mut connection = Connection::open(vips()[n % 2]).await?;
        held.push((connection.request().await?, connection));
    }
    Ok(held)
}

/// Checks that each held connection is answered by the same module as before.
pub async fn assert_answered(held: impl IntoIterator<Item = &mut (String, Connection)>) -> Result<()> {
    for (name, connection) in held {
        let answered = connection.request().await?;
        ensure!(answered == *name, "the connection with {name} was answered by {answered}");
    }
    Ok(())
}

/// The number of held connections of each module.
pub fn spread(held: &[(String, Connection)]) -> BTreeMap<String, usize> {
    let mut spread = BTreeMap::new();
    for (name, _) in held {
        *spread.entry(name.clone()).or_default() += 1;
    }
    spread
}

#[test]
fn killed_module_gets_no_new_flows_and_other_connections_stay() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 3)?, Mode::Nat, &[100, 100, 100], &["--heartbeat", "1"])?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        let mut held = hold(30).await?;
        ensure!(
            spread(&held).len() == 3,
            "30 connections are not spread over all modules: {:?}",
            spread(&held)
        );
        // Until its first heartbeat, a module has a longer lease.
        fleet.wait_for_heartbeats(&["m1"])?;
        fleet.modules[1].signal(Signal::SIGKILL)?;
        fleet.wait_for(2)?;
        assert_answered(held.iter_mut().filter(|(name, _)| name != "m1")).await
    })?;
    for vip in vips() {
        for (first, l4) in [(20_000, L4::Tcp), (30_000, L4::Udp)] {
            assert_shares(&flows(client, l4, vip, first, 200)?, &[("m0", 100), ("m2", 100)]);
        }
    }
    Ok(())
}

#[test]
fn connections_of_a_draining_module_stay_until_they_close() -> Result<()> {
    let mut fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let lab = &fleet.lab;
    let mut leaving = fleet.modules.remove(0);
    on(&lab.clients[0], || async {
        let mut held = hold(20).await?;
        ensure!(spread(&held).len() == 2, "{:?}", spread(&held));
        leaving.signal(Signal::SIGTERM)?;
        let draining = |modules: &BTreeMap<String, serde_json::Value>| modules["m0"]["health"] == "STOPPING";
        fleet.wait_until("m0 drains", draining)?;
        for (name, connection) in &mut held {
            ensure!(connection.request().await? == *name);
        }
        let fresh = hold(20).await?;
        ensure!(spread(&fresh).keys().eq(["m1"]), "a draining module got new flows: {:?}", spread(&fresh));
        Ok(())
    })?;
    // The clients have closed their connections, so the module ends.
    let status = leaving.wait(MAX_WAIT)?;
    ensure!(status.success(), "{status}: {}", leaving.output());
    fleet.wait_for(1)?;
    ensure!(!fleet.modules()?.contains_key("m0"), "m0 is still registered");
    Ok(())
}

#[test]
fn open_flows_keep_their_backend_after_a_weight_change() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        let mut held = hold(20).await?;
        let socket = UdpSocket::bind("0.0.0.0:0").await?;
        socket.connect(vips()[0]).await?;
        let udp = request_udp(&socket).await?;
        fleet.nlb(&["weight", "m0", "5"])?;
        fleet.nlb(&["weight", "m1", "95"])?;
        for (name, connection) in &mut held {
            ensure!(connection.request().await? == *name, "a weight moved a held connection");
        }
        ensure!(request_udp(&socket).await? == udp, "a weight moved a held UDP flow");
        Ok(())
    })?;
    for vip in vips() {
        for (first, l4) in [(20_000, L4::Tcp), (30_000, L4::Udp)] {
            assert_shares(&flows(client, l4, vip, first, 1000)?, &[("m0", 5), ("m1", 95)]);
        }
    }
    fleet.nlb(&["weight", "m0", "0"])?;
    assert_shares(&flows(client, L4::Tcp, vips()[0], 40_000, 100)?, &[("m0", 0), ("m1", 1)]);
    Ok(())
}

#[test]
fn connections_survive_a_stopped_daemon() -> Result<()> {
    const STOPPED: Duration = Duration::from_secs(10);
    let fleet = Fleet::start(Lab::one_arm(1, 3)?, Mode::Nat, &[100, 100, 100], &[])?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        let mut held = hold(12).await?;
        fleet.nlb.signal(Signal::SIGSTOP)?;
        let start = Instant::now();
        let mut opened = 0;
        while start.elapsed() < STOPPED || opened < 100 {
            for (name, connection) in &mut held {
                ensure!(connection.request().await? == *name);
            }
            opened += hold(10).await?.len();
        }
        fleet.nlb.signal(Signal::SIGCONT)?;
        Ok(())
    })?;
    fleet.wait_for(3)
}

/// The daemon reads the modules' first calls, which have timed out, together with their cancellations.
#[test]
fn modules_started_while_the_daemon_is_stopped_stay_registered() -> Result<()> {
    const MODULES: usize = 3;
    const TIMED_OUT: &str = "not registered; trying again";
    const VOID: &str = "registering again";
    let lab = Lab::one_arm(1, MODULES)?;
    let nlb = nlb_testkit::programs::serve(&lab, "eth0", &LEASE)?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    fleet.nlb.signal(Signal::SIGSTOP)?;
    for n in 0..MODULES {
        fleet.add(&format!("m{n}"), n, Mode::Nat, 100, &["--heartbeat", "1"])?;
    }
    for module in &mut fleet.modules {
        let log = module.log().to_owned();
        module.wait_until("its first call has timed out", MAX_WAIT, || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains(TIMED_OUT))
        })?;
    }
    fleet.nlb.signal(Signal::SIGCONT)?;
    fleet.wait_for(MODULES)?;
    // The NLB refuses the first heartbeat of a void registration.
    fleet.wait_for_heartbeats(&["m0", "m1", "m2"])?;
    fleet.wait_for(MODULES)?;
    for module in &mut fleet.modules {
        let ended = module.ended()?;
        let log = module.output();
        ensure!(ended.is_none(), "{ended:?}: {log}");
        ensure!(!log.contains(VOID), "its registration was void:\n{log}");
    }
    answers(&fleet.lab.clients[0])
}

#[test]
fn a_module_registers_again_after_the_daemon_was_restarted() -> Result<()> {
    let Fleet { modules, nlb, lab, .. } =
        Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &["--heartbeat", "1"])?;
    let mut nlb = nlb;
    terminate(&mut nlb, MAX_WAIT)?;
    let again = nlb_testkit::programs::serve(&lab, "eth0", &LEASE)?;
    let fleet = Fleet::from_parts(lab, again, modules);
    fleet.wait_for(2)?;
    answers(&fleet.lab.clients[0])
}

fn answers(client: &Host) -> Result<()> {
    for vip in vips() {
        flows(client, L4::Tcp, vip, 20_000, 50)?;
        flows(client, L4::Udp, vip, 30_000, 50)?;
    }
    Ok(())
}

/// Containers that are restarted may get each other's addresses while the leases of both last.
#[test]
fn restarted_modules_may_have_swapped_their_addresses() -> Result<()> {
    let serve = ["--heartbeat-interval", "60s", "--missed-heartbeats", "10", "--evict-after", "1h"];
    let lab = Lab::one_arm(1, 2)?;
    let nlb = serve_lab(&lab, "eth0", &serve)?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    // As in containers, the port is the same before and after.
    let control = ["--control", "0.0.0.0:50052"];
    fleet.enlist(Mode::Nat, &[100, 100], &control)?;
    // Killed: they do not unregister.
    fleet.modules.clear();
    fleet.add("m0", 1, Mode::Nat, 100, &control)?;
    fleet.add("m1", 0, Mode::Nat, 100, &control)?;
    let hosts = [fleet.lab.modules[1].v4, fleet.lab.modules[0].v4].map(|host| host.to_string());
    fleet.wait_until("both serve at their new addresses", |modules| {
        ["m0", "m1"].iter().zip(&hosts).all(|(name, host)| {
            modules.get(*name).is_some_and(|module| {
                module["health"] == "HEALTHY"
                    && module["address"].as_str().is_some_and(|address| address.starts_with(host.as_str()))
            })
        })
    })?;
    for vip in vips() {
        let answered = flows(&fleet.lab.clients[0], L4::Tcp, vip, 20_000, 40)?;
        ensure!(answered.keys().eq(["m0", "m1"]), "{answered:?}");
    }
    Ok(())
}
