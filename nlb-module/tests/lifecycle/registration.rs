//! Registering, and registering again: against an NLB that starts, stops, loses registrations and refuses.

use std::net::SocketAddr;
use std::time::Duration;

use nlb_module::proto::*;
use tokio::net::UdpSocket;
use tokio::time::timeout;
use tonic::Code;

use super::fake_nlb::{FakeNlb, Seen, own_host};
use super::mirror::{SOON, control, exchange, route, run};

#[tokio::test]
async fn registers_serves_and_reports() {
    let nlb = FakeNlb::start().await;
    let running = run(&nlb.url(), |instance| {
        instance.weight(40).metadata("forward_mode", "nat").quic_server(3, &[0x0a, 0xb1])
    });
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
    let registration = nlb.see(|seen| seen.registrations[0].clone());
    let instance = registration.instance.expect("an instance");
    assert_eq!((instance.instance_id.as_str(), instance.version.as_str()), ("mirror-1", "v1"));
    assert_eq!((instance.traffic_weight, instance.module_type()), (40, ModuleType::Alb));
    assert_eq!(instance.metadata["forward_mode"], "nat");
    assert_eq!((&*instance.metadata["quic_server_id"], &*instance.metadata["quic_config_id"]), ("0ab1", "3"));
    assert_eq!(registration.initial_routes, [route("web", 80)]);

    let mut stream = running.connect().await;
    exchange(&mut stream, b"twelve bytes").await;
    let socket = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
    socket.connect(running.address).await.expect("an address");
    socket.send(b"datagram").await.expect("sent");
    let mut answer = [0; 64];
    let length =
        timeout(SOON, socket.recv(&mut answer)).await.expect("an answer in time").expect("an answer");
    assert_eq!(&answer[..length], b"datagram");

    nlb.until("figures in a heartbeat", |seen| {
        let beat = seen.heartbeats.last().cloned().unwrap_or_default();
        let stats = beat.current_stats.unwrap_or_default();
        beat.registration_id == "registration-1"
            && beat.status == i32::from(HealthStatus::Healthy)
            && (stats.active_connections, stats.total_connections) == (1, 1)
            && (stats.successful_requests, stats.failed_requests) == (1, 0)
            && (stats.bytes_received, stats.bytes_sent) == (20, 20)
    })
    .await;
}

#[tokio::test]
async fn asks_for_a_health_check_and_passes_it() {
    let nlb = FakeNlb::start().await;
    let check = HealthCheckConfig {
        interval_seconds: 5,
        metadata: [("check".to_owned(), "module".to_owned())].into(),
        ..HealthCheckConfig::default()
    };
    let asked = check.clone();
    let _running = run(&nlb.url(), |instance| instance.health_check(check));
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
    assert_eq!(nlb.see(|seen| seen.registrations[0].health_config.clone()), Some(asked));
    let answer = control(&nlb).await.health_check(HealthCheckRequest::default()).await.expect("an answer");
    assert_eq!(answer.into_inner().status(), HealthStatus::Healthy);
}

#[tokio::test]
async fn registers_again_when_the_nlb_has_lost_the_registration() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance);
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    nlb.see(|seen| seen.known.clear());
    nlb.until("a second registration", |seen| seen.registrations.len() == 2).await;
    let again = nlb.see(|seen| seen.registrations[1].instance.clone().expect("an instance"));
    assert_eq!(again.metadata["registration_id"], "registration-1", "the credential of the same module");
    nlb.until("a heartbeat of the new registration", |seen| {
        seen.heartbeats.last().is_some_and(|beat| beat.registration_id == "registration-2")
    })
    .await;
}

#[tokio::test]
async fn survives_an_nlb_that_restarts() {
    let first = FakeNlb::start().await;
    let address = first.address;
    let running = run(&first.url(), |instance| instance);
    first.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    drop(first);
    let mut stream = running.connect().await;
    exchange(&mut stream, b"without any NLB").await;
    let second = FakeNlb::start_at(address).await;
    second.until("a registration at the new NLB", |seen| !seen.registrations.is_empty()).await;
    exchange(&mut stream, b"as if nothing had happened").await;
}

#[tokio::test]
async fn waits_for_an_nlb_that_is_not_there_yet() {
    let address = SocketAddr::from((own_host(), 50051));
    let running = run(&format!("http://{address}"), |instance| instance);
    tokio::time::sleep(Duration::from_millis(400)).await;
    assert!(!running.ended.is_finished());
    let nlb = FakeNlb::start_at(address).await;
    nlb.until("a registration", |seen| !seen.registrations.is_empty()).await;
}

/// The metadata of a call to register that identifies its process.
fn attempt(registration: &RegisterModuleRequest) -> (String, u64) {
    let metadata = &registration.instance.as_ref().expect("an instance").metadata;
    let number = metadata["registration_attempt"].parse().expect("a number");
    (metadata["registration_nonce"].clone(), number)
}

#[tokio::test]
async fn every_call_to_register_is_numbered_within_the_process() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.fails = Some(Code::Unavailable));
    let _running = run(&nlb.url(), |instance| instance);
    nlb.until("three calls", |seen| seen.registrations.len() >= 3).await;
    nlb.see(|seen| {
        let made: Vec<_> = seen.registrations.iter().map(attempt).collect();
        assert!(made.windows(2).all(|pair| pair[0].0 == pair[1].0 && pair[0].1 < pair[1].1), "{made:?}");
        let nonce = &made[0].0;
        assert!((16..=64).contains(&nonce.len()) && nonce.bytes().all(|byte| byte.is_ascii_graphic()));
    });
    let other = FakeNlb::start().await;
    let _other = run(&other.url(), |instance| instance);
    other.until("a call", |seen| !seen.registrations.is_empty()).await;
    let nonce = |nlb: &FakeNlb| nlb.see(|seen| attempt(&seen.registrations[0]).0);
    assert_ne!(nonce(&nlb), nonce(&other));
}

#[tokio::test]
async fn registers_again_with_its_credential_when_its_heartbeats_are_not_accepted() {
    for code in [Code::PermissionDenied, Code::Unauthenticated, Code::InvalidArgument, Code::Unimplemented] {
        let nlb = FakeNlb::start().await;
        let running = run(&nlb.url(), |instance| instance);
        nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
        nlb.see(|seen| {
            seen.void = Some(code);
            seen.known.clear();
        });
        nlb.until("a second registration", |seen| seen.registrations.len() == 2).await;
        let again = nlb.see(|seen| seen.registrations[1].instance.clone().expect("an instance"));
        assert_eq!(again.metadata["registration_id"], "registration-1", "{code:?}");
        nlb.until("a heartbeat of the new registration", |seen| {
            seen.heartbeats.last().is_some_and(|beat| beat.registration_id == "registration-2")
        })
        .await;
        exchange(&mut running.connect().await, b"and it has served all along").await;
        assert!(!running.ended.is_finished());
    }
}

#[tokio::test]
async fn registers_again_while_every_registration_is_void_at_once() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.void = Some(Code::PermissionDenied));
    let running = run(&nlb.url(), |instance| instance);
    // Another process supersedes every registration before its first heartbeat.
    nlb.until("a fourth registration", |seen| {
        seen.known.clear();
        seen.registrations.len() == 4
    })
    .await;
    assert!(!running.ended.is_finished());
    nlb.until("a heartbeat that is accepted", |seen| {
        seen.heartbeats.last().is_some_and(|beat| seen.known.contains(&beat.registration_id))
    })
    .await;
}

#[tokio::test]
async fn keeps_registering_at_an_nlb_that_refuses_it() {
    let refusals: [fn(&mut Seen); 5] = [
        |seen| seen.refuses = Some((StatusCode::InvalidArgument, "no such VIP")),
        |seen| seen.refuses = Some((StatusCode::PermissionDenied, "not you")),
        |seen| seen.fails = Some(Code::InvalidArgument),
        |seen| seen.fails = Some(Code::Unauthenticated),
        |seen| seen.fails = Some(Code::Unimplemented),
    ];
    for refuse in refusals {
        let nlb = FakeNlb::start().await;
        nlb.see(refuse);
        let running = run(&nlb.url(), |instance| instance);
        nlb.until("a third try", |seen| seen.registrations.len() > 2).await;
        assert!(!running.ended.is_finished());
        nlb.see(|seen| (seen.refuses, seen.fails) = (None, None));
        nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    }
}

#[tokio::test]
async fn a_module_that_is_refused_stops_on_request() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.refuses = Some((StatusCode::InvalidArgument, "no such VIP")));
    let running = run(&nlb.url(), |instance| instance);
    nlb.until("a try", |seen| !seen.registrations.is_empty()).await;
    running.stop.send(()).expect("it runs");
    let ended = timeout(SOON, running.ended).await.expect("it ends").expect("no panic");
    assert!(ended.is_ok(), "{ended:?}");
    assert!(nlb.see(|seen| seen.unregistrations.is_empty()), "there is nothing to leave");
}

#[tokio::test]
async fn tries_again_while_its_id_is_taken() {
    let nlb = FakeNlb::start().await;
    nlb.see(|seen| seen.refuses = Some((StatusCode::AlreadyExists, "taken")));
    let running = run(&nlb.url(), |instance| instance);
    nlb.until("a second try", |seen| seen.registrations.len() > 1).await;
    assert!(!running.ended.is_finished());
    nlb.see(|seen| seen.refuses = None);
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
}

#[tokio::test]
async fn takes_no_flow_before_its_weight_of_zero_is_known() {
    let nlb = FakeNlb::start().await;
    let _running = run(&nlb.url(), |instance| instance.weight(0));
    nlb.until("a heartbeat", |seen| !seen.heartbeats.is_empty()).await;
    nlb.see(|seen| {
        let registered = seen.registrations[0].instance.as_ref().expect("an instance");
        assert_eq!(registered.health_status(), HealthStatus::Starting);
        assert_eq!((seen.weights[0].instance_id.as_str(), seen.weights[0].weight), ("mirror-1", 0));
        assert_eq!(seen.heartbeats[0].status(), HealthStatus::Healthy);
    });
}
