//! What operators set outlives the daemon; modules register again.

use nlb::config::Configuration;
use nlb::store;
use nlb_proto::*;

use super::fake_module::Fake;
use super::fleet::{registration_at, route, without_control};
use super::nlb::{Nlb, settings};
use super::settings::StateDir;

async fn start(state_dir: &StateDir) -> Nlb {
    Nlb::configured(settings(), Configuration::default(), state_dir.path()).await
}

async fn add_both(nlb: &mut Nlb) {
    nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;
    nlb.add(without_control(registration_at("alb-2", 2, "v2"))).await;
}

fn limit(id: &str) -> SetRateLimitRequest {
    let limit = RateLimit {
        limit_id: id.into(),
        target: "service:[2001:db8::1]:443/udp".into(),
        requests_per_minute: 600,
        enabled: true,
        ..RateLimit::default()
    };
    SetRateLimitRequest { limit: Some(limit), ..SetRateLimitRequest::default() }
}

async fn drain(nlb: &mut Nlb, instance_id: &str) {
    // Two readings, after which no instance has flows.
    nlb.count_flows(instance_id, &[0]);
    let request = DrainModuleRequest { instance_id: instance_id.into(), timeout_seconds: 5 };
    let answer = nlb.operator.drain_module(request).await.unwrap().into_inner();
    assert!(answer.success, "{answer:?}");
}

/// Everything that callers see of what operators set.
async fn seen(nlb: &mut Nlb) -> String {
    let mut routes = nlb.front.get_routes(GetRoutesRequest::default()).await.unwrap().into_inner().routes;
    let limits = GetRateLimitsRequest::default();
    let limits = nlb.front.get_rate_limits(limits).await.unwrap().into_inner().limits;
    let split = GetActiveVersionRequest::default();
    let split = nlb.front.get_active_version(split).await.unwrap().into_inner();
    let mut weights: Vec<_> = split.version_weights.into_iter().collect();
    weights.sort();
    let mut instances = Vec::new();
    for id in ["alb-1", "alb-2"] {
        let instance = nlb.listed(id).await.unwrap();
        instances.push((instance.traffic_weight, instance.health_status));
    }
    let status = nlb.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
    let promotion = status.details.get("promotion").cloned();
    // Maps have no order.
    for route in &mut routes {
        assert!(route.metadata.len() <= 1 && route.headers.len() <= 1);
    }
    let limits: Vec<_> = limits
        .into_iter()
        .map(|limit| (limit.limit_id, limit.target, limit.requests_per_minute, limit.enabled))
        .collect();
    format!("{routes:?} {limits:?} {weights:?} {instances:?} {promotion:?} {:?}", split.config)
}

#[tokio::test]
async fn values_set_by_operators_survive_a_restart() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    add_both(&mut nlb).await;
    let mut own = route("operators");
    own.destination_port = 8443;
    own.metadata.insert("target_instances".into(), "alb-1".into());
    let routes = UpdateRoutingRequest { routes: vec![own], ..Default::default() };
    assert!(nlb.modules.update_routing(routes).await.unwrap().into_inner().success);
    assert!(nlb.front.set_rate_limit(limit("few")).await.unwrap().into_inner().success);
    let weigh = |instance_id: &str, version: &str, weight| SetTrafficWeightRequest {
        instance_id: instance_id.into(),
        version: version.into(),
        weight,
    };
    for request in [weigh("alb-1", "", 30), weigh("", "v1", 95), weigh("", "v2", 5)] {
        assert!(nlb.front.set_traffic_weight(request).await.unwrap().into_inner().success);
    }
    let promotion = PromoteVersionRequest { version: "v2".into(), promotion_rate: 10, ..Default::default() };
    assert!(nlb.front.promote_version(promotion).await.unwrap().into_inner().success);
    drain(&mut nlb, "alb-1").await;
    let before = seen(&mut nlb).await;
    for part in ["operators", "few", "(\"v2\", 15)", "(30, 5)", "v2 has 15 %"] {
        assert!(before.contains(part), "{part}: {before}");
    }

    drop(nlb);
    let mut nlb = start(&state_dir).await;
    add_both(&mut nlb).await;
    assert_eq!(seen(&mut nlb).await, before);
    // Former splits are restored too, and no call of a module has undone anything.
    let back = nlb.front.rollback(RollbackRequest::default()).await.unwrap().into_inner();
    assert!(back.success, "{back:?}");
    assert!(seen(&mut nlb).await.contains("[(\"v1\", 95), (\"v2\", 5)]"));
    let resumed = ResumeModuleRequest { instance_id: "alb-1".into() };
    assert!(nlb.operator.resume_module(resumed).await.unwrap().into_inner().success);

    drop(nlb);
    let mut nlb = start(&state_dir).await;
    add_both(&mut nlb).await;
    let after = seen(&mut nlb).await;
    assert!(after.contains("[(\"v1\", 95), (\"v2\", 5)] [(30, 1), (100, 1)] None"), "{after}");
}

#[tokio::test]
async fn a_scaling_policy_is_there_after_a_restart() {
    let state_dir = StateDir::new();
    for config in [Some(ScalingConfig { max_instances: 7, ..Default::default() }), None] {
        let mut nlb = start(&state_dir).await;
        nlb.add_fake("alb-1", 1, "v1", Fake::CONFIRMS).await;
        if config.is_some() {
            let request = TriggerScalingRequest { instance_id: "alb-1".into(), config, ..Default::default() };
            let answer = nlb.modules.trigger_scaling(request).await.unwrap().into_inner();
            assert!(answer.success, "{answer:?}");
        }
        let beyond = TriggerScalingRequest {
            instance_id: "alb-1".into(),
            target_instances: 8,
            ..TriggerScalingRequest::default()
        };
        let answer = nlb.modules.trigger_scaling(beyond).await.unwrap().into_inner();
        assert!(!answer.success && answer.message.contains("max_instances, which is 7"), "{answer:?}");
    }
}

#[tokio::test]
async fn modules_state_is_not_written() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let registration_id = nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;
    let heartbeat = HeartbeatRequest {
        instance_id: "alb-1".into(),
        registration_id: registration_id.clone(),
        status: HealthStatus::Degraded.into(),
        ..HeartbeatRequest::default()
    };
    assert!(nlb.modules.heartbeat(heartbeat).await.unwrap().into_inner().acknowledged);
    let leave =
        UnregisterModuleRequest { instance_id: "alb-1".into(), registration_id, ..Default::default() };
    assert!(nlb.modules.unregister_module(leave).await.unwrap().into_inner().success);
    assert!(!state_dir.path().exists());
}

#[tokio::test]
async fn many_changes_at_once_are_all_on_disk_when_they_are_answered() {
    let state_dir = StateDir::new();
    let nlb = start(&state_dir).await;
    let mut changes = tokio::task::JoinSet::new();
    for n in 0..16 {
        let mut front = nlb.front.clone();
        changes.spawn(async move {
            let id = format!("limit-{n}");
            let answer = front.set_rate_limit(limit(&id)).await.unwrap().into_inner();
            (id, answer)
        });
    }
    while let Some(changed) = changes.join_next().await {
        let (id, answer) = changed.unwrap();
        assert!(answer.success, "{answer:?}");
        let persisted = store::read(state_dir.path()).unwrap();
        assert!(persisted.rate_limits.contains_key(&id), "{id} was confirmed and is not on disk");
    }
}

#[tokio::test]
async fn a_failed_write_is_reported() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    std::fs::write(state_dir.path(), "a file where the directory should be").unwrap();
    let answer = nlb.front.set_rate_limit(limit("few")).await.unwrap().into_inner();
    assert!(!answer.success, "{answer:?}");
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::Error);
    for part in ["in force", "restart", &state_dir.path().display().to_string(), "--state-dir"] {
        assert!(error.message.contains(part), "{part}: {}", error.message);
    }
    let health = nlb.modules.check_health(CheckHealthRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status(), HealthStatus::Degraded, "{health:?}");
    assert!(health.checks["store_error"].contains("--state-dir"));
    // Calls of modules do not depend on the disk.
    nlb.add(without_control(registration_at("alb-1", 1, "v1"))).await;

    std::fs::remove_file(state_dir.path()).unwrap();
    let answer = nlb.front.set_rate_limit(limit("more")).await.unwrap().into_inner();
    assert!(answer.success, "{answer:?}");
    assert_eq!(store::read(state_dir.path()).unwrap().rate_limits.len(), 2);
    let health = nlb.modules.check_health(CheckHealthRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status(), HealthStatus::Healthy, "{health:?}");
}

/// The split of a release that had one for the whole fleet.
const FORMAT_1: &str = r#"{
    "version": 1,
    "state": {
        "operator_routes": {}, "operator_routes_since": {}, "rate_limits": {},
        "version_weights": { "v1": 75, "v2": 25 },
        "split_since": { "secs_since_epoch": 1000, "nanos_since_epoch": 0 },
        "former_splits": [{ "weights": {}, "since": null }],
        "promotion": null, "last_promotion": "v2 was rolled back: 6 of 100 requests failed",
        "steering": {}, "scaling": []
    }
}"#;

async fn shares(nlb: &mut Nlb, instance_id: &str) -> (i32, i32) {
    let asked = GetActiveVersionRequest { instance_id: instance_id.into() };
    let weights = nlb.front.get_active_version(asked).await.unwrap().into_inner().version_weights;
    (weights["v1"], weights["v2"])
}

#[tokio::test]
async fn a_fleets_split_goes_on_until_a_deployments_is_changed() {
    let state_dir = StateDir::new();
    std::fs::create_dir_all(state_dir.path()).unwrap();
    std::fs::write(state_dir.path().join(store::FILE), FORMAT_1).unwrap();
    for changed in [false, true] {
        let mut nlb = start(&state_dir).await;
        for (id, host, version) in [("search-1", 3, "v1"), ("search-2", 4, "v2")] {
            let mut request = without_control(registration_at(id, host, version));
            request.instance.as_mut().unwrap().metadata.insert("deployment".into(), "search".into());
            nlb.add(request).await;
        }
        add_both(&mut nlb).await;
        let albs = if changed { (100, 100) } else { (75, 25) };
        assert_eq!((shares(&mut nlb, "alb-1").await, shares(&mut nlb, "search-1").await), (albs, (75, 25)));
        let request = RollbackRequest { instance_id: "alb-1".into(), ..Default::default() };
        let answer = nlb.front.rollback(request).await.unwrap().into_inner();
        assert_eq!(answer.success, !changed, "{}", answer.message);
        assert_eq!(
            (shares(&mut nlb, "alb-1").await, shares(&mut nlb, "search-1").await),
            ((100, 100), (75, 25))
        );
    }
}
