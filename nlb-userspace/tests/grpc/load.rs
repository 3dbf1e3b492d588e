//! How load is spread, and rebalancing.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use nlb::model::traffic::{Counts, Traffic};
use nlb_proto::*;
use tonic::Code;

use super::fleet::registration_at;
use super::metrics::backend;
use super::nlb::Nlb;

fn flows(of: &[(&str, u64)]) -> Arc<Traffic> {
    let count = |(id, active_flows): &(&str, u64)| {
        let counts = Counts { active_flows: *active_flows, new_flows: *active_flows, ..Default::default() };
        (backend(id, 80), counts)
    };
    Arc::new(Traffic { backends: of.iter().map(count).collect(), ..Default::default() })
}

/// Instances "a", "b" ... of version v1 with these numbers of flows.
async fn fleet(of: &[(&str, u64)]) -> Nlb {
    let mut nlb = Nlb::start().await;
    for ((id, _), host) in of.iter().zip(1..) {
        nlb.add(registration_at(id, host, "v1")).await;
    }
    nlb.traffic.send_replace(flows(of));
    nlb
}

fn rebalance(strategy: &str) -> RebalanceLoadRequest {
    RebalanceLoadRequest { strategy: strategy.into(), ..Default::default() }
}

impl Nlb {
    async fn distribution(&mut self, request: GetLoadDistributionRequest) -> GetLoadDistributionResponse {
        self.modules.get_load_distribution(request).await.unwrap().into_inner()
    }

    async fn rebalance(&mut self, request: RebalanceLoadRequest) -> RebalanceLoadResponse {
        let answer = self.modules.rebalance_load(request).await.unwrap().into_inner();
        assert!(answer.success, "{}", answer.message);
        for distribution in [&answer.previous_distribution, &answer.new_distribution] {
            assert_eq!(distribution.values().sum::<i32>(), 100, "{distribution:?}");
        }
        answer
    }

    async fn weights(&mut self) -> Vec<i32> {
        let answer = self.modules.list_modules(ListModulesRequest::default()).await.unwrap().into_inner();
        answer.modules.iter().map(|instance| instance.traffic_weight).collect()
    }

    /// Slots of the kernel's table by instance, in percent.
    fn kernel_shares(&self) -> Vec<usize> {
        let rows = self.maps.rows();
        let table = rows.pools.values().next().unwrap();
        let share = |id: &u16| table.iter().filter(|slot| *slot == id).count() as f64 / table.len() as f64;
        let percent = |id: &u16| (100.0 * share(id)).round() as usize;
        rows.backends.keys().map(percent).collect()
    }
}

fn shares(of: &[(&str, i32)]) -> HashMap<String, i32> {
    of.iter().map(|(id, share)| (id.to_string(), *share)).collect()
}

#[tokio::test]
async fn every_instance_shows_what_it_carries() {
    let mut nlb = fleet(&[("a", 30)]).await;
    let id = nlb.add(registration_at("b", 2, "v1")).await;
    nlb.traffic.send_replace(flows(&[("a", 30), ("b", 10)]));
    let stats = ModuleStats {
        cpu_usage_percent: 40.0,
        memory_usage_mb: 256.0,
        avg_latency_ms: 2.5,
        custom_stats: [("queue_depth".into(), "6".into())].into(),
        ..Default::default()
    };
    let beat = HeartbeatRequest {
        instance_id: "b".into(),
        registration_id: id,
        current_stats: Some(stats),
        ..Default::default()
    };
    nlb.modules.heartbeat(beat).await.unwrap();
    let answer = nlb.distribution(GetLoadDistributionRequest::default()).await;
    let (a, b) = (&answer.distribution["a"], &answer.distribution["b"]);
    assert_eq!((a.active_connections, b.active_connections), (30, 10));
    assert_eq!((b.cpu_usage_percent, b.memory_usage_mb), (40.0, 256.0));
    assert_eq!((b.avg_latency_ms, b.queue_depth), (2.5, 6));
    assert!((answer.balance_score - 0.6).abs() < 1e-9, "{}", answer.balance_score);
    assert!((a.load_score - 1.5).abs() < 1e-9, "{}", a.load_score);
    assert!((b.load_score - (0.5 + 3.0) / 4.0).abs() < 1e-9, "{}", b.load_score);
    assert!(answer.measured_at.is_some());
    let none =
        GetLoadDistributionRequest { module_type_filter: ModuleType::Dblb.into(), ..Default::default() };
    let none = nlb.distribution(none).await;
    assert_eq!((none.distribution.len(), none.balance_score), (0, 1.0));
    let odd = GetLoadDistributionRequest { module_type_filter: 99, ..Default::default() };
    let status = nlb.modules.get_load_distribution(odd).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().starts_with("module_type_filter"));
}

#[tokio::test]
async fn the_hour_is_shown_by_its_means() {
    let mut nlb = fleet(&[("a", 100)]).await;
    let historical = GetLoadDistributionRequest { include_historical: true, ..Default::default() };
    while nlb.distribution(historical).await.distribution["a"].active_connections == 0 {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    nlb.traffic.send_replace(flows(&[("a", 0)]));
    let now = nlb.distribution(GetLoadDistributionRequest::default()).await;
    assert_eq!(now.distribution["a"].active_connections, 0);
    let hour = nlb.distribution(historical).await.distribution["a"].clone();
    assert!((1..=100).contains(&hour.active_connections), "{hour:?}");
    assert!(hour.requests_per_second > 0, "{hour:?}");
}

#[tokio::test]
async fn new_flows_go_to_who_has_fewest_and_back_by_weight() {
    let mut nlb = fleet(&[("a", 30), ("b", 10)]).await;
    let revision = nlb.registry.desired().borrow().revision;
    let answer = nlb.rebalance(rebalance("")).await;
    assert_eq!(answer.previous_distribution, shares(&[("a", 50), ("b", 50)]));
    assert_eq!(answer.new_distribution, shares(&[("a", 25), ("b", 75)]));
    assert!(answer.message.contains("0.60"), "{}", answer.message);
    assert_eq!(nlb.weights().await, [50, 150]);
    assert_eq!(nlb.kernel_shares(), [25, 75]);
    assert_eq!(nlb.registry.desired().borrow().revision, revision + 1, "one change for all");

    let answer = nlb.rebalance(rebalance("weight")).await;
    assert_eq!(answer.new_distribution, shares(&[("a", 50), ("b", 50)]));
    assert_eq!(nlb.weights().await, [100, 100]);
}

#[tokio::test]
async fn an_even_load_is_left_alone_unless_forced() {
    let mut nlb = fleet(&[("a", 20), ("b", 20)]).await;
    nlb.rebalance(RebalanceLoadRequest { force: true, ..rebalance("equal") }).await;
    let revision = nlb.registry.desired().borrow().revision;
    nlb.registry.rebalance(&[("a".to_owned(), 7)].into()).unwrap();
    let answer = nlb.rebalance(rebalance("weight")).await;
    assert!(answer.message.contains("nothing was changed"), "{}", answer.message);
    assert_eq!(answer.previous_distribution, answer.new_distribution);
    assert_eq!(nlb.registry.desired().borrow().revision, revision + 1);
    nlb.rebalance(RebalanceLoadRequest { force: true, ..rebalance("weight") }).await;
    assert_eq!(nlb.weights().await, [100, 100]);
}

#[tokio::test]
async fn strategies_have_the_names_that_others_give_them() {
    for (alias, strategy) in [
        ("round_robin", "equal"),
        ("round-robin", "equal"),
        ("weighted", "weight"),
        ("least-conn", "least_connections"),
        ("least-connections", "least_connections"),
    ] {
        let mut weights = Vec::new();
        for name in [alias, strategy] {
            let mut nlb = fleet(&[("a", 30), ("b", 10)]).await;
            let weight =
                SetTrafficWeightRequest { instance_id: "a".into(), weight: 200, ..Default::default() };
            assert!(nlb.front.set_traffic_weight(weight).await.unwrap().into_inner().success);
            nlb.rebalance(RebalanceLoadRequest { force: true, ..rebalance(name) }).await;
            weights.push(nlb.weights().await);
        }
        assert_eq!(weights[0], weights[1], "{alias}");
    }
}

#[tokio::test]
async fn only_targets_change_and_the_others_keep_their_share() {
    let mut nlb = fleet(&[("a", 30), ("b", 10), ("c", 500)]).await;
    let request =
        RebalanceLoadRequest { target_instances: vec!["a".into(), "b".into()], ..rebalance("load") };
    let answer = nlb.rebalance(request).await;
    assert_eq!(nlb.weights().await, [50, 150, 100]);
    assert_eq!(answer.new_distribution["c"], 33);
}

#[tokio::test]
async fn modules_that_take_no_flows_are_not_rebalanced() {
    let mut nlb = fleet(&[("a", 30), ("b", 10)]).await;
    nlb.operator
        .drain_module(DrainModuleRequest { instance_id: "a".into(), timeout_seconds: 1 })
        .await
        .unwrap();
    let answer = nlb.rebalance(RebalanceLoadRequest { force: true, ..rebalance("") }).await;
    assert!(answer.message.contains("1 take no new flows"), "{}", answer.message);
    assert_eq!(nlb.weights().await, [100, 100]);
    let only = RebalanceLoadRequest { target_instances: vec!["a".into()], ..rebalance("") };
    assert!(nlb.rebalance(only).await.message.contains("none of the instances"));
}

#[tokio::test]
async fn malformed_requests_are_refused_and_change_nothing() {
    let mut nlb = fleet(&[("a", 30), ("b", 10)]).await;
    let revision = nlb.registry.desired().borrow().revision;
    let targets = |ids: Vec<String>| RebalanceLoadRequest { target_instances: ids, ..Default::default() };
    for (request, field) in [
        (rebalance("fastest"), "strategy"),
        (rebalance("equal\0"), "strategy"),
        (rebalance(&"x".repeat(1 << 16)), "strategy"),
        (targets(vec!["a".into(), String::new()]), "target_instances[1]"),
        (targets(vec!["a b".into()]), "target_instances[0]"),
        (targets(vec!["a".into(); 10_001]), "target_instances"),
    ] {
        let status = nlb.modules.rebalance_load(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(status.message().split(": ").next(), Some(field), "{}", status.message());
        assert!(status.message().len() < 300, "{} bytes", status.message().len());
    }
    let answer = nlb.modules.rebalance_load(targets(vec!["a".into(), "ghost".into()])).await.unwrap();
    let error = answer.into_inner().error.unwrap();
    assert_eq!(error.code(), StatusCode::NotFound, "{}", error.message);
    assert_eq!(nlb.registry.desired().borrow().revision, revision);
    let known = nlb.modules.rebalance_load(rebalance("fastest")).await.unwrap_err();
    assert!(known.message().contains("least_connections, weight, equal, load"), "{}", known.message());
}

/// A full instance has few flows per weight because of its limit, and a greater weight would give it none.
#[tokio::test]
async fn a_full_instance_is_left_alone() {
    let mut nlb = fleet(&[("b", 40), ("c", 40)]).await;
    let mut small = registration_at("a", 3, "v1");
    small.instance.as_mut().unwrap().max_connections = 5;
    nlb.add(small).await;
    nlb.traffic.send_replace(flows(&[("a", 5), ("b", 40), ("c", 40)]));
    let distribution = nlb.distribution(GetLoadDistributionRequest::default()).await;
    assert_eq!(distribution.balance_score, 1.0);
    let forced = RebalanceLoadRequest { force: true, ..rebalance("") };
    let answer = nlb.rebalance(forced.clone()).await;
    assert!(answer.message.ends_with("; 1 take no new flows and were left alone"), "{}", answer.message);
    assert_eq!(nlb.weights().await, [100, 100, 100]);
    nlb.traffic.send_replace(flows(&[("a", 4), ("b", 40), ("c", 40)]));
    nlb.rebalance(forced).await;
    assert!(nlb.weights().await[0] > 100, "it has room");
}
