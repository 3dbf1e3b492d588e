//! The answers of an instance to ModuleService.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use nlb_module::proto::module_service_client::ModuleServiceClient;
use nlb_module::proto::*;
use nlb_module::{Control, State};
use tokio::time::timeout;
use tonic::Code;
use tonic::transport::Channel;

use super::fake_nlb::FakeNlb;
use super::mirror::{SOON, active_weight, control, exchange, passed_on, route, run};

#[tokio::test]
async fn answers_only_for_itself() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let status = module.get_status(GetStatusRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(status.instance.expect("an instance").instance_id, "mirror-1");
    assert_eq!(status.status, i32::from(HealthStatus::Healthy));
    let other = GetStatusRequest { instance_id: "other".into() };
    assert_eq!(
        module.get_status(other).await.expect_err("the request is for another instance").code(),
        Code::NotFound
    );

    let asked = CanHandleRequest { route: Some(route("any", 80)), ..CanHandleRequest::default() };
    assert!(module.can_handle(asked).await.expect("an answer").into_inner().can_handle);
    let asked = CanHandleRequest { route: Some(route("any", 81)), ..CanHandleRequest::default() };
    assert!(!module.can_handle(asked.clone()).await.expect("an answer").into_inner().can_handle);
    let context = [("owner".to_owned(), "operator".to_owned())].into();
    let asked = CanHandleRequest { context, ..asked };
    assert!(module.can_handle(asked).await.expect("an answer").into_inner().can_handle);

    // Without routes of its own, it serves what a configuration assigns to it.
    let replace_all = UpdateRoutesRequest { replace_all: true, ..UpdateRoutesRequest::default() };
    assert!(module.update_routes(passed_on(replace_all)).await.expect("an answer").into_inner().success);
    for (owner, able) in [("module", true), ("learned", false)] {
        let context = [("owner".to_owned(), owner.to_owned())].into();
        let asked = CanHandleRequest { route: Some(route("any", 81)), context };
        let answer = module.can_handle(asked).await.expect("an answer").into_inner();
        assert_eq!(answer.can_handle, able, "{owner}");
    }

    let refused = module.scale(ScaleRequest::default()).await.expect_err("a single process does not scale");
    assert_eq!(refused.code(), Code::Unimplemented);
    assert!(refused.message().contains("one process"), "{}", refused.message());
}

#[tokio::test]
async fn changes_routes_and_weight_only_as_the_nlb_does() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let add = UpdateRoutesRequest { routes: vec![route("more", 81)], ..UpdateRoutesRequest::default() };
    let added = module.update_routes(add).await.expect("an answer").into_inner();
    assert!(added.success, "{added:?}");
    let told = nlb.see(|seen| seen.routings[0].clone());
    assert_eq!(told.routes, [route("more", 81), route("web", 80)]);
    assert!(told.replace_all);
    assert_eq!(
        (told.source_instance_id.as_str(), told.registration_id.as_str()),
        ("mirror-1", "registration-1")
    );

    nlb.see(|seen| seen.refuses = Some((StatusCode::InvalidArgument, "no")));
    let delete = DeleteRouteRequest { route_id: "web".into(), ..DeleteRouteRequest::default() };
    let refused = module.delete_route(delete).await.expect("an answer").into_inner();
    assert_eq!((refused.success, refused.error.expect("why").message.as_str()), (false, "no"));
    let weight = SetTrafficWeightRequest { weight: 0, ..SetTrafficWeightRequest::default() };
    assert!(!module.set_traffic_weight(weight.clone()).await.expect("an answer").into_inner().success);
    let routes = module.get_routes(GetRoutesRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(routes.routes, [route("more", 81), route("web", 80)]);
    assert_eq!(active_weight(&mut module).await, 100);

    nlb.see(|seen| seen.refuses = None);
    assert!(module.set_traffic_weight(weight.clone()).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 0);
    let told = nlb.see(|seen| seen.weights.len());
    assert!(module.set_traffic_weight(weight).await.expect("an answer").into_inner().success);
    assert_eq!(nlb.see(|seen| seen.weights.len()), told, "the NLB has the weight already");
}

#[tokio::test]
async fn does_not_call_back_about_what_the_nlb_passes_on() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let weight = SetTrafficWeightRequest { instance_id: "mirror-1".into(), weight: 7, ..Default::default() };
    assert!(module.set_traffic_weight(passed_on(weight)).await.expect("an answer").into_inner().success);
    assert_eq!(active_weight(&mut module).await, 7);

    let add = UpdateRoutesRequest { routes: vec![route("more", 81)], ..Default::default() };
    let added = module.update_routes(passed_on(add)).await.expect("an answer").into_inner();
    assert_eq!((added.success, added.routes_updated), (true, 1), "{added:?}");
    let delete = DeleteRouteRequest { route_id: "web".into(), ..Default::default() };
    assert!(module.delete_route(passed_on(delete)).await.expect("an answer").into_inner().success);
    let routes = module.get_routes(GetRoutesRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(routes.routes, [route("more", 81)]);

    assert_eq!(nlb.see(|seen| (seen.weights.len(), seen.routings.len())), (0, 0), "calls back");
}

#[tokio::test]
async fn takes_the_routes_of_the_nlb_when_a_heartbeat_asks_for_a_reload() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    nlb.see(|seen| {
        seen.routes = vec![route("more", 81), route("web", 8080)];
        seen.reload = true;
    });
    let reloaded = timeout(SOON, async {
        loop {
            let routes =
                module.get_routes(GetRoutesRequest::default()).await.expect("an answer").into_inner();
            if routes.routes == [route("more", 81), route("web", 8080)] {
                break;
            }
        }
    });
    reloaded.await.expect("the routes are taken");
    assert!(nlb.see(|seen| seen.routings.is_empty()), "they are not sent back");
}

/// Depends on a database that is away.
struct Dependent;

#[tonic::async_trait]
impl Control for Dependent {
    async fn deep_check(&self, _: &State) -> Result<HashMap<String, String>, String> {
        Err("the database does not answer".to_owned())
    }
}

#[tokio::test]
async fn a_deep_check_asks_the_modules_author() {
    let deep = HealthCheckRequest { deep_check: true, ..Default::default() };
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| instance.control(Dependent));
    let mut module = control(&nlb).await;
    let shallow = module.health_check(HealthCheckRequest::default()).await.expect("an answer").into_inner();
    assert_eq!(shallow.status(), HealthStatus::Healthy);
    let answer = module.health_check(deep.clone()).await.expect("an answer").into_inner();
    assert_eq!(
        (answer.status(), answer.message.as_str()),
        (HealthStatus::Unhealthy, "the database does not answer")
    );
    drop(running);

    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let answer = module.health_check(deep).await.expect("an answer").into_inner();
    assert_eq!(answer.status(), HealthStatus::Healthy, "nothing to check");
}

#[tokio::test]
async fn latencies_are_measured_from_the_request_to_the_answer() {
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let stats = async |module: &mut ModuleServiceClient<Channel>| {
        let answer = module.get_stats(GetStatsRequest::default()).await.expect("an answer").into_inner();
        answer.stats.expect("figures")
    };
    assert_eq!(stats(&mut module).await.avg_latency_ms, 0.0);
    let begun = Instant::now();
    let mut stream = running.connect().await;
    exchange(&mut stream, b"first").await;
    // The module answers at once: the time in which the client is silent does not count.
    let silence = Duration::from_secs(1);
    tokio::time::sleep(silence).await;
    exchange(&mut stream, b"second").await;
    let served = begun.elapsed() - silence;
    let stats = stats(&mut module).await;
    assert!(stats.avg_latency_ms > 0.0, "{stats:?}");
    assert!(stats.avg_latency_ms <= served.as_secs_f64() * 1000.0, "{stats:?} in {served:?}");
    assert!(stats.p50_latency_ms > 0.0 && stats.p50_latency_ms <= stats.p95_latency_ms, "{stats:?}");
    assert!(stats.p95_latency_ms <= stats.p99_latency_ms, "{stats:?}");
    let reported = nlb.see(|seen| seen.heartbeats.len());
    nlb.until("a later heartbeat", |seen| {
        let mut later = seen.heartbeats.iter().skip(reported).filter_map(|beat| beat.current_stats.as_ref());
        later.next_back().is_some_and(|stats| stats.p99_latency_ms > 0.0)
    })
    .await;
}

#[tokio::test]
async fn has_no_configuration_and_reports_it() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    assert!(module.reload(ReloadRequest::default()).await.expect("an answer").into_inner().success);
    let negative = ReloadRequest { timeout_seconds: -1, ..Default::default() };
    assert_eq!(module.reload(negative).await.expect_err("refused").code(), Code::InvalidArgument);
    let configs = module.get_config(GetConfigRequest::default()).await.expect("an answer").into_inner();
    assert!(configs.configs.is_empty());
    let config = Some(ConfigUpdate { config_type: "cache".into(), ..Default::default() });
    let update = UpdateConfigRequest { config, ..Default::default() };
    let answer = module.update_config(update).await.expect("an answer").into_inner();
    assert_eq!((answer.success, answer.error.expect("why").code()), (false, StatusCode::NotFound));
    let missing = module.update_config(UpdateConfigRequest::default()).await.expect_err("refused");
    assert_eq!(missing.code(), Code::InvalidArgument);
}

#[tokio::test]
async fn streams_the_metrics_that_are_asked_for() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    let mut module = control(&nlb).await;
    let request = StreamMetricsRequest {
        metric_names: vec!["module_memory_usage_mebibytes".into()],
        ..StreamMetricsRequest::default()
    };
    let mut stream = module.stream_metrics(request).await.expect("a stream").into_inner();
    for _ in 0..2 {
        let sample =
            timeout(SOON, stream.message()).await.expect("in time").expect("no error").expect("a sample");
        let metrics = sample.metrics.expect("metrics").metrics;
        assert_eq!(metrics.len(), 1);
        assert!(metrics[0].value > 0.0);
    }
    let negative = StreamMetricsRequest { interval_seconds: -1, ..StreamMetricsRequest::default() };
    assert_eq!(module.stream_metrics(negative).await.expect_err("refused").code(), Code::InvalidArgument);
}
