//! A daemon that is killed and started again applies the persisted settings of operators.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nix::sys::signal::Signal;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{Protocol, RateLimit, Route, SetRateLimitRequest, UpdateRoutingRequest};
use nlb_testkit::lab::{Lab, VIP4};
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::{ECHO_PORT, grpc, serve};
use tokio::net::TcpStream;

use crate::clients::{L4, assert_shares, flows, on};
use crate::fleet::{Fleet, LEASE, Mode, vips};
use crate::metrics::sum;

/// A port of the operator's route. No module has a route for it.
const OPERATORS_PORT: u16 = 8443;

/// The burst of new flows for the operator's port.
const BURST: i64 = 10;

fn operators_service() -> SocketAddr {
    SocketAddr::new(VIP4.into(), OPERATORS_PORT)
}

/// m0 has 80 % of v1, which has 75 % of all; m1 is the rest of v1, m2 is v2, and m3 is in maintenance.
fn set_everything(fleet: &Fleet) -> Result<()> {
    for line in [["weight", "m0", "80"], ["weight", "m1", "20"]] {
        fleet.nlb(&line)?;
    }
    for line in [["weight", "v1", "75", "--version"], ["weight", "v2", "25", "--version"]] {
        fleet.nlb(&line)?;
    }
    fleet.nlb(&["drain", "m3", "--timeout", "1s"])?;
    let route = Route {
        route_id: "operators".into(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: VIP4.to_string(),
        destination_port: OPERATORS_PORT.into(),
        metadata: [("target_instances", "m2".to_owned()), ("listen_port", ECHO_PORT.to_string())]
            .map(|(key, value)| (key.to_owned(), value))
            .into(),
        ..Route::default()
    };
    let limit = RateLimit {
        limit_id: "few".into(),
        target: "route:operators".into(),
        requests_per_hour: BURST,
        burst_size: BURST,
        enabled: true,
        ..RateLimit::default()
    };
    let server = format!("http://{}", grpc(&fleet.lab));
    let answer = on(&fleet.lab.nlb, || async move {
        let routes = UpdateRoutingRequest { routes: vec![route], ..UpdateRoutingRequest::default() };
        Ok(NlbServiceClient::connect(server).await?.update_routing(routes).await?.into_inner())
    })?;
    ensure!(answer.success, "{answer:?}");
    let request = SetRateLimitRequest { limit: Some(limit), ..SetRateLimitRequest::default() };
    let answer =
        fleet.front(|mut front| async move { Ok(front.set_rate_limit(request).await?.into_inner()) })?;
    ensure!(answer.success, "{answer:?}");
    Ok(())
}

/// Checks that the operator's route serves as many flows as its rate limit allows.
fn assert_limited(fleet: &Fleet, first: u16) -> Result<()> {
    let client = &fleet.lab.clients[0];
    let counts = flows(client, L4::Tcp, operators_service(), first, BURST.try_into()?)?;
    ensure!(counts == [("m2".to_owned(), BURST.try_into()?)].into(), "{counts:?}");
    // The SYN of one more connection is dropped and counted.
    let before = dropped_by_limits(fleet)?;
    on(client, || async {
        let connecting = tokio::spawn(TcpStream::connect(operators_service()));
        let deadline = Instant::now() + MAX_WAIT;
        while dropped_by_limits(fleet)? == before {
            ensure!(Instant::now() < deadline, "no packet was dropped by the limit");
            tokio::time::sleep(Duration::from_millis(50)).await;
            ensure!(!connecting.is_finished(), "a connection beyond the limit was not dropped");
        }
        connecting.abort();
        Ok(())
    })
}

/// Packets that rate limits have dropped.
fn dropped_by_limits(fleet: &Fleet) -> Result<u64> {
    let labels = [("verdict", "drop"), ("reason", "rate_limit")];
    Ok(sum(&fleet.metrics()?, "nlb_packets_total", &labels))
}

fn assert_split(fleet: &Fleet, first: u16) -> Result<()> {
    for vip in vips() {
        let counts = flows(&fleet.lab.clients[0], L4::Tcp, vip, first, 2000)?;
        assert_shares(&counts, &[("m0", 60), ("m1", 15), ("m2", 25), ("m3", 0)]);
    }
    Ok(())
}

#[test]
fn operator_settings_apply_after_the_daemon_is_killed() -> Result<()> {
    let v1 = ["--version", "v1", "--heartbeat", "1"];
    let v2 = ["--version", "v2", "--heartbeat", "1"];
    let lab = Lab::one_arm(1, 4)?;
    let mut fleet = Fleet::start(lab, Mode::Nat, &[100, 100], &v1)?;
    fleet.add("m2", 2, Mode::Nat, 100, &v2)?;
    fleet.add("m3", 3, Mode::Nat, 100, &v2)?;
    fleet.wait_for(4)?;
    set_everything(&fleet)?;
    assert_split(&fleet, 20_000)?;
    assert_limited(&fleet, 30_000)?;

    fleet.nlb.signal(Signal::SIGKILL)?;
    fleet.nlb.wait(MAX_WAIT)?;
    fleet.nlb = serve(&fleet.lab, "eth0", &LEASE)?;
    fleet.wait_until("all modules are back, and m3 drains", |modules| {
        let healthy = modules.values().filter(|module| module["health"] == "HEALTHY").count();
        healthy == 3 && modules.get("m3").is_some_and(|m3| m3["health"] == "STOPPING")
    })?;
    assert_split(&fleet, 40_000)?;
    assert_limited(&fleet, 50_000)?;

    // An undone setting is not restored.
    fleet.nlb(&["drain", "m3", "--undo"])?;
    fleet.nlb.signal(Signal::SIGKILL)?;
    fleet.nlb.wait(MAX_WAIT)?;
    fleet.nlb = serve(&fleet.lab, "eth0", &LEASE)?;
    fleet.wait_for(4)
}

#[test]
fn daemon_refuses_a_damaged_state_file_and_names_the_option() -> Result<()> {
    let mut fleet = Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[])?;
    fleet.nlb(&["weight", "v1", "50", "--version"])?;
    let file = fleet.lab.files().join("state/state.json");
    let whole = std::fs::read(&file)?;
    fleet.nlb.signal(Signal::SIGKILL)?;
    fleet.nlb.wait(MAX_WAIT)?;
    std::fs::write(&file, &whole[..whole.len() / 2])?;
    let refused = serve(&fleet.lab, "eth0", &LEASE).expect_err("the file is damaged").to_string();
    for part in ["state.json", "damaged", "--ignore-state"] {
        ensure!(refused.contains(part), "{part}: {refused}");
    }
    ensure!(std::fs::read(&file)? == whole[..whole.len() / 2], "the file was written over");

    fleet.nlb = serve(&fleet.lab, "eth0", &[&LEASE[..], &["--ignore-state"]].concat())?;
    fleet.wait_for(1)?;
    let aside = fleet.lab.files().join("state/state.json.ignored-1");
    ensure!(std::fs::read(aside)? == whole[..whole.len() / 2], "the ignored file was not kept");
    Ok(())
}
