//! Registering, sending heartbeats and being listed.

use nlb::model::settings::{Settings, TableSizes};
use nlb_proto::*;
use tonic::Code;

use super::fake_module::Fake;
use super::fleet::{instance, registration, registration_at, route, with_metadata, without_control};
use super::nlb::{Nlb, settings};

#[tokio::test]
async fn success_means_that_the_maps_hold_it() {
    let mut nlb = Nlb::start().await;
    assert!(!nlb.maps.dump().contains("10.0.0.1"));
    let answer = nlb.modules.register_module(registration("alb-1")).await.unwrap().into_inner();
    assert!(answer.success && answer.error.is_none(), "{answer:?}");
    assert_eq!(answer.registration_id.len(), 32);
    assert!(answer.registered_at.is_some());
    let dump = nlb.maps.dump();
    assert!(dump.contains("192.0.2.1") && dump.contains("10.0.0.1"), "{dump}");
}

#[tokio::test]
async fn maps_that_refuse_make_no_success() {
    let mut nlb = Nlb::start().await;
    nlb.maps.fail_after(1, 1000);
    let answer = nlb.modules.register_module(registration("alb-1")).await.unwrap().into_inner();
    assert!(!answer.success && answer.registration_id.is_empty());
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::Error);
    assert!(error.message.contains("injected failure"), "{}", error.message);

    let health = nlb.modules.check_health(CheckHealthRequest::default()).await.unwrap().into_inner();
    assert_eq!(health.status(), HealthStatus::Degraded);
    assert!(health.checks["apply_error"].contains("injected failure"));
}

#[tokio::test]
async fn the_answer_names_the_ports_that_a_route_takes_from_this_host() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    let every_port = |route_id: &str| Route {
        route_id: route_id.to_owned(),
        protocol: Protocol::Tcp.into(),
        destination_pattern: "2001:db8::1".to_owned(),
        ..Route::default()
    };
    request.instance = Some(with_metadata(instance("alb-1"), &[("data_address", "10.0.0.1, fd00::1")]));
    request.initial_routes = vec![every_port("all")];
    let answer = nlb.modules.register_module(request).await.unwrap().into_inner();
    assert!(answer.success, "{answer:?}");
    let taken = "the host keeps its own connections and the ports 22 (--protected-ports), and the route takes the \
                 ports 9100/tcp";
    assert!(answer.message.contains(taken), "{}", answer.message);

    let routes = vec![every_port("operators")];
    let update = UpdateRoutingRequest { routes: routes.clone(), ..Default::default() };
    let answer = nlb.modules.update_routing(update).await.unwrap().into_inner();
    assert!(answer.message.contains(taken), "{}", answer.message);
    let update = UpdateRoutesRequest { routes, ..Default::default() };
    let answer = nlb.front.update_routes(update).await.unwrap().into_inner();
    assert!(answer.message.contains(taken), "{}", answer.message);
}

#[tokio::test]
async fn registered_values_are_shown() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    let metadata = [("data_address", "10.0.0.2, fd00::1"), ("zone", "eu-1"), ("reply_path", "nlb")];
    request.instance =
        Some(ModuleInstance { max_connections: 500, ..with_metadata(instance("alb-1"), &metadata) });
    request.initial_routes[0].path_pattern = "/api".into();
    request.capabilities.insert("tls".into(), "1.3".into());
    let answer = nlb.modules.register_module(request).await.unwrap().into_inner();
    assert!(answer.message.contains("path_pattern"), "{}", answer.message);

    let ask = GetModuleInfoRequest { instance_id: "alb-1".into() };
    let info = nlb.modules.get_module_info(ask).await.unwrap().into_inner();
    let shown = info.instance.unwrap();
    assert_eq!((shown.address.as_str(), shown.version.as_str()), ("10.0.0.1:50051", "v1"));
    assert_eq!((shown.traffic_weight, shown.max_connections), (100, 500));
    assert_eq!(shown.health_status(), HealthStatus::Healthy);
    assert_eq!(shown.metadata["zone"], "eu-1");
    assert_eq!(info.routes[0].path_pattern, "/api");
    assert_eq!(info.details["data_address"], "10.0.0.2,fd00::1");
    assert_eq!(info.details["snat"], "on-link");
    assert_eq!(info.details["capability.tls"], "1.3");
    for source in ["module", "lease", "network", "resets", "operator"] {
        assert_eq!(info.details[&format!("health.{source}")], "HEALTHY");
    }
    assert!(!info.details.contains_key("health.check"), "the module has no check");

    let unknown = nlb.modules.get_module_info(GetModuleInfoRequest { instance_id: "ghost".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn names_are_resolved() {
    let mut nlb = Nlb::start().await;
    let named = |address: &str| RegisterModuleRequest {
        instance: Some(ModuleInstance { address: address.into(), ..instance("alb-1") }),
        ..registration("alb-1")
    };
    nlb.add(named("alb-001:50051")).await;
    let ask = GetModuleInfoRequest { instance_id: "alb-1".into() };
    let info = nlb.modules.get_module_info(ask).await.unwrap().into_inner();
    assert_eq!(info.details["data_address"], "10.0.0.1,fd00::1");

    let answer = nlb.modules.register_module(named("127.0.0.1:50051")).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::InvalidArgument);
    assert!(error.message.contains("data_address"), "{}", error.message);

    let answer = nlb.modules.register_module(named("alb-999:50051")).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert!(!answer.success && error.code() == StatusCode::Unavailable);
    assert!(error.message.contains("alb-999 does not resolve"), "{}", error.message);
}

#[tokio::test]
async fn a_route_that_the_module_cannot_serve_is_refused_or_reported() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    request.initial_routes[0].destination_pattern = "2001:db8::1".into();
    let answer = nlb.modules.register_module(request).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::InvalidArgument);
    assert!(error.message.contains("IPv6"), "{}", error.message);
    assert!(nlb.listed("alb-1").await.is_none(), "a refused call changes nothing");
}

#[tokio::test]
async fn connection_ids_have_to_tell_modules_apart() {
    let mut nlb = Nlb::start().await;
    let named = |id: &str, server: &str, config: &str| {
        let metadata = [("quic_server_id", server), ("quic_config_id", config)];
        RegisterModuleRequest { instance: Some(with_metadata(instance(id), &metadata)), ..registration(id) }
    };
    nlb.add(named("alb-1", "0a0b", "0")).await;
    for (server, reason) in [("0A0B", "\"alb-1\""), ("0a", "2"), ("0a0b0c", "2")] {
        let answer = nlb.modules.register_module(named("alb-2", server, "0")).await.unwrap().into_inner();
        let error = answer.error.unwrap();
        assert_eq!(error.code(), StatusCode::InvalidArgument, "{server}");
        let module = error.message.contains("quic_server_id") && error.message.contains(reason);
        assert!(module, "{server}: {}", error.message);
        assert!(nlb.listed("alb-2").await.is_none(), "a refused call changes nothing");
    }
    nlb.add(named("alb-2", "0a0c", "0")).await;
    nlb.add(named("alb-3", "0a", "1")).await;
    nlb.add(named("alb-1", "0a0b", "0")).await;
    nlb.add(named("alb-1", "0a0d", "0")).await;
    nlb.add(named("alb-4", "0a0b", "0")).await;
}

/// A module that answers GetStatus as this instance.
macro_rules! answers_as {
    ($id:literal) => {
        Fake::Answers(|call| {
            let instance = Some(ModuleInstance { instance_id: $id.to_owned(), ..Default::default() });
            let status = GetStatusResponse { instance, ..Default::default() };
            Ok(if call == "GetStatus" { prost::Message::encode_to_vec(&status) } else { vec![0x08, 0x01] })
        })
    };
}

/// Two restarted containers may get each other's addresses.
#[tokio::test]
async fn an_id_is_given_away_if_another_instance_answers_at_its_address() {
    let mut nlb = Nlb::start().await;
    let _other = nlb.add_fake("alb-1", 1, "v1", answers_as!("alb-2")).await;
    let _itself = nlb.add_fake("alb-3", 3, "v1", answers_as!("alb-3")).await;
    nlb.add(registration_at("alb-1", 4, "v1")).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().address, "10.0.0.4:50051");
    let answer = nlb.modules.register_module(registration_at("alb-3", 5, "v1")).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::AlreadyExists, "it is alive where it was");
}

#[tokio::test]
async fn an_instance_whose_address_another_proves_gets_no_new_flows() {
    let mut nlb = Nlb::start().await;
    let _module = nlb.add_fake("alb-1", 1, "v1", answers_as!("alb-2")).await;
    let lost = nlb.listed("alb-1").await.unwrap();
    assert_eq!(lost.health_status(), HealthStatus::Healthy);
    let at_its_address = |id: &str| {
        let mut request = registration_at(id, 2, "v1");
        let instance = request.instance.take().expect("a registration names an instance");
        let mut instance = with_metadata(instance, &[("data_address", "10.0.0.2")]);
        instance.address = lost.address.clone();
        RegisterModuleRequest { instance: Some(instance), ..request }
    };
    nlb.add(at_its_address("alb-9")).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().health_status(), HealthStatus::Healthy, "without proof");
    nlb.add(at_its_address("alb-2")).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().health_status(), HealthStatus::Unhealthy);
    assert_eq!(nlb.listed("alb-2").await.unwrap().health_status(), HealthStatus::Healthy);
    nlb.add(registration_at("alb-1", 3, "v1")).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().health_status(), HealthStatus::Healthy);
}

#[tokio::test]
async fn an_id_in_use_is_given_away_only_for_a_reason() {
    let mut nlb = Nlb::start().await;
    // A registered module whose address accepts connections. Its traffic does not go to loopback.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let lives = |port: u16| {
        let instance = with_metadata(instance("alb-1"), &[("data_address", "10.0.0.1")]);
        let instance = ModuleInstance { address: format!("127.0.0.1:{port}"), ..instance };
        RegisterModuleRequest { instance: Some(instance), ..registration("alb-1") }
    };
    let port = listener.local_addr().unwrap().port();
    let registration_id = nlb.add(lives(port)).await;

    let answer = nlb.modules.register_module(registration_at("alb-1", 2, "v1")).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::AlreadyExists);

    let mut proven = registration_at("alb-1", 2, "v1");
    let proof = [("registration_id", registration_id.as_str())];
    proven.instance = proven.instance.map(|instance| with_metadata(instance, &proof));
    nlb.add(proven).await;
    let shown = nlb.listed("alb-1").await.unwrap();
    assert_eq!(shown.address, "10.0.0.2:50051");
    assert!(!shown.metadata.contains_key("registration_id"), "the secret is not shown");

    nlb.registry.remove("alb-1", nlb.registry.snapshot().record("alb-1").unwrap().epoch);
    nlb.add(lives(port)).await;
    nlb.add(lives(9)).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().address, "127.0.0.1:9", "another port of the same host");
    let registration_id = nlb.add(lives(port)).await;
    let elsewhere = beside(registration_at("alb-1", 2, "v1"), "registration-id", "guess");
    let answer = nlb.modules.register_module(elsewhere).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::AlreadyExists);
    let elsewhere = beside(registration_at("alb-1", 2, "v1"), "registration-id", &registration_id);
    assert!(nlb.modules.register_module(elsewhere).await.unwrap().into_inner().success);

    nlb.registry.remove("alb-1", nlb.registry.snapshot().record("alb-1").unwrap().epoch);
    nlb.add(lives(port)).await;
    drop(listener);
    nlb.add(registration_at("alb-1", 3, "v1")).await;
    assert_eq!(nlb.listed("alb-1").await.unwrap().address, "10.0.0.3:50051");
}

/// A call to register of the process with a nonce, at 10.0.0.`host`.
fn call(attempt: &str, host: u8) -> RegisterModuleRequest {
    let secrets = [("registration_nonce", "0123456789abcdef0123"), ("registration_attempt", attempt)];
    let mut request = registration_at("alb-1", host, "v1");
    request.instance = request.instance.map(|instance| with_metadata(instance, &secrets));
    request
}

#[tokio::test]
async fn a_repeated_call_goes_on_with_the_same_registration_in_either_order() {
    for attempts in [["1", "2"], ["2", "1"]] {
        let mut nlb = Nlb::start().await;
        let mut ids = Vec::new();
        for attempt in attempts {
            // The calls differ: the second has another address, where another process would need the
            // registration_id.
            let host = attempt.parse().expect("a number");
            ids.push(nlb.add(call(attempt, host)).await);
        }
        assert_eq!(ids[0], ids[1]);
        nlb.modules.heartbeat(beat("alb-1", &ids[0])).await.unwrap();
        let shown = nlb.listed("alb-1").await.unwrap();
        assert_eq!(shown.address, "10.0.0.2:50051", "the values of the last call");
        assert!(shown.metadata.keys().all(|key| !key.starts_with("registration")), "{:?}", shown.metadata);
        let ask = GetModuleInfoRequest { instance_id: "alb-1".into() };
        let info = nlb.modules.get_module_info(ask).await.unwrap().into_inner();
        assert_eq!(info.details["data_address"], "10.0.0.2");
        assert!(!format!("{info:?}").contains("0123456789abcdef0123"), "{info:?}");
        assert!(nlb.maps.dump().contains("10.0.0.2"), "{}", nlb.maps.dump());
    }
}

#[tokio::test]
async fn the_answer_shows_which_call_counted() {
    let mut nlb = Nlb::start().await;
    for (attempt, said) in [("5", "registered"), ("6", "registered again;"), ("5", "nothing was changed:")] {
        let answer = nlb.modules.register_module(call(attempt, 1)).await.unwrap().into_inner();
        assert!(answer.success && answer.message.starts_with(said), "{attempt}: {}", answer.message);
        assert!(answer.registered_at.is_some());
    }
}

#[tokio::test]
async fn a_process_that_started_earlier_does_not_take_the_id() {
    let mut nlb = Nlb::start().await;
    let started = |seconds: i64| {
        let mut request = registration("alb-1");
        let started_at = Some(prost_types::Timestamp { seconds, nanos: 0 });
        request.instance = request.instance.map(|instance| ModuleInstance { started_at, ..instance });
        request
    };
    nlb.add(started(1_000)).await;
    let id = nlb.add(started(2_000)).await;
    let answer = nlb.modules.register_module(started(1_000)).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::AlreadyExists);
    assert!(error.message.contains("started later"), "{}", error.message);
    nlb.modules.heartbeat(beat("alb-1", &id)).await.expect("the registered process is unchanged");
    let proven = beside(started(1_000), "registration-id", &id);
    assert!(nlb.modules.register_module(proven).await.unwrap().into_inner().success);
}

fn beat(instance_id: &str, registration_id: &str) -> HeartbeatRequest {
    HeartbeatRequest {
        instance_id: instance_id.into(),
        registration_id: registration_id.into(),
        ..Default::default()
    }
}

#[tokio::test]
async fn heartbeats_renew_report_and_steer() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let answer = nlb.modules.heartbeat(beat("alb-1", &id)).await.unwrap().into_inner();
    assert!(answer.acknowledged && answer.server_time.is_some());
    assert_eq!(answer.instructions["heartbeat_interval_seconds"], "10");

    let stats = ModuleStats { total_requests: 7, avg_latency_ms: 1.5, ..Default::default() };
    let status = HealthStatus::Starting.into();
    let starting = HeartbeatRequest { status, current_stats: Some(stats), ..beat("alb-1", &id) };
    nlb.modules.heartbeat(starting).await.unwrap();
    let ask = GetModuleInfoRequest { instance_id: "alb-1".into() };
    let info = nlb.modules.get_module_info(ask).await.unwrap().into_inner();
    assert_eq!(info.instance.unwrap().health_status(), HealthStatus::Starting);
    assert_eq!(info.stats.as_ref().unwrap().custom_stats["source"], "last heartbeat");
    let stats = info.stats.unwrap();
    assert_eq!((stats.total_requests, stats.avg_latency_ms), (7, 1.5));
    assert_eq!(stats.instance_id, "alb-1");

    nlb.modules.heartbeat(beat("alb-1", &id)).await.unwrap();
    assert_eq!(
        nlb.listed("alb-1").await.unwrap().health_status(),
        HealthStatus::Starting,
        "unset means unchanged"
    );
}

#[tokio::test]
async fn a_heartbeat_asks_for_a_reload_after_a_change_that_the_module_does_not_know() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(without_control(registration("alb-1"))).await;
    let reloads = async |nlb: &mut Nlb| {
        let first = nlb.modules.heartbeat(beat("alb-1", &id)).await.unwrap().into_inner();
        let second = nlb.modules.heartbeat(beat("alb-1", &id)).await.unwrap().into_inner();
        (first.should_reload, second.should_reload)
    };
    let update = |registration_id: &str, port| UpdateRoutingRequest {
        source_instance_id: "alb-1".into(),
        registration_id: registration_id.into(),
        routes: vec![Route { destination_port: port, ..route("more") }],
        ..Default::default()
    };
    assert_eq!(reloads(&mut nlb).await, (false, false));
    assert!(nlb.modules.update_routing(update(&id, 81)).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (false, false), "its own change");
    assert!(nlb.modules.update_routing(update("", 81)).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (false, false), "nothing has changed");
    let dry = UpdateRoutingRequest { validate_only: true, ..update("", 82) };
    assert!(nlb.modules.update_routing(dry).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (false, false), "a dry run");
    assert!(nlb.modules.update_routing(update("", 82)).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (true, false));

    // The calls that would tell it do not reach it.
    let delete = DeleteRouteRequest { instance_id: "alb-1".into(), route_id: "more".into() };
    assert!(nlb.front.delete_route(delete).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (true, false));
    let reload = ReloadRequest { instance_id: "alb-1".into(), ..Default::default() };
    assert!(!nlb.front.reload(reload).await.unwrap().into_inner().success);
    assert_eq!(reloads(&mut nlb).await, (true, false));
}

#[tokio::test]
async fn of_a_module_that_reports_nothing_the_data_path_tells() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[4]);
    nlb.wait_for("nlb_instance_new_flows_total{instance_id=alb-1}", 9.0).await;
    let ask = GetModuleInfoRequest { instance_id: "alb-1".into() };
    let stats = nlb.modules.get_module_info(ask).await.unwrap().into_inner().stats.unwrap();
    assert_eq!((stats.instance_id.as_str(), stats.custom_stats["source"].as_str()), ("alb-1", "data path"));
    assert_eq!((stats.total_connections, stats.active_connections), (9, 4));
}

#[tokio::test]
async fn strangers_get_a_status() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    for (instance_id, registration_id, code) in [
        ("ghost", id.as_str(), Code::NotFound),
        ("alb-1", "", Code::Unauthenticated),
        ("alb-1", "0123456789abcdef0123456789abcdef", Code::PermissionDenied),
    ] {
        let status = nlb.modules.heartbeat(beat(instance_id, registration_id)).await.unwrap_err();
        assert_eq!(status.code(), code, "{}", status.message());
    }
    let request = UpdateRoutingRequest {
        source_instance_id: "alb-1".into(),
        registration_id: "guess".into(),
        ..Default::default()
    };
    assert_eq!(nlb.modules.update_routing(request).await.unwrap_err().code(), Code::PermissionDenied);
    let request = UnregisterModuleRequest { instance_id: "alb-1".into(), ..Default::default() };
    assert_eq!(nlb.modules.unregister_module(request).await.unwrap_err().code(), Code::Unauthenticated);
}

/// A call with the registration_id in its gRPC metadata.
fn beside<T>(message: T, key: &'static str, registration_id: &str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert(key, registration_id.parse().unwrap());
    request
}

#[tokio::test]
async fn a_proof_may_stand_beside_the_message() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    for key in ["registration-id", "registration_id"] {
        nlb.modules.heartbeat(beside(beat("alb-1", ""), key, &id)).await.unwrap();
        let wrong = nlb.modules.heartbeat(beside(beat("alb-1", ""), key, "guess")).await.unwrap_err();
        assert_eq!(wrong.code(), Code::PermissionDenied);
        let both = nlb.modules.heartbeat(beside(beat("alb-1", "guess"), key, &id)).await.unwrap_err();
        assert_eq!(both.code(), Code::PermissionDenied, "the field takes precedence");

        let routing = UpdateRoutingRequest {
            source_instance_id: "alb-1".into(),
            routes: vec![Route { destination_port: 81, ..route(key) }],
            ..Default::default()
        };
        let wrong = nlb.modules.update_routing(beside(routing.clone(), key, "guess")).await.unwrap_err();
        assert_eq!(wrong.code(), Code::PermissionDenied);
        let answer = nlb.modules.update_routing(beside(routing, key, &id)).await.unwrap().into_inner();
        assert!(answer.success, "{}", answer.message);

        let report = ReportMetricsRequest {
            instance_id: "alb-1".into(),
            metrics: Some(ModuleMetrics::default()),
            ..Default::default()
        };
        let wrong = nlb.modules.report_metrics(beside(report.clone(), key, "guess")).await.unwrap_err();
        assert_eq!(wrong.code(), Code::PermissionDenied);
        nlb.modules.report_metrics(beside(report, key, &id)).await.unwrap();
    }
    let leave = UnregisterModuleRequest { instance_id: "alb-1".into(), ..Default::default() };
    let wrong = nlb.modules.unregister_module(beside(leave.clone(), "registration-id", "guess")).await;
    assert_eq!(wrong.unwrap_err().code(), Code::PermissionDenied);
    nlb.modules.unregister_module(beside(leave, "registration-id", &id)).await.unwrap();
    assert!(nlb.listed("alb-1").await.is_none());
}

#[tokio::test]
async fn a_module_of_the_contract_alone_changes_its_routes_without_a_proof() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    let request = UpdateRoutingRequest {
        source_instance_id: "alb-1".into(),
        routes: vec![Route { destination_port: 81, ..route("more") }],
        ..Default::default()
    };
    let answer = nlb.modules.update_routing(request).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    let info = GetModuleInfoRequest { instance_id: "alb-1".into() };
    let routes = nlb.modules.get_module_info(info).await.unwrap().into_inner().routes;
    assert_eq!(routes.iter().map(|route| route.route_id.as_str()).collect::<Vec<_>>(), ["more", "web"]);
}

#[tokio::test]
async fn lists_are_filtered_by_type_status_and_query() {
    let mut nlb = Nlb::start().await;
    for (name, host, version, module_type) in
        [("a", 1, "v1", ModuleType::Alb), ("b", 2, "v2", ModuleType::Alb), ("c", 3, "v2", ModuleType::Dblb)]
    {
        let mut request = registration_at(name, host, version);
        if let Some(instance) = &mut request.instance {
            instance.set_module_type(module_type);
        }
        nlb.add(request).await;
    }
    let ids = |answer: ListModulesResponse| -> String {
        answer.modules.into_iter().map(|instance| instance.instance_id).collect()
    };
    let albs = ListModulesRequest { module_type_filter: ModuleType::Alb.into(), ..Default::default() };
    assert_eq!(ids(nlb.modules.list_modules(albs).await.unwrap().into_inner()), "ab");
    let sick = ListModulesRequest { status_filter: HealthStatus::Unhealthy.into(), ..Default::default() };
    assert_eq!(ids(nlb.modules.list_modules(sick).await.unwrap().into_inner()), "");
    let filter = Filter { field: "version".into(), operator: "eq".into(), value: "v2".into() };
    let query = Query {
        filters: vec![filter],
        sort_by: "instance_id".into(),
        sort_desc: true,
        pagination: Some(Pagination { page: 1, page_size: 1, ..Default::default() }),
    };
    let request = ListModulesRequest { query: Some(query), ..Default::default() };
    let answer = nlb.modules.list_modules(request).await.unwrap().into_inner();
    assert_eq!((answer.total_modules, answer.pagination.unwrap().total_pages), (2, 2));
    assert_eq!(ids(answer), "c");
}

#[tokio::test]
async fn the_number_of_modules_is_bounded() {
    let mut nlb = Nlb::with(nlb::model::settings::Settings { max_modules: 1, ..settings() }).await;
    nlb.add(registration("a")).await;
    let answer = nlb.modules.register_module(registration("b")).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::ResourceExhausted);
    assert!(error.message.contains("--max-modules"), "{}", error.message);
}

#[tokio::test]
async fn a_registration_beyond_the_maps_is_refused_and_blocks_no_other_change() {
    let limits = nlb::model::settings::TableSizes { services: 2, ..settings().limits };
    let mut nlb = Nlb::with(nlb::model::settings::Settings { limits, ..settings() }).await;
    let mut greedy = registration("greedy");
    greedy.initial_routes =
        (1..=3).map(|port| Route { destination_port: port, ..route(&port.to_string()) }).collect();
    let answer = nlb.modules.register_module(greedy).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.code(), StatusCode::ResourceExhausted);
    assert!(error.message.contains("--max-services"), "{}", error.message);
    nlb.add(registration("modest")).await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_is_refused_before_it_is_read() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    request.initial_routes =
        (0..20_000).map(|n| Route { path_pattern: "x".repeat(2000), ..route(&n.to_string()) }).collect();
    let status = nlb.modules.register_module(request).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{}", status.message());
}

/// A module with a later contract: its other routes work.
#[tokio::test]
async fn values_of_a_later_contract_refuse_no_registration() {
    let mut nlb = Nlb::start().await;
    let mut request = registration("alb-1");
    request.initial_routes.push(Route { protocol: 99, ..route("later") });
    request.initial_routes.push(Route {
        protocol: Protocol::Srt.into(),
        destination_port: 9000,
        ..route("srt")
    });
    request.instance.as_mut().unwrap().health_status = 99;
    request.health_config = None;
    let answer = nlb.modules.register_module(request).await.unwrap().into_inner();
    assert!(answer.success, "{answer:?}");
    let refused = "refused, with a protocol that this NLB does not know: later (protocol 99)";
    assert!(answer.message.contains(refused), "{}", answer.message);
    let info = nlb.info("alb-1").await;
    let routes: Vec<&str> = info.routes.iter().map(|route| route.route_id.as_str()).collect();
    assert_eq!(routes, ["srt", "web"]);
    assert_eq!(info.instance.unwrap().health_status(), HealthStatus::Healthy);
    let (instance_id, registration_id) = ("alb-1".to_owned(), answer.registration_id);
    let beat = HeartbeatRequest { instance_id, registration_id, status: 99, ..Default::default() };
    assert!(nlb.modules.heartbeat(beat).await.unwrap().into_inner().acknowledged, "the lease is renewed");
}

/// A pool whose members may be full has fallbacks, which are pools, too.
#[tokio::test]
async fn more_fallbacks_than_fit_are_refused_and_leave_the_others_alone() {
    let limits = TableSizes { backends: 200, ..settings().limits };
    let mut nlb = Nlb::with(Settings { max_routes: 200, limits, ..settings() }).await;
    let many = |max_connections| {
        let mut request = without_control(registration("greedy"));
        request.instance.as_mut().unwrap().max_connections = max_connections;
        let routes = (1..=9).flat_map(|port| (0..8).map(move |priority| (port, priority)));
        let routes = routes.map(|(port, priority)| Route {
            destination_port: port,
            priority,
            ..route(&format!("r{port}-{priority}"))
        });
        request.initial_routes = routes.collect();
        request
    };
    let answer = nlb.modules.register_module(many(1)).await.unwrap().into_inner();
    assert!(!answer.success);
    let error = answer.error.unwrap();
    assert_eq!(error.message, "too many pools: at most 64 fit; raise --max-pools, or remove some");
    assert_eq!(nlb.listed("greedy").await, None);
    nlb.add(without_control(registration_at("alb-2", 2, "v1"))).await;
    nlb.applied().await;
    nlb.add(many(0)).await;
    assert!(nlb.listed("greedy").await.is_some(), "without a limit there are no fallbacks");
}
