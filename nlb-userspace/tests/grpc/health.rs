//! Health checks as modules configure them, and their results.

use std::time::Duration;

use nlb_proto::*;
use prost::Message as _;
use tokio::time::{sleep, timeout};

use super::fake_module::Fake;
use super::fleet::{registration, route, with_metadata};
use super::nlb::Nlb;

pub fn set(config: &mut HealthCheckConfig, key: &str, value: &str) {
    config.metadata.insert(key.into(), value.into());
}

pub fn checked(instance_id: &str, config: HealthCheckConfig) -> RegisterModuleRequest {
    RegisterModuleRequest { health_config: Some(config), ..registration(instance_id) }
}

/// A valid config, its description in GetModuleInfo, and the addresses that are checked.
type Good = (fn(&mut HealthCheckConfig), &'static str, &'static [&'static str]);

const GOOD: &[Good] = &[
    (|_| {}, "TCP connect every 2s within 2s, down after 3, up after 2", &["10.0.0.1:8080"]),
    (
        |c| {
            (c.interval_seconds, c.timeout_seconds) = (1, 1);
            (c.unhealthy_threshold, c.healthy_threshold) = (100, 1);
            c.health_check_port = 9000;
            c.set_health_check_protocol(Protocol::Tcp);
        },
        "TCP connect on port 9000 every 1s within 1s, down after 100, up after 1",
        &["10.0.0.1:9000"],
    ),
    (
        |c| c.timeout_seconds = 5,
        "TCP connect every 5s within 5s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
    (
        |c| c.interval_seconds = 1,
        "TCP connect every 1s within 1s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
    (
        |c| c.set_health_check_protocol(Protocol::Redis),
        "TCP connect every 2s within 2s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
    (
        |c| c.health_check_path = "/healthz?full=1".into(),
        "HTTP GET /healthz?full=1 every 2s within 2s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
    (
        |c| {
            c.set_health_check_protocol(Protocol::Http);
            set(c, "expected_status", "204");
        },
        "HTTP GET / for 204 every 2s within 2s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
    (
        |c| {
            c.set_health_check_protocol(Protocol::Grpc);
            set(c, "service", "echo");
            set(c, "owner", "somebody");
        },
        "gRPC health of echo every 2s within 2s, down after 3, up after 2",
        &["10.0.0.1:8080"],
    ),
];

impl Nlb {
    pub async fn info(&mut self, instance_id: &str) -> GetModuleInfoResponse {
        let ask = GetModuleInfoRequest { instance_id: instance_id.into() };
        self.modules.get_module_info(ask).await.unwrap().into_inner()
    }

    async fn becomes(&mut self, instance_id: &str, health: HealthStatus) {
        let waiting = async {
            while self.listed(instance_id).await.is_none_or(|shown| shown.health_status() != health) {
                sleep(Duration::from_millis(20)).await;
            }
        };
        let became = timeout(Duration::from_secs(20), waiting).await;
        became.unwrap_or_else(|_| panic!("{instance_id} does not become {health:?}"));
    }
}

#[tokio::test]
async fn a_configured_check_is_made_and_shown() {
    let mut nlb = Nlb::start().await;
    for (case, (ask, described, addresses)) in GOOD.iter().enumerate() {
        let mut config = HealthCheckConfig::default();
        ask(&mut config);
        let mut request = checked("alb-1", config);
        request.initial_routes[0].metadata.insert("listen_port".into(), "8080".into());
        nlb.tried.lock().unwrap().clear();
        nlb.add(request).await;
        nlb.becomes("alb-1", HealthStatus::Healthy).await;
        assert_eq!(nlb.info("alb-1").await.details["health_check"], *described, "case {case}");
        let tried = nlb.tried.lock().unwrap()[0].clone();
        let tried: Vec<String> = tried.data.iter().map(ToString::to_string).collect();
        assert_eq!(tried, *addresses, "case {case}");
    }
}

#[tokio::test]
async fn checks_go_where_traffic_goes() {
    let mut nlb = Nlb::start().await;
    let metadata = |entries: &[(&str, &str)]| {
        let mut request = checked("alb-1", HealthCheckConfig::default());
        request.instance = request.instance.map(|instance| with_metadata(instance, entries));
        request
    };
    let v6 = Route { destination_pattern: "2001:db8::1".into(), ..route("a-v6") };
    let udp = Route { protocol: Protocol::Udp.into(), destination_port: 53, ..route("a-udp") };
    for (request, routes, addresses) in [
        // No traffic comes in the other family.
        (metadata(&[("data_address", "10.0.0.2,fd00::1")]), vec![route("web")], vec!["10.0.0.2:80"]),
        (
            metadata(&[("data_address", "10.0.0.2,fd00::1"), ("listen_port", "81")]),
            vec![route("web"), v6.clone()],
            vec!["10.0.0.2:81", "[fd00::1]:81"],
        ),
        // Direct server return carries IPv6 in IPv4, and does not change ports.
        (metadata(&[("forward_mode", "dsr-ipip")]), vec![v6.clone()], vec!["10.0.0.1:80"]),
        (metadata(&[("forward_mode", "gue")]), vec![v6], vec!["10.0.0.1:80"]),
        (metadata(&[]), vec![udp.clone(), route("web")], vec!["10.0.0.1:80"]),
        (metadata(&[]), vec![udp], vec!["10.0.0.1:50051"]),
        (metadata(&[]), vec![], vec!["10.0.0.1:50051"]),
    ] {
        nlb.tried.lock().unwrap().clear();
        nlb.add(RegisterModuleRequest { initial_routes: routes, ..request }).await;
        nlb.becomes("alb-1", HealthStatus::Healthy).await;
        let tried = nlb.tried.lock().unwrap()[0].clone();
        assert_eq!(tried.data.iter().map(ToString::to_string).collect::<Vec<_>>(), addresses);
    }
}

#[tokio::test]
async fn registration_answers_at_once_and_flows_come_with_the_first_success() {
    let mut nlb = Nlb::start().await;
    nlb.passes.send_replace(false);
    let config = HealthCheckConfig { interval_seconds: 1, ..Default::default() };
    let answer = nlb.modules.register_module(checked("alb-1", config)).await.unwrap().into_inner();
    assert!(answer.success && answer.message.contains("no new flows until it passes"), "{}", answer.message);
    assert_eq!(nlb.listed("alb-1").await.unwrap().health_status(), HealthStatus::Starting);
    let ask = RouteRequestRequest {
        route: Some(route("web")),
        context: [("source_address".to_owned(), "198.51.100.1".to_owned())].into(),
        ..Default::default()
    };
    let expected = "STARTING: never passed: injected failure";
    timeout(Duration::from_secs(10), async {
        while nlb.info("alb-1").await.details["health.check"] != expected {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("the check has failed");
    let routed = nlb.modules.route_request(ask.clone()).await.unwrap().into_inner();
    assert!(!routed.routed, "not even by a pool that fails open: {routed:?}");

    nlb.passes.send_replace(true);
    nlb.becomes("alb-1", HealthStatus::Healthy).await;
    assert_eq!(nlb.info("alb-1").await.details["health.check"], "HEALTHY: passed its first check");
    timeout(Duration::from_secs(5), async {
        while !nlb.modules.route_request(ask.clone()).await.unwrap().into_inner().routed {
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("new flows");
}

#[tokio::test]
async fn a_failed_check_is_seen_wherever_health_is_shown() {
    let mut nlb = Nlb::start().await;
    let config = HealthCheckConfig { interval_seconds: 1, unhealthy_threshold: 1, ..Default::default() };
    nlb.add(checked("alb-1", config)).await;
    nlb.becomes("alb-1", HealthStatus::Healthy).await;
    nlb.passes.send_replace(false);
    nlb.becomes("alb-1", HealthStatus::Unhealthy).await;

    let details = nlb.info("alb-1").await.details;
    assert_eq!(details["health.check"], "UNHEALTHY: failures in a row: 1; the last: injected failure");
    assert_eq!(details["health.module"], "HEALTHY");
    let ask = CheckHealthRequest { check_modules: true, ..Default::default() };
    let own = nlb.modules.check_health(ask).await.unwrap().into_inner();
    assert_eq!(own.module_health["alb-1"], i32::from(HealthStatus::Unhealthy));
    let ask = HealthCheckRequest { instance_id: "alb-1".into(), deep_check: false };
    let health = nlb.front.health_check(ask).await.unwrap().into_inner();
    assert_eq!((health.status(), health.message.as_str()), (HealthStatus::Unhealthy, "decided by its check"));

    sleep(Duration::from_millis(1500)).await;
    let metric_names = vec!["nlb_instance_health_ratio".to_owned()];
    let ask = GetNlbMetricsRequest { metric_names, ..Default::default() };
    let points = nlb.modules.get_nlb_metrics(ask).await.unwrap().into_inner().metrics;
    let by_source: std::collections::BTreeMap<_, _> =
        points.iter().map(|point| (point.labels["source"].as_str(), point.value)).collect();
    let well = ["lease", "module", "network", "operator", "resets"].map(|source| (source, 1.0));
    assert_eq!(by_source, well.into_iter().chain([("check", 0.0)]).collect());
}

fn by_module(deep: &str) -> HealthCheckConfig {
    let mut config = HealthCheckConfig { interval_seconds: 1, unhealthy_threshold: 1, ..Default::default() };
    set(&mut config, "check", "module");
    set(&mut config, "deep", deep);
    config
}

const WELL: Fake = Fake::Answers(|_| {
    Ok(HealthCheckResponse { status: HealthStatus::Healthy.into(), ..Default::default() }.encode_to_vec())
});
const SICK: Fake = Fake::Answers(|_| {
    let message = "no disk".to_owned();
    let status = HealthStatus::Unhealthy.into();
    Ok(HealthCheckResponse { status, message, ..Default::default() }.encode_to_vec())
});

#[tokio::test]
async fn a_module_is_asked_itself_if_it_wants() {
    let mut nlb = Nlb::start().await;
    for deep in [true, false] {
        let module = nlb.add_checked_fake("a", 1, "v1", WELL, Some(by_module(&deep.to_string()))).await;
        nlb.becomes("a", HealthStatus::Healthy).await;
        let asked: HealthCheckRequest = module.last("HealthCheck").expect("it was asked");
        assert_eq!((asked.instance_id.as_str(), asked.deep_check), ("a", deep));
        let snapshot = nlb.registry.snapshot();
        nlb.registry.remove("a", snapshot.record("a").unwrap().epoch).unwrap();
    }
}

#[tokio::test]
async fn a_module_whose_check_does_not_answer_healthy_stays_starting() {
    let mut nlb = Nlb::start().await;
    for (name, host, fake, why) in [
        ("sick", 1, SICK, "no disk"),
        ("busy", 2, Fake::REFUSES, "busy"),
        ("old", 3, Fake::UNIMPLEMENTED, "does not implement this call"),
        ("garbled", 4, Fake::GARBLED, "undecodable"),
        ("gone", 5, Fake::Unreachable, "unreachable"),
        ("mail", 6, Fake::NotGrpc, "unreachable"),
        ("silent", 7, Fake::Silent, "no answer within"),
    ] {
        nlb.add_checked_fake(name, host, "v1", fake, Some(by_module("false"))).await;
        let module = timeout(Duration::from_secs(10), async {
            loop {
                let said = nlb.info(name).await.details["health.check"].clone();
                if !said.contains("not checked yet") {
                    break said;
                }
                sleep(Duration::from_millis(20)).await;
            }
        });
        let module = module.await.unwrap_or_else(|_| panic!("{name} was not checked"));
        assert!(module.starts_with("STARTING: never passed: ") && module.contains(why), "{name}: {module}");
        assert_eq!(nlb.listed(name).await.unwrap().health_status(), HealthStatus::Starting);
    }
}
