//! Blue-green deployments: how new flows move from one version to the next, and back.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_proto::{
    GetActiveVersionRequest, GetStatsRequest, GetStatusRequest, ModuleStats, PromoteVersionRequest,
    RollbackRequest, RollbackResponse, SetTrafficWeightRequest,
};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use tonic::Request;

use crate::clients::{Connection, L4, assert_shares, flows, on};
use crate::fleet::{Fleet, Mode, PORT, vips};
use crate::life::{assert_answered, hold, spread};

/// A fleet in which m0 of version v1 gets all new flows, and m1 of version v2 none.
fn blue_and_green(step: &str, green: &[&str]) -> Result<Fleet> {
    let serve = ["--promotion-step", step];
    let blue = ["--version", "v1", "--heartbeat", "1"];
    let mut fleet = Fleet::start_with(Lab::one_arm(1, 2)?, Mode::Nat, &[100], &blue, &serve)?;
    let green = [&["--version", "v2", "--heartbeat", "1"], green].concat();
    fleet.add("m1", 1, Mode::Nat, 100, &green)?;
    fleet.wait_for(2)?;
    fleet.weigh("v2", 0)?;
    Ok(fleet)
}

impl Fleet {
    fn weigh(&self, version: &str, weight: i32) -> Result<()> {
        let request = SetTrafficWeightRequest { version: version.into(), weight, ..Default::default() };
        let answer =
            self.front(|mut front| async move { Ok(front.set_traffic_weight(request).await?.into_inner()) })?;
        ensure!(answer.success, "{}", answer.message);
        Ok(())
    }

    fn promote(&self, request: PromoteVersionRequest) -> Result<()> {
        let request = PromoteVersionRequest { version: "v2".into(), ..request };
        let answer =
            self.front(|mut front| async move { Ok(front.promote_version(request).await?.into_inner()) })?;
        ensure!(answer.success, "{}", answer.message);
        Ok(())
    }

    fn roll_back(&self) -> Result<RollbackResponse> {
        let answer = self.front(|mut front| async move {
            Ok(front.rollback(RollbackRequest::default()).await?.into_inner())
        })?;
        ensure!(answer.success, "{}", answer.message);
        Ok(answer)
    }

    fn weights(&self) -> Result<(i32, i32)> {
        let request = GetActiveVersionRequest::default();
        let answer =
            self.front(|mut front| async move { Ok(front.get_active_version(request).await?.into_inner()) })?;
        Ok((answer.version_weights["v1"], answer.version_weights["v2"]))
    }

    fn stats(&self, instance_id: &str) -> Result<ModuleStats> {
        let request = GetStatsRequest { instance_id: instance_id.into(), reset_counters: false };
        let answer =
            self.front(|mut front| async move { Ok(front.get_stats(request).await?.into_inner()) })?;
        answer.stats.context("stats")
    }

    /// One of the NLB's details, such as the state of a promotion.
    fn detail(&self, key: &str) -> Result<String> {
        let request = GetStatusRequest::default();
        let answer =
            self.front(|mut front| async move { Ok(front.get_status(request).await?.into_inner()) })?;
        Ok(answer.details.get(key).cloned().unwrap_or_default())
    }
}

#[test]
fn version_with_a_weight_of_five_percent_gets_its_share() -> Result<()> {
    let fleet = blue_and_green("30s", &[])?;
    fleet.weigh("v1", 95)?;
    fleet.weigh("v2", 5)?;
    let counts = flows(&fleet.lab.clients[0], L4::Tcp, vips()[0], 10_000, 10_000)?;
    assert_shares(&counts, &[("m0", 95), ("m1", 5)]);
    Ok(())
}

#[test]
fn a_version_is_promoted_by_rate_and_no_connection_is_lost() -> Result<()> {
    let fleet = blue_and_green("3s", &[])?;
    on(&fleet.lab.clients[0], || async {
        let mut held = hold(10).await?;
        ensure!(held.iter().all(|(name, _)| name == "m0"), "v2 has no new flows yet");
        fleet.promote(PromoteVersionRequest { promotion_rate: 40, ..Default::default() })?;
        let deadline = Instant::now() + MAX_WAIT;
        let mut steps = Vec::new();
        while !fleet.detail("promotion")?.ends_with("all new flows") {
            ensure!(Instant::now() < deadline, "not complete: {}", fleet.detail("promotion")?);
            let weights = fleet.weights()?;
            if steps.last() != Some(&weights) {
                steps.push(weights);
                held.extend(hold(10).await?);
            }
            assert_answered(&mut held).await?;
        }
        // A short step may end before it is seen.
        let known = [(60, 40), (20, 80), (0, 100)];
        let mut rest = known.iter();
        ensure!(steps.iter().all(|step| rest.any(|next| next == step)), "{steps:?} of {known:?}");
        let fresh = hold(20).await?;
        ensure!(fresh.iter().all(|(name, _)| name == "m1"), "v1 still gets new flows");
        assert_answered(&mut held).await
    })
}

#[test]
fn a_version_that_breaks_connections_is_rolled_back() -> Result<()> {
    let fleet = blue_and_green("120s", &["--broken"])?;
    on(&fleet.lab.clients[0], || async {
        let mut held = hold(10).await?;
        fleet.promote(PromoteVersionRequest { promotion_rate: 50, ..Default::default() })?;
        let deadline = Instant::now() + MAX_WAIT;
        let mut broken = 0;
        while fleet.weights()? != (100, 0) {
            ensure!(Instant::now() < deadline, "not rolled back: {}", fleet.detail("promotion")?);
            for vip in vips() {
                let mut connection = Connection::open(vip).await?;
                broken += u32::from(connection.request().await.is_err());
            }
        }
        ensure!(broken > 0, "the broken module got no flow");
        let outcome = fleet.detail("promotion")?;
        ensure!(outcome.starts_with("v2 was rolled back: "), "{outcome}");
        let since = Instant::now();
        loop {
            let resets: u32 = fleet.stats("m1")?.custom_stats["nlb_instance_resets_total"].parse()?;
            if resets == broken {
                break;
            }
            ensure!(resets < broken && since.elapsed() < MAX_WAIT, "{resets} resets seen of {broken}");
            // The counters are read and sampled once a second.
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        let fresh = hold(40).await?;
        ensure!(fresh.iter().all(|(name, _)| name == "m0"), "v2 still gets new flows");
        assert_answered(&mut held).await
    })?;
    Ok(())
}

#[test]
fn a_rollback_is_one_change_and_open_connections_stay() -> Result<()> {
    let fleet = blue_and_green("30s", &[])?;
    on(&fleet.lab.clients[0], || async {
        let mut held = hold(20).await?;
        fleet.promote(PromoteVersionRequest { immediate: true, ..Default::default() })?;
        held.extend(hold(20).await?);
        let mut spread = BTreeMap::<&str, usize>::new();
        for (name, _) in &held {
            *spread.entry(name.as_str()).or_default() += 1;
        }
        ensure!(spread == [("m0", 20), ("m1", 20)].into(), "{spread:?}");
        let before: u64 = fleet.detail("applied_revision")?.parse()?;
        let answer = fleet.roll_back()?;
        ensure!((answer.previous_version.as_str(), answer.current_version.as_str()) == ("v2", "v1"));
        let after: u64 = fleet.detail("applied_revision")?.parse()?;
        ensure!(after == before + 1, "{} revisions", after - before);
        assert_answered(&mut held).await?;
        let fresh = hold(40).await?;
        ensure!(fresh.iter().all(|(name, _)| name == "m0"), "v2 still gets new flows");
        ensure!(fleet.weights()? == (100, 0), "{:?}", fleet.weights()?);
        assert_answered(&mut held).await
    })
}

/// The port of the VIPs for databases.
const DATABASES: u16 = 3306;

/// ALBs m0 and m1, and DBLBs d0 and d1 for another port, of v1 and v2. The first of each get all new flows.
fn two_deployments() -> Result<Fleet> {
    let serve = ["--promotion-step", "120s"];
    let version = |version| ["--version", version, "--heartbeat", "1"];
    let mut fleet = Fleet::start_with(Lab::one_arm(1, 4)?, Mode::Nat, &[100], &version("v1"), &serve)?;
    fleet.add("m1", 1, Mode::Nat, 100, &version("v2"))?;
    let [vip4, vip6] = vips().map(|vip| SocketAddr::new(vip.ip(), DATABASES).to_string());
    let database = ["--type", "DBLB", "--vip", &vip4, "--vip", &vip6];
    fleet.add("d0", 2, Mode::Nat, 100, &[&version("v1")[..], &database].concat())?;
    fleet.add("d1", 3, Mode::Nat, 100, &[&version("v2")[..], &database].concat())?;
    fleet.wait_for(4)?;
    fleet.nlb(&["weight", "v2", "0", "--version", "--deployment", "all"])?;
    Ok(fleet)
}

impl Fleet {
    /// The weights of v1 and v2 in a deployment.
    fn weights_of(&self, deployment: &str) -> Result<(i32, i32)> {
        let mut request = Request::new(GetActiveVersionRequest::default());
        request.metadata_mut().insert("deployment", deployment.parse()?);
        let answer =
            self.front(|mut front| async move { Ok(front.get_active_version(request).await?.into_inner()) })?;
        Ok((answer.version_weights["v1"], answer.version_weights["v2"]))
    }
}

/// Opens this many connections to a port of the VIPs in turn.
async fn open(port: u16, count: usize) -> Result<Vec<(String, Connection)>> {
    let mut opened = Vec::new();
    for n in 0..count {
        let mut connection = Connection::open(SocketAddr::new(vips()[n % 2].ip(), port)).await?;
        opened.push((connection.request().await?, connection));
    }
    Ok(opened)
}

/// Checks that new connections to a port go to these modules, and to each of them.
async fn assert_goes_to(port: u16, modules: &[&str]) -> Result<()> {
    let opened = open(port, 60).await?;
    let spread = spread(&opened);
    ensure!(spread.keys().eq(modules), "port {port} goes to {spread:?}, not to {modules:?}");
    Ok(())
}

#[test]
fn deployments_are_promoted_and_rolled_back_side_by_side() -> Result<()> {
    let fleet = two_deployments()?;
    on(&fleet.lab.clients[0], || async {
        assert_goes_to(PORT, &["m0"]).await?;
        assert_goes_to(DATABASES, &["d0"]).await?;
        let unnamed = fleet.nlb(&["promote", "v2"]).expect_err("two deployments have v2").to_string();
        ensure!(unnamed.contains("ALB, DBLB"), "{unnamed}");

        fleet.nlb(&["promote", "v2", "--deployment", "ALB"])?;
        assert_goes_to(PORT, &["m1"]).await?;
        assert_goes_to(DATABASES, &["d0"]).await?;
        fleet.nlb(&["promote", "v2", "--rate", "40", "--deployment", "DBLB"])?;
        let both = "ALB: v2 has 100 % of new flows; DBLB: v2 has 40 % of new flows";
        ensure!(fleet.detail("promotion")? == both, "{}", fleet.detail("promotion")?);
        assert_goes_to(PORT, &["m1"]).await?;
        assert_goes_to(DATABASES, &["d0", "d1"]).await?;

        let mut held = open(PORT, 10).await?;
        held.extend(open(DATABASES, 20).await?);
        fleet.nlb(&["rollback", "--deployment", "ALB"])?;
        ensure!(fleet.weights_of("ALB")? == (100, 0) && fleet.weights_of("DBLB")? == (60, 40));
        assert_goes_to(PORT, &["m0"]).await?;
        assert_goes_to(DATABASES, &["d0", "d1"]).await?;
        fleet.nlb(&["promote", "v2", "--deployment", "DBLB"])?;
        assert_goes_to(PORT, &["m0"]).await?;
        assert_goes_to(DATABASES, &["d1"]).await?;
        fleet.nlb(&["rollback", "--deployment", "DBLB"])?;
        assert_goes_to(PORT, &["m0"]).await?;
        assert_goes_to(DATABASES, &["d0"]).await?;
        assert_answered(&mut held).await
    })
}
