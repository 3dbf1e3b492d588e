//! Malformed calls to the NLB's own ModuleService are refused with the name of the field, and reach no
//! module.

use nlb_proto::*;
use tonic::Code;

use super::fake_module::Fake;
use super::fleet::route;
use super::nlb::Nlb;

const LONG: usize = 5000;

/// A fault, and the field that the refusal must name.
type Case<T> = (fn(&mut T), &'static str);

fn a() -> String {
    "a".to_owned()
}

#[tokio::test]
async fn every_malformed_call_is_refused_by_its_field() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let before = nlb.registry.desired().borrow().revision;
    let mut refusals = Vec::new();
    macro_rules! refused {
        ($($call:ident($request:expr) by $field:expr;)+) => {$(
            let field = $field.to_string();
            let refusal = nlb.front.$call($request).await.map(|_| ());
            refusals.push((format!("{} by {field}", stringify!($call)), refusal, field));
        )+};
    }
    // Every call that names an instance.
    for id in ["a b", "a\0", "a,b", &"x".repeat(129)] {
        let instance_id = || id.to_owned();
        refused! {
            get_status(GetStatusRequest { instance_id: instance_id() }) by "instance_id";
            reload(ReloadRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            shutdown(ShutdownRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            get_routes(GetRoutesRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            update_routes(UpdateRoutesRequest { instance_id: instance_id(), ..Default::default() })
                by "instance_id";
            delete_route(DeleteRouteRequest { instance_id: instance_id(), route_id: "web".into() })
                by "instance_id";
            get_metrics(GetMetricsRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            stream_metrics(StreamMetricsRequest { instance_id: instance_id(), ..Default::default() })
                by "instance_id";
            scale(ScaleRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            set_traffic_weight(SetTrafficWeightRequest { instance_id: instance_id(), ..Default::default() })
                by "instance_id";
            get_active_version(GetActiveVersionRequest { instance_id: instance_id() }) by "instance_id";
            rollback(RollbackRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            promote_version(PromoteVersionRequest {
                instance_id: instance_id(),
                immediate: true,
                ..Default::default()
            }) by "instance_id";
            health_check(HealthCheckRequest { instance_id: instance_id(), ..Default::default() })
                by "instance_id";
            get_stats(GetStatsRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            get_config(GetConfigRequest { instance_id: instance_id(), ..Default::default() }) by "instance_id";
            update_config(UpdateConfigRequest { instance_id: instance_id(), ..Default::default() })
                by "instance_id";
        }
    }
    for seconds in [-1, 3601, i32::MAX, i32::MIN] {
        refused! {
            reload(ReloadRequest { instance_id: a(), timeout_seconds: seconds, ..Default::default() })
                by "timeout_seconds";
            shutdown(ShutdownRequest { instance_id: a(), timeout_seconds: seconds, ..Default::default() })
                by "timeout_seconds";
        }
    }
    for rate in [-1, 101, i32::MIN, i32::MAX] {
        let request =
            PromoteVersionRequest { version: "v1".into(), promotion_rate: rate, ..Default::default() };
        refused! { promote_version(request) by "promotion_rate"; }
    }
    for version in ["v\0", &"v".repeat(129)] {
        let version = || version.to_owned();
        refused! {
            promote_version(PromoteVersionRequest { version: version(), immediate: true, ..Default::default() })
                by "version";
            rollback(RollbackRequest { target_version: version(), ..Default::default() }) by "target_version";
            set_traffic_weight(SetTrafficWeightRequest { version: version(), ..Default::default() })
                by "version";
        }
    }
    refused! {
        shutdown(ShutdownRequest::default()) by "instance_id";
        scale(ScaleRequest::default()) by "instance_id";
        promote_version(PromoteVersionRequest { immediate: true, ..Default::default() }) by "version";
        set_traffic_weight(SetTrafficWeightRequest { instance_id: a(), weight: 10_001, ..Default::default() })
            by "weight";
        can_handle(CanHandleRequest::default()) by "route";
        can_handle(CanHandleRequest {
            route: Some(Route { protocol: 99, ..route("web") }),
            ..Default::default()
        }) by "route.protocol";
        can_handle(CanHandleRequest {
            route: Some(Route { destination_pattern: "example.com".into(), ..route("web") }),
            ..Default::default()
        }) by "route.destination_pattern";
        can_handle(CanHandleRequest {
            route: Some(route("web")),
            context: [("x".to_owned(), "\0".to_owned())].into(),
        }) by "context.x";
        update_routes(UpdateRoutesRequest {
            instance_id: a(),
            routes: vec![route("more"), Route { source_port: 1, ..route("odd") }],
            ..Default::default()
        }) by "routes[1].source_port";
        delete_route(DeleteRouteRequest { instance_id: a(), ..Default::default() }) by "route_id";
        delete_route(DeleteRouteRequest { instance_id: a(), route_id: "w\0".into() }) by "route_id";
        get_routes(GetRoutesRequest {
            query: Some(Query { sort_by: "wieght".into(), ..Default::default() }),
            ..Default::default()
        }) by "query.sort_by";
        get_routes(GetRoutesRequest {
            query: Some(Query {
                pagination: Some(Pagination { page: -1, ..Default::default() }),
                ..Default::default()
            }),
            ..Default::default()
        }) by "query.pagination.page";
        get_instances(GetInstancesRequest { module_type: 99, ..Default::default() }) by "module_type";
        get_instances(GetInstancesRequest { status_filter: -1, ..Default::default() }) by "status_filter";
        get_stats(GetStatsRequest { reset_counters: true, ..Default::default() }) by "reset_counters";
        stream_metrics(StreamMetricsRequest { interval_seconds: -1, ..Default::default() })
            by "interval_seconds";
        stream_metrics(StreamMetricsRequest { metric_names: vec!["\0".into()], ..Default::default() })
            by "metric_names[0]";
        get_metrics(GetMetricsRequest { metric_names: vec!["x".repeat(LONG)], ..Default::default() })
            by "metric_names[0]";
        get_metrics(GetMetricsRequest { metric_names: vec!["x".into(); 1001], ..Default::default() })
            by "metric_names";
        get_metrics(GetMetricsRequest { start_time: time(-1), ..Default::default() }) by "start_time";
        get_metrics(GetMetricsRequest { end_time: time(i64::MAX), ..Default::default() }) by "end_time";
        get_metrics(GetMetricsRequest { start_time: time(2), end_time: time(1), ..Default::default() })
            by "start_time";
        get_config(GetConfigRequest { instance_id: a(), config_type: "x".repeat(LONG) }) by "config_type";
        update_config(UpdateConfigRequest { instance_id: a(), ..Default::default() }) by "config";
    }
    let spoilt: [Case<ConfigUpdate>; 6] = [
        (|config| config.config_id = "x\0".into(), "config_id"),
        (|config| config.config_type = "x".repeat(LONG), "config_type"),
        (|config| config.checksum = "\n".into(), "checksum"),
        (|config| config.checksum = "0".repeat(64), "checksum"),
        (|config| config.updated_at = time(-1), "updated_at"),
        (|config| drop(config.metadata.insert(String::new(), "x".into())), "metadata"),
    ];
    for (spoil, field) in spoilt {
        let mut config = ConfigUpdate { config_type: "cache".into(), ..Default::default() };
        spoil(&mut config);
        let request = UpdateConfigRequest { instance_id: a(), config: Some(config), ..Default::default() };
        refused! { update_config(request) by format!("config.{field}"); }
    }
    let spoilt: [Case<ScalingConfig>; 9] = [
        (|config| config.min_instances = -1, "min_instances"),
        (|config| config.max_instances = -1, "max_instances"),
        (|config| (config.min_instances, config.max_instances) = (3, 2), "min_instances"),
        (|config| config.target_cpu_percent = 101, "target_cpu_percent"),
        (|config| config.target_memory_percent = -1, "target_memory_percent"),
        (|config| config.target_connections = i32::MIN, "target_connections"),
        (|config| config.scale_up_threshold = -1, "scale_up_threshold"),
        (|config| config.scale_down_threshold = -1, "scale_down_threshold"),
        (|config| config.cooldown_seconds = -1, "cooldown_seconds"),
    ];
    for (spoil, field) in spoilt {
        let mut config = ScalingConfig::default();
        spoil(&mut config);
        let request = ScaleRequest { instance_id: a(), config: Some(config), ..Default::default() };
        refused! { scale(request) by format!("config.{field}"); }
    }

    for (call, refusal, field) in refusals {
        let status = refusal.expect_err(&call);
        assert_eq!(status.code(), Code::InvalidArgument, "{call}: {status}");
        let named = status.message().strip_prefix(&field);
        assert!(named.is_some_and(|rest| rest.starts_with([':', ',', ' '])), "{call}: {}", status.message());
    }
    assert!(module.calls().is_empty(), "{:?}", module.calls());
    assert_eq!(nlb.registry.desired().borrow().revision, before);
}

fn time(seconds: i64) -> Option<prost_types::Timestamp> {
    Some(prost_types::Timestamp { seconds, nanos: 0 })
}
