//! The NLB's metrics equal the traffic that was sent, and rebalancing moves new flows only.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{
    GetLoadDistributionRequest, GetNlbMetricsRequest, MetricDataPoint, RebalanceLoadRequest,
    RebalanceLoadResponse,
};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::grpc;
use tonic::transport::Channel;

use crate::clients::{Connection, L4, assert_shares, flows, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::life::{hold, spread};

impl Fleet {
    fn call<T: Send, F: Future<Output = Result<T>>>(
        &self,
        request: impl FnOnce(NlbServiceClient<Channel>) -> F + Send,
    ) -> Result<T> {
        let server = format!("http://{}", grpc(&self.lab));
        on(&self.lab.nlb, || async move { request(NlbServiceClient::connect(server).await?).await })
    }

    /// The NLB's metrics.
    pub fn metrics(&self) -> Result<Vec<MetricDataPoint>> {
        self.call(|mut nlb| async move {
            Ok(nlb.get_nlb_metrics(GetNlbMetricsRequest::default()).await?.into_inner().metrics)
        })
    }

    fn rebalance(&self, strategy: &str) -> Result<RebalanceLoadResponse> {
        let request =
            RebalanceLoadRequest { force: true, strategy: strategy.to_owned(), ..Default::default() };
        self.call(|mut nlb| async move {
            let answer = nlb.rebalance_load(request).await?.into_inner();
            ensure!(answer.success, "{}", answer.message);
            Ok(answer)
        })
    }
}

/// The sum of the points of this name with these labels.
pub fn sum(points: &[MetricDataPoint], name: &str, labels: &[(&str, &str)]) -> u64 {
    let fits = |point: &&MetricDataPoint| {
        point.name == name
            && labels.iter().all(|(label, value)| point.labels.get(*label).is_some_and(|v| v == value))
    };
    points.iter().filter(fits).map(|point| point.value as u64).sum()
}

#[test]
fn metrics_equal_the_traffic_that_was_sent() -> Result<()> {
    const FLOWS: u16 = 300;
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 50], &[])?;
    let client = &fleet.lab.clients[0];
    let mut answered = BTreeMap::<String, u64>::new();
    for vip in vips() {
        for (name, count) in flows(client, L4::Udp, vip, 30_000, FLOWS)? {
            *answered.entry(name).or_default() += u64::from(count);
        }
    }
    // Each flow has three requests "who?" (4 bytes) and answers "mN who?" (7 bytes). Half of them are IPv4.
    let all = u64::from(2 * FLOWS);
    let bytes = |payload: u64| 3 * u64::from(FLOWS) * ((20 + 8 + payload) + (40 + 8 + payload));
    let expected = [
        ("new_flows_total", all),
        ("active_flows", all),
        ("active_tcp_flows", 0),
        ("packets_total", 3 * all),
        ("bytes_total", bytes(4)),
        ("reply_packets_total", 3 * all),
        ("reply_bytes_total", bytes(7)),
        ("resets_total", 0),
    ];
    let deadline = Instant::now() + MAX_WAIT;
    let metrics = loop {
        let metrics = fleet.metrics()?;
        let counted = |scope: &str| {
            expected.iter().all(|(name, count)| sum(&metrics, &format!("nlb_{scope}_{name}"), &[]) == *count)
        };
        if ["forwarded", "instance", "version", "backend"].into_iter().all(counted) {
            break metrics;
        }
        if Instant::now() > deadline {
            bail!("expected {expected:?}, found {metrics:#?}");
        }
        std::thread::sleep(Duration::from_millis(200));
    };
    for (name, count) in &answered {
        for (metric, times) in [("nlb_instance_new_flows_total", 1), ("nlb_instance_packets_total", 3)] {
            assert_eq!(sum(&metrics, metric, &[("instance_id", name)]), times * count, "{metric} of {name}");
        }
    }
    for vip in vips() {
        let labels = [("vip", vip.ip().to_string()), ("protocol", "udp".to_owned())];
        let labels: Vec<(&str, &str)> =
            labels.iter().map(|(label, value)| (*label, value.as_str())).collect();
        assert_eq!(sum(&metrics, "nlb_service_active_flows", &labels), u64::from(FLOWS));
    }
    let seen = sum(&metrics, "nlb_packets_seen_total", &[]);
    assert_eq!(sum(&metrics, "nlb_packets_total", &[]), seen, "every packet has one exit");
    assert!(seen >= 6 * all, "{seen}");
    Ok(())
}

#[test]
fn rebalancing_moves_new_flows_and_not_held_ones() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        // m0 gets all flows, then m1 may get some again.
        fleet.nlb(&["weight", "m1", "0"])?;
        let mut held = hold(40).await?;
        ensure!(spread(&held).keys().eq(["m0"]), "{:?}", spread(&held));
        fleet.nlb(&["weight", "m1", "100"])?;
        let score = wait_for_flows(&fleet, "m0", 40)?;
        ensure!(score == 0.0, "the balance score of one module with all flows: {score}");

        let answer = fleet.rebalance("least_connections")?;
        ensure!(answer.previous_distribution == [("m0".into(), 50), ("m1".into(), 50)].into(), "{answer:?}");
        let expected = answer.new_distribution["m1"];
        ensure!(expected >= 99, "{answer:?}");
        let fresh = hold(100).await?;
        let moved = spread(&fresh).get("m1").copied().unwrap_or_default();
        ensure!(moved >= 95, "{:?} after {answer:?}", spread(&fresh));
        for (name, connection) in &mut held {
            let answered: &mut Connection = connection;
            ensure!(answered.request().await? == *name, "rebalancing moved a held connection");
        }
        Ok(())
    })?;
    fleet.rebalance("weight")?;
    assert_shares(&flows(client, L4::Udp, vips()[0], 20_000, 500)?, &[("m0", 1), ("m1", 1)]);
    Ok(())
}

/// Waits until the instance's flows are counted, and returns the balance score.
fn wait_for_flows(fleet: &Fleet, instance_id: &str, count: i32) -> Result<f64> {
    let deadline = Instant::now() + MAX_WAIT;
    loop {
        let load = fleet.call(|mut nlb| async move {
            Ok(nlb.get_load_distribution(GetLoadDistributionRequest::default()).await?.into_inner())
        })?;
        let info = load.distribution.get(instance_id).context("not registered")?;
        if info.active_connections == count {
            return Ok(load.balance_score);
        }
        ensure!(Instant::now() < deadline, "no {count} flows: {info:?}");
        std::thread::sleep(Duration::from_millis(100));
    }
}
