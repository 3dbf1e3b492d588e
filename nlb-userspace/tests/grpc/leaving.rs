//! Modules that unregister, or are drained by an operator.

use std::time::Duration;

use nlb_proto::*;
use tokio::time::timeout;

use super::fleet::registration;
use super::nlb::Nlb;

fn leave(registration_id: &str, graceful: bool, drain_timeout_seconds: i32) -> UnregisterModuleRequest {
    UnregisterModuleRequest {
        instance_id: "alb-1".into(),
        registration_id: registration_id.into(),
        graceful,
        drain_timeout_seconds,
    }
}

/// Waits until the module is shown with this health; `None` means that it is gone.
async fn until(nlb: &mut Nlb, health: Option<HealthStatus>) {
    let wait = async {
        while nlb.listed("alb-1").await.map(|instance| instance.health_status()) != health {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    timeout(Duration::from_secs(10), wait).await.unwrap_or_else(|_| panic!("never {health:?}"));
}

#[tokio::test]
async fn unregistering_at_once_clears_the_maps() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let answer = nlb.modules.unregister_module(leave(&id, false, 0)).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert!(!nlb.maps.dump().contains("10.0.0.1"), "{}", nlb.maps.dump());
    let again = nlb.modules.unregister_module(leave(&id, false, 0)).await.unwrap().into_inner();
    assert_eq!(again.error.unwrap().code(), StatusCode::NotFound);
}

#[tokio::test]
async fn leaving_gracefully_waits_for_the_last_flow() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[3, 3, 3, 3, 3, 3, 2, 1, 0]);
    let answer = nlb.modules.unregister_module(leave(&id, true, 30)).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!(answer.active_connections_drained, 3);
    assert!(nlb.listed("alb-1").await.is_none());
}

#[tokio::test]
async fn leaving_gracefully_ends_at_the_deadline() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[5, 5, 5, 5, 2]);
    let answer = nlb.modules.unregister_module(leave(&id, true, 1)).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!(answer.active_connections_drained, 3);
    assert!(answer.message.contains("2 TCP flows"), "{}", answer.message);
    assert!(nlb.listed("alb-1").await.is_none());
}

#[tokio::test]
async fn a_drain_goes_on_when_the_caller_hangs_up() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[1]);
    let mut client = nlb.modules.clone();
    let request = leave(&id, true, 1);
    let call = tokio::spawn(async move { client.unregister_module(request).await });
    until(&mut nlb, Some(HealthStatus::Stopping)).await;
    call.abort();
    until(&mut nlb, None).await;
}

#[tokio::test]
async fn a_leaving_module_still_sends_heartbeats_and_may_come_back() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[1]);
    let mut client = nlb.modules.clone();
    let request = leave(&id, true, 30);
    let call = tokio::spawn(async move { client.unregister_module(request).await });
    until(&mut nlb, Some(HealthStatus::Stopping)).await;
    let beat = HeartbeatRequest { instance_id: "alb-1".into(), registration_id: id, ..Default::default() };
    let answer = nlb.modules.heartbeat(beat).await.unwrap().into_inner();
    assert!(answer.message.contains("draining"), "{}", answer.message);

    nlb.add(registration("alb-1")).await;
    let answer = timeout(Duration::from_secs(10), call).await.unwrap().unwrap().unwrap().into_inner();
    assert!(answer.message.contains("registered again"), "{}", answer.message);
    until(&mut nlb, Some(HealthStatus::Healthy)).await;
}

#[tokio::test]
async fn an_operator_drains_and_resumes() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[4, 4, 4, 4, 1]);
    let request = DrainModuleRequest { instance_id: "alb-1".into(), timeout_seconds: 1 };
    let answer = nlb.operator.drain_module(request).await.unwrap().into_inner();
    assert!(answer.success, "{}", answer.message);
    assert_eq!((answer.active_connections_drained, answer.active_connections), (3, 1));
    until(&mut nlb, Some(HealthStatus::Stopping)).await;
    let request = ResumeModuleRequest { instance_id: "alb-1".into() };
    assert!(nlb.operator.resume_module(request).await.unwrap().into_inner().success);
    until(&mut nlb, Some(HealthStatus::Healthy)).await;
    let request = ResumeModuleRequest { instance_id: "ghost".into() };
    let answer = nlb.operator.resume_module(request).await.unwrap().into_inner();
    assert_eq!(answer.error.unwrap().code(), StatusCode::NotFound);
}

#[tokio::test]
async fn an_operator_removes_a_dead_module_at_once() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    nlb.count_flows("alb-1", &[4]);
    let remove = |force| RemoveModuleRequest { instance_id: "alb-1".into(), force };
    let refused = nlb.operator.remove_module(remove(false)).await.unwrap().into_inner();
    let error = refused.error.unwrap();
    assert_eq!(error.code(), StatusCode::Error);
    assert!(error.message.contains("force"), "{}", error.message);

    // Its flows never close, and an operator's drain does not hide that it is dead.
    let drain = DrainModuleRequest { instance_id: "alb-1".into(), timeout_seconds: 3600 };
    let mut operator = nlb.operator.clone();
    let drained = tokio::spawn(async move { operator.drain_module(drain).await });
    until(&mut nlb, Some(HealthStatus::Stopping)).await;
    let refused = nlb.operator.remove_module(remove(false)).await.unwrap().into_inner();
    assert!(!refused.success, "it drains, and lives");
    let beat = HeartbeatRequest {
        instance_id: "alb-1".into(),
        registration_id: id.clone(),
        status: HealthStatus::Unhealthy.into(),
        ..Default::default()
    };
    nlb.modules.heartbeat(beat.clone()).await.unwrap();
    let removed = nlb.operator.remove_module(remove(false)).await.unwrap().into_inner();
    assert!(removed.success, "{}", removed.message);
    assert!(nlb.listed("alb-1").await.is_none());
    assert!(!nlb.maps.dump().contains("10.0.0.1"), "{}", nlb.maps.dump());
    timeout(Duration::from_secs(10), drained).await.expect("the drain ends with it").unwrap().unwrap();
    assert_eq!(nlb.modules.heartbeat(beat).await.unwrap_err().code(), tonic::Code::NotFound);
    let again = nlb.operator.remove_module(remove(true)).await.unwrap().into_inner();
    assert_eq!(again.error.unwrap().code(), StatusCode::NotFound);

    nlb.add(registration("alb-1")).await;
    assert!(nlb.operator.remove_module(remove(true)).await.unwrap().into_inner().success);
    assert!(nlb.listed("alb-1").await.is_none());
}
