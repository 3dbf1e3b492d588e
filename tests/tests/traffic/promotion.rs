//! Blue-green deployment: how new flows move from one version to the next, and back.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_proto::{
    GetActiveVersionRequest, GetStatsRequest, GetStatusRequest, ModuleStats, PromoteVersionRequest,
    RollbackRequest, RollbackResponse, SetTrafficWeightRequest,
};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;

use crate::clients::{Connection, L4, assert_shares, flows, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::life::{assert_answered, hold};

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
