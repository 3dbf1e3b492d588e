//! The NLB's own ModuleService, which answers for all modules, with modules that accept all calls.

use nlb_proto::*;
use prost::Message as _;
use tokio_stream::StreamExt as _;
use tonic::Status;

use super::fake_module::Fake;
use super::fleet::{registration_at, route, without_control};
use super::nlb::Nlb;

#[tokio::test]
async fn the_nlb_has_a_status_and_figures_of_its_own() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    nlb.count_flows("a", &[4]);
    nlb.wait_for("nlb_instance_new_flows_total{instance_id=a}", 9.0).await;
    let status = nlb.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
    let own = status.instance.clone().unwrap();
    assert_eq!((own.module_type(), own.current_connections), (ModuleType::Nlb, 4));
    assert_eq!((own.instance_id, own.address), ("nlb".to_owned(), nlb.address.to_string()));
    assert_eq!(status.status(), HealthStatus::Healthy);
    assert_eq!(status.details["interfaces"], "none");

    let stats = nlb.front.get_stats(GetStatsRequest::default()).await.unwrap().into_inner().stats.unwrap();
    assert_eq!((stats.total_connections, stats.active_connections), (9, 4));
    let health = nlb.front.health_check(HealthCheckRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status(), HealthStatus::Healthy);
    assert!(health.checks.contains_key("applied_revision"));
}

/// A module with its own answer to each call.
const ANSWERS: Fake = Fake::Answers(|call| {
    Ok(match call {
        "GetStatus" => GetStatusResponse {
            status: HealthStatus::Degraded.into(),
            message: "half asleep".into(),
            details: [("threads".to_owned(), "2".to_owned())].into(),
            ..Default::default()
        }
        .encode_to_vec(),
        "HealthCheck" => HealthCheckResponse {
            status: HealthStatus::Degraded.into(),
            message: "half asleep".into(),
            checks: [("disk".to_owned(), "full".to_owned())].into(),
            ..Default::default()
        }
        .encode_to_vec(),
        "GetStats" => {
            let stats = ModuleStats { total_requests: 77, ..Default::default() };
            GetStatsResponse { stats: Some(stats) }.encode_to_vec()
        }
        "GetMetrics" => {
            let point = MetricDataPoint { name: "module_x".into(), value: 3.0, ..Default::default() };
            let metrics = ModuleMetrics { metrics: vec![point], ..Default::default() };
            GetMetricsResponse { metrics: Some(metrics), ..Default::default() }.encode_to_vec()
        }
        "GetConfig" => {
            let config = ConfigUpdate { config_type: "cache".into(), ..Default::default() };
            GetConfigResponse { configs: vec![config], ..Default::default() }.encode_to_vec()
        }
        "Scale" => {
            ScaleResponse { success: true, current_instances: 2, desired_instances: 3, ..Default::default() }
                .encode_to_vec()
        }
        "UpdateConfig" => {
            UpdateConfigResponse { validation_errors: vec!["cache: too large".into()], ..Default::default() }
                .encode_to_vec()
        }
        _ => vec![0x08, 0x01],
    })
});

#[tokio::test]
async fn a_modules_answer_is_merged_with_what_the_nlb_knows() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", ANSWERS).await;
    let instance_id = "a".to_owned();
    let request = GetStatusRequest { instance_id: instance_id.clone() };
    let status = nlb.front.get_status(request).await.unwrap().into_inner();
    assert_eq!((status.status(), status.message.as_str()), (HealthStatus::Degraded, "half asleep"));
    assert_eq!(
        (status.details["module.threads"].as_str(), status.details["lease"].as_str()),
        ("2", "current")
    );

    let request = HealthCheckRequest { instance_id: instance_id.clone(), deep_check: true };
    let health = nlb.front.health_check(request).await.unwrap().into_inner();
    assert_eq!((health.status(), health.checks["module.disk"].as_str()), (HealthStatus::Degraded, "full"));

    let request = GetStatsRequest { instance_id: instance_id.clone(), reset_counters: true };
    let stats = nlb.front.get_stats(request).await.unwrap().into_inner().stats.unwrap();
    assert_eq!((stats.total_requests, stats.custom_stats["source"].as_str()), (77, "module"));
    assert_eq!(stats.custom_stats["nlb_instance_new_flows_total"], "0");

    nlb.wait_for("nlb_instance_active_flows{instance_id=a}", 0.0).await;
    let request = GetMetricsRequest {
        instance_id: instance_id.clone(),
        metric_names: vec!["module_x".into(), "nlb_instance_active_flows".into()],
        ..Default::default()
    };
    let metrics = nlb.front.get_metrics(request.clone()).await.unwrap().into_inner().metrics.unwrap();
    let mut names: Vec<&str> = metrics.metrics.iter().map(|point| point.name.as_str()).collect();
    names.sort();
    assert_eq!(names, ["module_x", "nlb_instance_active_flows"]);
    let stream = StreamMetricsRequest {
        instance_id: instance_id.clone(),
        metric_names: request.metric_names,
        ..Default::default()
    };
    let mut samples = nlb.front.stream_metrics(stream).await.unwrap().into_inner();
    for _ in 0..2 {
        assert_eq!(samples.next().await.unwrap().unwrap().metrics.unwrap().metrics.len(), 2);
    }
    let epoch = nlb.registry.snapshot().record("a").unwrap().epoch;
    let request = GetConfigRequest { instance_id: instance_id.clone(), ..Default::default() };
    assert_eq!(nlb.front.get_config(request).await.unwrap().into_inner().configs[0].config_type, "cache");
    let request = ScaleRequest { instance_id: instance_id.clone(), ..Default::default() };
    let scaled = nlb.front.scale(request).await.unwrap().into_inner();
    assert_eq!((scaled.success, scaled.current_instances, scaled.desired_instances), (true, 2, 3));
    let config = Some(ConfigUpdate { config_type: "cache".into(), ..Default::default() });
    let request = UpdateConfigRequest { instance_id, config, validate_only: true };
    let answer = nlb.front.update_config(request).await.unwrap().into_inner();
    assert_eq!(
        (answer.success, &answer.validation_errors[..]),
        (false, &["cache: too large".to_owned()][..])
    );

    nlb.registry.remove("a", epoch);
    loop {
        match samples.next().await.expect("the stream ends with a reason") {
            Ok(_) => {}
            Err(status) => break assert_eq!(status.code(), tonic::Code::NotFound),
        }
    }
}

#[tokio::test]
async fn routes_of_one_instance_are_changed_at_both_ends() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let listed = async |nlb: &mut Nlb, instance_id: &str| -> Vec<String> {
        let request = GetRoutesRequest { instance_id: instance_id.into(), ..Default::default() };
        let answer = nlb.front.get_routes(request).await.unwrap().into_inner();
        assert_eq!(answer.total_routes as usize, answer.routes.len());
        answer.routes.into_iter().map(|route| route.route_id).collect()
    };
    let update = UpdateRoutesRequest {
        instance_id: "a".into(),
        routes: vec![Route { destination_port: 81, ..route("more") }],
        replace_all: false,
    };
    let answer = nlb.front.update_routes(update.clone()).await.unwrap().into_inner();
    assert_eq!((answer.success, answer.routes_updated), (true, 1), "{}", answer.message);
    assert_eq!(module.last("UpdateRoutes"), Some(update.clone()));
    assert_eq!(listed(&mut nlb, "a").await, ["more", "web"]);

    let delete = DeleteRouteRequest { instance_id: "a".into(), route_id: "web".into() };
    assert!(nlb.front.delete_route(delete.clone()).await.unwrap().into_inner().success);
    assert_eq!(module.last("DeleteRoute"), Some(delete.clone()));
    assert_eq!(listed(&mut nlb, "a").await, ["more"]);
    assert_eq!(module.calls().len(), 2);
    let again = nlb.front.delete_route(delete).await.unwrap().into_inner();
    assert_eq!(again.error.unwrap().code(), StatusCode::NotFound);
    assert_eq!(module.calls().len(), 2, "calls that the registry refuses are not passed on");

    // The operator's own routes concern no module.
    let own = UpdateRoutesRequest { instance_id: String::new(), ..update };
    assert!(nlb.front.update_routes(own).await.unwrap().into_inner().success);
    nlb.add(without_control(registration_at("b", 2, "v1"))).await;
    nlb.add(without_control(registration_at("c", 3, "v1"))).await;
    assert_eq!(listed(&mut nlb, "").await, ["more", "web"], "equal routes once");
    let delete = DeleteRouteRequest { route_id: "more".into(), ..Default::default() };
    assert!(nlb.front.delete_route(delete).await.unwrap().into_inner().success);
    assert_eq!(module.calls().len(), 2);
    assert_eq!(listed(&mut nlb, "a").await, ["more"]);

    let filter = Filter { field: "destination_port".into(), operator: "eq".into(), value: "81".into() };
    let query = Some(Query { filters: vec![filter], ..Default::default() });
    let found =
        nlb.front.get_routes(GetRoutesRequest { query, ..Default::default() }).await.unwrap().into_inner();
    assert_eq!((found.routes[0].route_id.as_str(), found.total_routes), ("more", 1));
}

#[tokio::test]
async fn instances_are_listed_by_type_and_status() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration_at("a", 1, "v1"))).await;
    let mut other = without_control(registration_at("b", 2, "v1"));
    let instance = other.instance.as_mut().unwrap();
    instance.module_type = ModuleType::Rtmp.into();
    instance.health_status = HealthStatus::Starting.into();
    nlb.add(other).await;
    for (module_type, status_filter, expected) in [
        (ModuleType::Unspecified, HealthStatus::Unspecified, 2),
        (ModuleType::Alb, HealthStatus::Unspecified, 1),
        (ModuleType::Rtmp, HealthStatus::Starting, 1),
        (ModuleType::Alb, HealthStatus::Starting, 0),
    ] {
        let request =
            GetInstancesRequest { module_type: module_type.into(), status_filter: status_filter.into() };
        let answer = nlb.front.get_instances(request).await.unwrap().into_inner();
        assert_eq!((answer.total_instances, answer.instances.len()), (expected, expected as usize));
    }
}

#[tokio::test]
async fn a_graceful_shutdown_drains_first() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    nlb.count_flows("a", &[2, 2, 2, 2, 0]);
    let request = ShutdownRequest { instance_id: "a".into(), graceful: true, timeout_seconds: 20 };
    let mut front = nlb.front.clone();
    let call = tokio::spawn(async move { front.shutdown(request).await });
    while nlb.listed("a").await.unwrap().health_status() != HealthStatus::Stopping {
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    assert!(module.calls().is_empty(), "called before its flows had closed");
    let answer = call.await.unwrap().unwrap().into_inner();
    assert!(answer.success && answer.message.contains("had closed"), "{}", answer.message);
    assert_eq!(module.calls(), ["Shutdown"]);
    assert_eq!(nlb.listed("a").await.unwrap().health_status(), HealthStatus::Stopping);
}

#[tokio::test]
async fn a_shutdown_without_grace_takes_new_flows_away_at_once() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let stays = nlb.add_fake("b", 2, "v1", Fake::CONFIRMS).await;
    let request = ShutdownRequest { instance_id: "a".into(), ..Default::default() };
    let answer = nlb.front.shutdown(request).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!(nlb.listed("a").await.unwrap().health_status(), HealthStatus::Stopping);
    assert!(stays.calls().is_empty());
    for port in 1..=64 {
        let asked = RouteRequestRequest {
            route: Some(route("asked")),
            context: [("source_port".to_owned(), port.to_string())].into(),
            ..Default::default()
        };
        let routed = nlb.modules.route_request(asked).await.unwrap().into_inner();
        assert_eq!(routed.target_instance_id, "b");
    }
    nlb.add(without_control(registration_at("a", 1, "v1"))).await;
    assert_eq!(
        nlb.listed("a").await.unwrap().health_status(),
        HealthStatus::Healthy,
        "it is registered again"
    );
}

#[tokio::test]
async fn a_promotion_without_a_pace_takes_the_usual_one() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let new = nlb.add_fake("b", 2, "v2", Fake::CONFIRMS).await;
    let call = SetTrafficWeightRequest { version: "v2".into(), weight: 0, ..Default::default() };
    assert!(nlb.front.set_traffic_weight(call).await.unwrap().into_inner().success);
    let request = PromoteVersionRequest { version: "v2".into(), ..Default::default() };
    let answer = nlb.front.promote_version(request).await.unwrap().into_inner();
    assert!(answer.message.starts_with("v2 has 10 % of new flows, and 10 % more"), "{}", answer.message);
    let module: PromoteVersionRequest = new.last("PromoteVersion").unwrap();
    assert_eq!(module.promotion_rate, 10, "the module need not know the default rate");
}

#[tokio::test]
async fn versions_are_promoted_and_rolled_back() {
    let mut nlb = Nlb::start().await;
    let old = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let new = nlb.add_fake("b", 2, "v2", Fake::CONFIRMS).await;
    let call = SetTrafficWeightRequest { version: "v2".into(), weight: 0, ..Default::default() };
    assert!(nlb.front.set_traffic_weight(call).await.unwrap().into_inner().success);
    let request = PromoteVersionRequest { version: "v2".into(), promotion_rate: 5, ..Default::default() };
    let answer = nlb.front.promote_version(request.clone()).await.unwrap().into_inner();
    assert!(answer.success && answer.promoted_version == "v2", "{}", answer.message);
    assert_eq!(new.last("PromoteVersion"), Some(request));
    assert!(!old.calls().contains(&"PromoteVersion".to_owned()), "only instances of the version are called");

    let active = nlb.front.get_active_version(GetActiveVersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((active.active_version.as_str(), active.version_weights["v2"]), ("v1", 5));
    let split = active.config.unwrap();
    assert_eq!((split.blue_version.as_str(), split.blue_weight), ("v1", 95));
    assert_eq!((split.green_version.as_str(), split.green_weight), ("v2", 5));
    assert!(split.canary_enabled && split.canary_percent == 5 && split.deployment_started.is_some());
    let status = nlb.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
    assert_eq!(status.details["promotion"], "v2 has 5 % of new flows");

    let at_once = PromoteVersionRequest { instance_id: "b".into(), immediate: true, ..Default::default() };
    let answer = nlb.front.promote_version(at_once).await.unwrap().into_inner();
    assert_eq!(answer.promoted_version, "v2", "the instance stands for its version");
    let active = nlb.front.get_active_version(GetActiveVersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((active.active_version.as_str(), active.version_weights["v1"]), ("v2", 0));

    let answer = nlb.front.rollback(RollbackRequest::default()).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!((answer.previous_version.as_str(), answer.current_version.as_str()), ("v2", "v1"));
    for module in [&old, &new] {
        assert_eq!(module.last::<RollbackRequest>("Rollback").unwrap().target_version, "v1");
    }
    let active = nlb.front.get_active_version(GetActiveVersionRequest::default()).await.unwrap().into_inner();
    assert_eq!((active.version_weights["v1"], active.version_weights["v2"]), (100, 0));
}

#[tokio::test]
async fn unknown_ids_are_not_found() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let ghost = || "ghost".to_owned();
    macro_rules! not_found {
        ($($call:ident($request:expr);)+) => {$(
            let status = nlb.front.$call($request).await.unwrap_err();
            assert_eq!(status.code(), tonic::Code::NotFound, "{}: {status}", stringify!($call));
        )+};
    }
    not_found! {
        get_status(GetStatusRequest { instance_id: ghost() });
        health_check(HealthCheckRequest { instance_id: ghost(), ..Default::default() });
        get_routes(GetRoutesRequest { instance_id: ghost(), ..Default::default() });
        get_stats(GetStatsRequest { instance_id: ghost(), ..Default::default() });
        get_metrics(GetMetricsRequest { instance_id: ghost(), ..Default::default() });
        stream_metrics(StreamMetricsRequest { instance_id: ghost(), ..Default::default() });
        get_active_version(GetActiveVersionRequest { instance_id: ghost() });
        get_config(GetConfigRequest { instance_id: ghost(), ..Default::default() });
    }
    macro_rules! refused {
        ($($call:ident($request:expr);)+) => {$(
            let answer = nlb.front.$call($request).await.unwrap().into_inner();
            assert_eq!(answer.error.unwrap().code(), StatusCode::NotFound, "{}", stringify!($call));
        )+};
    }
    refused! {
        reload(ReloadRequest { instance_id: ghost(), ..Default::default() });
        shutdown(ShutdownRequest { instance_id: ghost(), graceful: true, ..Default::default() });
        scale(ScaleRequest { instance_id: ghost(), ..Default::default() });
        update_routes(UpdateRoutesRequest { instance_id: ghost(), ..Default::default() });
        delete_route(DeleteRouteRequest { instance_id: ghost(), route_id: "web".into() });
        update_config(UpdateConfigRequest {
            instance_id: ghost(),
            config: Some(ConfigUpdate::default()),
            ..Default::default()
        });
        promote_version(PromoteVersionRequest { version: "v9".into(), immediate: true, ..Default::default() });
        promote_version(PromoteVersionRequest { instance_id: ghost(), immediate: true, ..Default::default() });
        rollback(RollbackRequest { instance_id: ghost(), ..Default::default() });
        rollback(RollbackRequest { target_version: "v9".into(), ..Default::default() });
        rollback(RollbackRequest::default());
    }
}

/// A module that has no such route has nothing left to do, and does not keep the NLB from removing it.
#[tokio::test]
async fn a_route_that_the_module_does_not_have_is_removed() {
    let status = Fake::Answers(|_| Err(Status::not_found("no such route")));
    let answer = Fake::Answers(|_| {
        let error = Error { code: StatusCode::NotFound.into(), ..Default::default() };
        Ok(DeleteRouteResponse { error: Some(error), ..Default::default() }.encode_to_vec())
    });
    for fake in [status, answer] {
        let mut nlb = Nlb::start().await;
        nlb.add_fake("a", 1, "v1", fake).await;
        let delete = DeleteRouteRequest { instance_id: "a".into(), route_id: "web".into() };
        let answer = nlb.front.delete_route(delete).await.unwrap().into_inner();
        assert!(answer.success, "{answer:?}");
        assert!(nlb.info("a").await.routes.is_empty());
    }
}
