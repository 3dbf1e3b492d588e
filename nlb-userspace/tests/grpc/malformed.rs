//! Malformed registrations are refused with the name of the field, and change nothing.

use nlb_proto::*;
use tonic::Code;

use super::fleet::{registration, route, with_metadata};
use super::nlb::{Nlb, settings};

/// A fault in an otherwise valid registration, and the field that the refusal must name.
type Case = (fn(&mut ModuleInstance, &mut Route), &'static str);

fn metadata(instance: &mut ModuleInstance, key: &str, value: &str) {
    *instance = with_metadata(std::mem::take(instance), &[(key, value)]);
}

fn quic(instance: &mut ModuleInstance, config: &str) {
    metadata(instance, "quic_server_id", "0a");
    metadata(instance, "quic_config_id", config);
}

fn nonce(instance: &mut ModuleInstance, nonce: &str, attempt: &str) {
    metadata(instance, "registration_nonce", nonce);
    metadata(instance, "registration_attempt", attempt);
}

fn without_port(route: &mut Route, protocol: Protocol) {
    route.set_protocol(protocol);
    route.destination_port = 0;
}

fn route_metadata(route: &mut Route, key: &str, value: &str) {
    route.metadata.insert(key.into(), value.into());
}

const CASES: &[Case] = &[
    (|i, _| i.instance_id.clear(), "instance.instance_id"),
    (|i, _| i.instance_id = "a\0b".into(), "instance.instance_id"),
    (|i, _| i.instance_id = "a b".into(), "instance.instance_id"),
    (|i, _| i.instance_id = "x".repeat(129), "instance.instance_id"),
    (|i, _| i.module_type = 0, "instance.module_type"),
    (|i, _| i.module_type = 99, "instance.module_type"),
    (|i, _| i.module_type = -1, "instance.module_type"),
    (|i, _| i.address.clear(), "instance.address"),
    (|i, _| i.address = "2001:db8::1".into(), "instance.address"),
    (|i, _| i.address = "10.0.0.1:0".into(), "instance.address"),
    (|i, _| i.address = "10.0.0.1:65536".into(), "instance.address"),
    (|i, _| i.address = "http://10.0.0.1:80".into(), "instance.address"),
    (|i, _| i.address = "10.0.0.256:80".into(), "instance.address"),
    (|i, _| i.current_connections = -1, "instance.current_connections"),
    (|i, _| i.max_connections = -1, "instance.max_connections"),
    (|i, _| i.version = "v\n1".into(), "instance.version"),
    (|i, _| i.version = "v".repeat(129), "instance.version"),
    (|i, _| i.traffic_weight = -1, "instance.traffic_weight"),
    (|i, _| i.traffic_weight = 10_001, "instance.traffic_weight"),
    (|i, _| i.started_at = Some(prost_types::Timestamp { seconds: -1, nanos: 0 }), "instance.started_at"),
    (|i, _| metadata(i, "zone", "a\0b"), "instance.metadata.zone"),
    (|i, _| metadata(i, "zone", &"x".repeat(4097)), "instance.metadata.zone"),
    (|i, _| metadata(i, "", "x"), "instance.metadata"),
    (|i, _| metadata(i, "forward_mode", "gre"), "instance.metadata.forward_mode"),
    (|i, _| metadata(i, "forward_mode", "NAT"), "instance.metadata.forward_mode"),
    (|i, _| metadata(i, "snat", "sometimes"), "instance.metadata.snat"),
    (|i, _| metadata(i, "reply_path", "moon"), "instance.metadata.reply_path"),
    (|i, _| metadata(i, "listen_port", "0"), "instance.metadata.listen_port"),
    (|i, _| metadata(i, "listen_port", "65536"), "instance.metadata.listen_port"),
    (|i, _| metadata(i, "listen_port", "http"), "instance.metadata.listen_port"),
    (|i, _| metadata(i, "data_address", "10.0.0.1,10.0.0.2"), "instance.metadata.data_address"),
    (|i, _| metadata(i, "data_address", "10.0.0.1:80"), "instance.metadata.data_address"),
    (|i, _| metadata(i, "data_address", ""), "instance.metadata.data_address"),
    (|i, _| metadata(i, "quic_server_id", ""), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "a"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "0x0a"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "+a"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "0g"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "0\u{661}"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_server_id", "010203040506070809"), "instance.metadata.quic_server_id"),
    (|i, _| metadata(i, "quic_config_id", "1"), "instance.metadata.quic_config_id"),
    (|i, _| quic(i, "7"), "instance.metadata.quic_config_id"),
    (|i, _| quic(i, "-1"), "instance.metadata.quic_config_id"),
    (|i, _| quic(i, ""), "instance.metadata.quic_config_id"),
    (|i, _| nonce(i, "", "1"), "instance.metadata.registration_nonce"),
    (|i, _| nonce(i, "0123456789abcde", "1"), "instance.metadata.registration_nonce"),
    (|i, _| nonce(i, &"x".repeat(65), "1"), "instance.metadata.registration_nonce"),
    (|i, _| nonce(i, "0123456789 abcdef", "1"), "instance.metadata.registration_nonce"),
    (|i, _| nonce(i, "0123456789abcde\u{661}", "1"), "instance.metadata.registration_nonce"),
    (|i, _| nonce(i, "0123456789abcdef", ""), "instance.metadata.registration_attempt"),
    (|i, _| nonce(i, "0123456789abcdef", "-1"), "instance.metadata.registration_attempt"),
    (|i, _| nonce(i, "0123456789abcdef", "+1"), "instance.metadata.registration_attempt"),
    (|i, _| nonce(i, "0123456789abcdef", "1.5"), "instance.metadata.registration_attempt"),
    (|i, _| nonce(i, "0123456789abcdef", "18446744073709551616"), "instance.metadata.registration_attempt"),
    (|i, _| metadata(i, "registration_attempt", "1"), "instance.metadata.registration_attempt"),
    (
        |i, _| {
            metadata(i, "forward_mode", "dsr-l2");
            metadata(i, "snat", "never");
        },
        "instance.metadata.snat",
    ),
    (|_, r| r.route_id.clear(), "initial_routes[0].route_id"),
    (|_, r| r.route_id = "a,b".into(), "initial_routes[0].route_id"),
    (|_, r| r.protocol = 0, "initial_routes[0].protocol"),
    (|_, r| without_port(r, Protocol::Srt), "initial_routes[0].destination_port"),
    (|_, r| without_port(r, Protocol::Webrtc), "initial_routes[0].destination_port"),
    (|_, r| r.source_pattern = "example.com".into(), "initial_routes[0].source_pattern"),
    (|_, r| r.source_pattern = "10.0.0.1/8".into(), "initial_routes[0].source_pattern"),
    (|_, r| r.source_pattern = "10.0.0.0/33".into(), "initial_routes[0].source_pattern"),
    (|_, r| r.source_pattern = "2001:db8::/32".into(), "initial_routes[0].source_pattern"),
    (|_, r| r.destination_pattern = "*.example.com".into(), "initial_routes[0].destination_pattern"),
    (|_, r| r.destination_pattern = "192.0.2.9".into(), "initial_routes[0].destination_pattern"),
    (|_, r| r.destination_pattern = "198.51.100.0/24".into(), "initial_routes[0].destination_pattern"),
    (|_, r| r.destination_pattern = "192.0.2.1\0".into(), "initial_routes[0].destination_pattern"),
    (|_, r| r.source_port = 1234, "initial_routes[0].source_port"),
    (|_, r| r.destination_port = -1, "initial_routes[0].destination_port"),
    (|_, r| r.destination_port = 65_536, "initial_routes[0].destination_port"),
    (|_, r| r.path_pattern = "/a\0".into(), "initial_routes[0].path_pattern"),
    (|_, r| drop(r.headers.insert("host\r\n".into(), "x".into())), "initial_routes[0].headers"),
    (|_, r| route_metadata(r, "listen_port", "-1"), "initial_routes[0].metadata.listen_port"),
    (|_, r| route_metadata(r, "udp_rebalance", "yes"), "initial_routes[0].metadata.udp_rebalance"),
    (|_, r| route_metadata(r, "udp_rebalance", "true"), "initial_routes[0].metadata.udp_rebalance"),
    (|_, r| route_metadata(r, "forward_mode", "nat"), "initial_routes[0].metadata.forward_mode"),
    (|_, r| route_metadata(r, "quic_server_id", "0a"), "initial_routes[0].metadata.quic_server_id"),
    (|_, r| route_metadata(r, "quic_config_id", "0"), "initial_routes[0].metadata.quic_config_id"),
    (|_, r| route_metadata(r, "target_instances", "b"), "initial_routes[0].metadata.target_instances"),
    (|_, r| route_metadata(r, "target_module_type", "ALB"), "initial_routes[0].metadata.target_module_type"),
];

#[tokio::test]
async fn every_malformed_registration_is_refused_by_its_field() {
    let mut nlb = Nlb::start().await;
    for (case, (spoil, field)) in CASES.iter().enumerate() {
        let mut request = registration("alb-1");
        let mut instance = request.instance.take().unwrap();
        spoil(&mut instance, &mut request.initial_routes[0]);
        request.instance = Some(instance);
        let status = nlb.modules.register_module(request).await.expect_err(&format!("case {case}: {field}"));
        assert_eq!(status.code(), Code::InvalidArgument, "case {case}: {status}");
        assert!(status.message().starts_with(field), "case {case}: {field} in {}", status.message());
    }
    assert_eq!(nlb.registry.desired().borrow().revision, 0, "nothing was changed");
    nlb.add(registration("alb-1")).await;
}

#[tokio::test]
async fn a_missing_instance_and_a_route_listed_twice_are_refused() {
    let mut nlb = Nlb::start().await;
    let status = nlb.modules.register_module(RegisterModuleRequest::default()).await.unwrap_err();
    assert!(status.message().starts_with("instance: is missing"), "{}", status.message());
    let mut request = registration("alb-1");
    request.initial_routes.push(route("web"));
    let status = nlb.modules.register_module(request).await.unwrap_err();
    assert!(status.message().starts_with("initial_routes[1].route_id"), "{}", status.message());
}

#[tokio::test]
async fn every_fault_of_an_update_is_reported_at_once() {
    let mut nlb = Nlb::start().await;
    let routes = vec![
        Route { source_port: 1, ..route("a") },
        route("b"),
        Route { protocol: 0, ..route("c") },
        Route { metadata: [("target_module_type".into(), "CDN".into())].into(), ..route("d") },
    ];
    let request = UpdateRoutingRequest { routes, ..Default::default() };
    let status = nlb.modules.update_routing(request.clone()).await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    let dry = UpdateRoutingRequest { validate_only: true, ..request };
    let answer = nlb.modules.update_routing(dry).await.unwrap().into_inner();
    assert_eq!(answer.error.as_ref().unwrap().code(), StatusCode::InvalidArgument);
    assert!(!answer.success);
    let fields: Vec<_> =
        answer.validation_errors.iter().map(|error| error.split(": ").next().unwrap()).collect();
    assert_eq!(
        fields,
        ["routes[0].source_port", "routes[2].protocol", "routes[3].metadata.target_module_type"]
    );
    for error in answer.validation_errors {
        assert!(status.message().contains(&error), "{}", status.message());
    }
}

#[tokio::test]
async fn wildcards_need_a_configured_vip() {
    let mut nlb = Nlb::with(nlb::model::settings::Settings { vips: Default::default(), ..settings() }).await;
    for pattern in ["", "*", "192.0.2.0/24"] {
        let mut request = registration("alb-1");
        request.initial_routes[0].destination_pattern = pattern.into();
        let status = nlb.modules.register_module(request).await.unwrap_err();
        assert!(status.message().contains("--vip"), "{pattern:?}: {}", status.message());
    }
    nlb.add(registration("alb-1")).await;
}

#[tokio::test]
async fn the_other_calls_check_their_fields_too() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let mut refusals = Vec::new();

    let beat =
        HeartbeatRequest { instance_id: "alb-1".into(), registration_id: id.clone(), ..Default::default() };
    let negative = ModuleStats { total_requests: -1, ..Default::default() };
    let infinite = ModuleStats { cpu_usage_percent: f64::INFINITY, ..Default::default() };
    let foreign = ModuleStats { instance_id: "alb-2".into(), ..Default::default() };
    for (stats, field) in [
        (negative, "current_stats.total_requests"),
        (infinite, "current_stats.cpu_usage_percent"),
        (foreign, "current_stats.instance_id"),
    ] {
        let beat = HeartbeatRequest { current_stats: Some(stats), ..beat.clone() };
        refusals.push((nlb.modules.heartbeat(beat).await.unwrap_err(), field));
    }

    for drain_timeout_seconds in [-1, 3601] {
        let request = UnregisterModuleRequest {
            instance_id: "alb-1".into(),
            registration_id: id.clone(),
            graceful: true,
            drain_timeout_seconds,
        };
        refusals.push((nlb.modules.unregister_module(request).await.unwrap_err(), "drain_timeout_seconds"));
    }
    let request = ListModulesRequest { module_type_filter: 99, ..Default::default() };
    refusals.push((nlb.modules.list_modules(request).await.unwrap_err(), "module_type_filter"));
    let request = GetRoutingTableRequest { destination_filter: "example.com".into(), ..Default::default() };
    refusals.push((nlb.modules.get_routing_table(request).await.unwrap_err(), "destination_filter"));
    let request = SetTrafficWeightRequest { instance_id: "alb-1".into(), weight: -1, ..Default::default() };
    refusals.push((nlb.front.set_traffic_weight(request).await.unwrap_err(), "weight"));
    refusals.push((
        nlb.front.set_traffic_weight(SetTrafficWeightRequest::default()).await.unwrap_err(),
        "instance_id",
    ));
    let request = DrainModuleRequest { instance_id: "alb-1".into(), timeout_seconds: -1 };
    refusals.push((nlb.operator.drain_module(request).await.unwrap_err(), "timeout_seconds"));

    for (status, field) in refusals {
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(status.message().starts_with(field), "{field}: {}", status.message());
    }
    assert_eq!(nlb.listed("alb-1").await.unwrap().health_status(), HealthStatus::Healthy);
}
