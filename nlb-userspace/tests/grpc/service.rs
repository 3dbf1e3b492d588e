//! The NLB as generic tools see it: status, health, reflection.

use nlb::model::traffic::Traffic;
use nlb_proto::*;
use tonic::transport::Channel;
use tonic_health::pb::HealthCheckRequest as ProbeRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
use tonic_reflection::pb::v1::{ServerReflectionRequest, ServerReflectionResponse};

use super::fleet::registration;
use super::metrics::counted;
use super::nlb::Nlb;

async fn channel(nlb: &Nlb) -> Channel {
    Channel::from_shared(format!("http://{}", nlb.address)).unwrap().connect().await.unwrap()
}

#[tokio::test]
async fn status_counts_modules_and_flows() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[4]);
    nlb.wait_for("nlb_forwarded_new_flows_total{}", 9.0).await;
    let request = GetNlbStatusRequest { include_modules: true };
    let status = nlb.modules.get_nlb_status(request).await.unwrap().into_inner();
    assert_eq!(status.status(), HealthStatus::Healthy);
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    assert_eq!((status.registered_modules, status.modules_by_type["ALB"]), (1, 1));
    assert_eq!((status.total_requests, status.active_connections), (9, 4));
    assert_eq!(status.modules[0].current_connections, 4);
    assert_eq!(status.details["desired_revision"], status.details["applied_revision"]);
    assert_eq!(status.details["interfaces"], "none");
    let brief = nlb.modules.get_nlb_status(GetNlbStatusRequest::default()).await.unwrap().into_inner();
    assert!(brief.modules.is_empty());
}

#[tokio::test]
async fn totals_do_not_shrink_when_a_module_leaves() {
    let mut nlb = Nlb::start().await;
    let registration_id = nlb.add(registration("alb-1")).await;
    nlb.sampled(counted(1)).await;
    let total = async |nlb: &mut Nlb| {
        let status = nlb.modules.get_nlb_status(GetNlbStatusRequest::default()).await.unwrap().into_inner();
        let stats =
            nlb.front.get_stats(GetStatsRequest::default()).await.unwrap().into_inner().stats.unwrap();
        assert_eq!(stats.total_requests, status.total_requests);
        assert_eq!(stats.active_connections, status.active_connections);
        (status.total_requests, status.active_connections, stats.bytes_received, stats.bytes_sent)
    };
    assert_eq!(total(&mut nlb).await, (22, 14, 2018, 2026));
    let request =
        UnregisterModuleRequest { instance_id: "alb-1".into(), registration_id, ..Default::default() };
    assert!(nlb.modules.unregister_module(request).await.unwrap().into_inner().success);
    // The data path counts for existing backends only, and this one is gone.
    nlb.sampled(Traffic { packets_seen: 202, ..Traffic::default() }).await;
    assert_eq!(total(&mut nlb).await, (22, 0, 2018, 2026));
    nlb.add(registration("alb-1")).await;
    nlb.sampled(Traffic { packets_seen: 203, ..counted(2) }).await;
    assert_eq!(total(&mut nlb).await, (66, 14, 6054, 6078), "its backends count from 0");
}

#[tokio::test]
async fn modules_weigh_on_the_health_when_asked_for() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let status = HealthStatus::Unhealthy.into();
    let sick =
        HeartbeatRequest { instance_id: "alb-1".into(), registration_id: id, status, ..Default::default() };
    nlb.modules.heartbeat(sick).await.unwrap();
    let alone = nlb.modules.check_health(CheckHealthRequest::default()).await.unwrap().into_inner();
    assert_eq!(alone.status(), HealthStatus::Healthy);
    for deep_check in [true, false] {
        let request = CheckHealthRequest { check_modules: true, deep_check };
        let all = nlb.modules.check_health(request).await.unwrap().into_inner();
        assert_eq!(all.status(), HealthStatus::Unhealthy);
        assert_eq!(all.module_health["alb-1"], i32::from(HealthStatus::Unhealthy));
        assert_eq!(all.checks["modules"], "0 of 1 are healthy");
        assert_eq!(all.checks.contains_key("packets_seen"), deep_check);
    }
}

#[tokio::test]
async fn generic_probes_see_that_it_serves() {
    let mut nlb = Nlb::start().await;
    let mut probe = HealthClient::new(channel(&nlb).await);
    let mut ask = async |service: &str| {
        let request = ProbeRequest { service: service.into() };
        probe.check(request).await.map(|answer| answer.into_inner().status())
    };
    for service in ["", "marchproxy.NLBService", "marchproxy.ModuleService"] {
        assert_eq!(ask(service).await.unwrap(), ServingStatus::Serving, "{service:?}");
    }
    assert_eq!(ask("marchproxy.Other").await.unwrap_err().code(), tonic::Code::NotFound);

    nlb.maps.fail_after(0, 1000);
    let answer = nlb.modules.register_module(registration("alb-1")).await.unwrap().into_inner();
    assert!(!answer.success);
    tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    assert_eq!(ask("").await.unwrap(), ServingStatus::NotServing);
}

#[tokio::test]
async fn generic_clients_can_explore_it() {
    let nlb = Nlb::start().await;
    let mut reflection = ServerReflectionClient::new(channel(&nlb).await);
    let request = ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        reflection.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let Some(ServerReflectionResponse {
        message_response: Some(MessageResponse::ListServicesResponse(list)),
        ..
    }) = answers.message().await.unwrap()
    else {
        panic!("a list of services")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["marchproxy.NLBService", "marchproxy.ModuleService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|listed| listed == name), "{name} in {names:?}");
    }
}
