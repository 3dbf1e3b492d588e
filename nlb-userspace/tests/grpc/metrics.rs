//! The NLB's metrics, current and over the last hour.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb::model::traffic::{Counts, LimitCounts, Traffic};
use nlb::model::{Backend, ForwardMode, L4, RouteKey};
use nlb::telemetry::metrics::catalogue;
use nlb_proto::*;
use prost_types::Timestamp;
use tonic::Code;

use super::fleet::{registration, registration_at};
use super::nlb::Nlb;
use super::reports::report;

pub fn backend(instance_id: &str, port: u16) -> Arc<Backend> {
    let (addr, mode) = ("10.0.0.1".parse().unwrap(), ForwardMode::Nat);
    let route = Some(RouteKey { id: "web".into(), operators: false });
    Arc::new(Backend { instance_id: instance_id.into(), route, addr, port, mode, snat: Default::default() })
}

/// Numbers that differ, so that no two metrics can be confused.
pub fn counted(times: u64) -> Traffic {
    let counts = Counts {
        new_flows: 11 * times,
        closed_flows: 4 * times,
        active_flows: 7,
        active_tcp_flows: 5,
        packets: 101 * times,
        bytes: 1009 * times,
        reply_packets: 103 * times,
        reply_bytes: 1013 * times,
        resets: 3 * times,
    };
    Traffic {
        backends: [(backend("alb-1", 80), counts), (backend("alb-1", 81), counts)].into(),
        limits: [("few".to_owned(), LimitCounts { passed: 31 * times, refused: 37 * times })].into(),
        service_flows: [(("192.0.2.1".parse().unwrap(), 80, L4::Tcp), 7)].into(),
        exits: [(("send", "forward"), 200 * times), (("drop", "loop"), times)].into(),
        packets_seen: 201 * times,
        unrecorded: 2 * times,
        full: 4 * times,
        unasked: 5 * times,
        lost_redirects: [(("eth0".to_owned(), "ENXIO".to_owned()), 41 * times)].into(),
    }
}

pub fn ask(names: &[&str]) -> GetNlbMetricsRequest {
    let metric_names = names.iter().map(|name| name.to_string()).collect();
    GetNlbMetricsRequest { metric_names, ..Default::default() }
}

pub fn after(seconds: i64) -> Option<Timestamp> {
    let now: Timestamp = SystemTime::now().into();
    Some(Timestamp { seconds: now.seconds + seconds, nanos: 0 })
}

/// Values by name and labels, these as `key=value`.
pub fn values(points: &[MetricDataPoint]) -> HashMap<String, f64> {
    let values: HashMap<String, f64> = points.iter().map(|point| (series(point), point.value)).collect();
    assert_eq!(values.len(), points.len(), "one point for each series");
    values
}

/// Values of several times, likewise.
pub fn values_in_time(points: &[MetricDataPoint]) -> BTreeMap<String, Vec<f64>> {
    let mut values = BTreeMap::<String, Vec<f64>>::new();
    points.iter().for_each(|point| values.entry(series(point)).or_default().push(point.value));
    values
}

fn series(point: &MetricDataPoint) -> String {
    let mut labels: Vec<String> = point.labels.iter().map(|(k, v)| format!("{k}={v}")).collect();
    labels.sort();
    format!("{}{{{}}}", point.name, labels.join(","))
}

impl Nlb {
    async fn metrics(&mut self, names: &[&str]) -> HashMap<String, f64> {
        values(&self.modules.get_nlb_metrics(ask(names)).await.unwrap().into_inner().metrics)
    }

    /// Publishes the numbers, and waits until they are sampled.
    pub async fn sampled(&mut self, traffic: Traffic) {
        let seen = traffic.packets_seen as f64;
        self.traffic.send_replace(Arc::new(traffic));
        self.wait_for("nlb_packets_seen_total{}", seen).await;
    }

    /// Waits until a sample has this value.
    pub async fn wait_for(&mut self, series: &str, value: f64) {
        let (name, _) = series.split_once('{').expect("a name and labels");
        let sampled = async {
            while self.metrics(&[name]).await.get(series) != Some(&value) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        let waited = tokio::time::timeout(Duration::from_secs(20), sampled).await;
        waited.unwrap_or_else(|_| panic!("{series} did not become {value}"));
    }
}

#[tokio::test]
async fn the_whole_catalogue_is_answered_with_what_was_counted() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let stats = ModuleStats {
        cpu_usage_percent: 12.5,
        memory_usage_mb: 2.0,
        avg_latency_ms: 1.5,
        custom_stats: [("queue_depth".into(), "9".into())].into(),
        ..Default::default()
    };
    let beat = HeartbeatRequest {
        instance_id: "alb-1".into(),
        registration_id: id,
        current_stats: Some(stats),
        ..Default::default()
    };
    nlb.modules.heartbeat(beat).await.unwrap();
    nlb.sampled(counted(1)).await;
    let answer = nlb.modules.get_nlb_metrics(ask(&[])).await.unwrap().into_inner();
    let found = values(&answer.metrics);
    for (series, value) in [
        ("nlb_packets_total{reason=forward,verdict=send}", 200.0),
        ("nlb_packets_total{reason=loop,verdict=drop}", 1.0),
        ("nlb_unrecorded_packets_total{}", 2.0),
        ("nlb_full_pools_total{}", 4.0),
        ("nlb_unasked_destinations_total{}", 5.0),
        ("nlb_lost_redirects_total{error=ENXIO,interface=eth0}", 41.0),
        ("nlb_learned_routes_number{}", 0.0),
        ("nlb_desired_revision_number{}", 1.0),
        ("nlb_applied_revision_number{}", 1.0),
        ("nlb_apply_failures_total{}", 0.0),
        ("nlb_service_active_flows{port=80,protocol=tcp,vip=192.0.2.1}", 7.0),
        ("nlb_modules{health=healthy,module_type=alb}", 1.0),
        ("nlb_modules{health=unhealthy,module_type=alb}", 0.0),
        ("nlb_forwarded_new_flows_total{}", 22.0),
        ("nlb_instance_new_flows_total{instance_id=alb-1}", 22.0),
        ("nlb_instance_closed_flows_total{instance_id=alb-1}", 8.0),
        ("nlb_instance_active_flows{instance_id=alb-1}", 14.0),
        ("nlb_instance_active_tcp_flows{instance_id=alb-1}", 10.0),
        ("nlb_instance_packets_total{instance_id=alb-1}", 202.0),
        ("nlb_instance_bytes_total{instance_id=alb-1}", 2018.0),
        ("nlb_instance_reply_packets_total{instance_id=alb-1}", 206.0),
        ("nlb_instance_reply_bytes_total{instance_id=alb-1}", 2026.0),
        ("nlb_instance_resets_total{instance_id=alb-1}", 6.0),
        ("nlb_version_packets_total{deployment=ALB,version=v1}", 202.0),
        ("nlb_backend_packets_total{backend=10.0.0.1:80,instance_id=alb-1,route_id=web}", 101.0),
        ("nlb_backend_reply_bytes_total{backend=10.0.0.1:81,instance_id=alb-1,route_id=web}", 1013.0),
        ("nlb_rate_limit_passed_total{limit_id=few}", 31.0),
        ("nlb_rate_limit_refused_total{limit_id=few}", 37.0),
        ("nlb_instance_cpu_usage_ratio{instance_id=alb-1}", 0.125),
        ("nlb_instance_memory_usage_bytes{instance_id=alb-1}", 2097152.0),
        ("nlb_instance_latency_seconds{instance_id=alb-1}", 0.0015),
        ("nlb_instance_queued_requests{instance_id=alb-1}", 9.0),
    ] {
        assert_eq!(found.get(series), Some(&value), "{series}");
    }
    for metric in catalogue::metrics() {
        assert!(answer.metrics.iter().any(|point| point.name == metric.name), "{} is missing", metric.name);
    }
    let collected_at = answer.collected_at.unwrap();
    assert!(answer.metrics.iter().all(|point| point.timestamp == Some(collected_at)));
}

#[tokio::test]
async fn failures_to_apply_are_counted() {
    let mut nlb = Nlb::start().await;
    nlb.maps.fail_after(0, 1);
    nlb.modules.register_module(registration("alb-1")).await.unwrap();
    nlb.wait_for("nlb_apply_failures_total{}", 1.0).await;
}

#[tokio::test]
async fn names_and_beginnings_select() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.sampled(counted(1)).await;
    let some = nlb.metrics(&["nlb_version_bytes_total", "nlb_packets_*"]).await;
    let mut names: Vec<&str> = some.keys().map(|series| series.split('{').next().unwrap()).collect();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names, ["nlb_packets_seen_total", "nlb_packets_total", "nlb_version_bytes_total"]);
}

#[tokio::test]
async fn times_select_seconds_and_aggregates_sum_them_up() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.sampled(counted(1)).await;
    nlb.sampled(counted(3)).await;
    let within = |start: i64, end: i64, aggregate| GetNlbMetricsRequest {
        start_time: after(start),
        end_time: after(end),
        aggregate,
        ..ask(&["nlb_instance_packets_total", "nlb_instance_active_flows"])
    };
    let answer = nlb.modules.get_nlb_metrics(within(-60, 60, false)).await.unwrap().into_inner();
    let packets = answer.metrics.iter().filter(|point| point.name == "nlb_instance_packets_total");
    let packets: Vec<(i64, f64)> =
        packets.map(|point| (point.timestamp.unwrap().seconds, point.value)).collect();
    assert!(packets.is_sorted(), "oldest first: {packets:?}");
    let found = |value: f64| packets.iter().any(|(_, found)| *found == value);
    assert!(found(202.0) && found(606.0), "{packets:?}");
    assert!(answer.history_since.is_some());

    let sum = nlb.modules.get_nlb_metrics(within(-60, 60, true)).await.unwrap().into_inner();
    let sum = values(&sum.metrics);
    assert_eq!(sum["nlb_instance_packets_total{instance_id=alb-1}"], 606.0, "the whole count, from 0");
    let mean = sum["nlb_instance_active_flows{instance_id=alb-1}"];
    assert!(mean > 0.0 && mean <= 14.0, "{mean}");
    let all = GetNlbMetricsRequest { aggregate: true, ..ask(&["nlb_instance_packets_total"]) };
    let all = nlb.modules.get_nlb_metrics(all).await.unwrap().into_inner();
    assert_eq!(all.metrics[0].value, 606.0, "without times, over the whole record");

    for (start, end) in [(-7200, -3700), (60, 120)] {
        let outside = nlb.modules.get_nlb_metrics(within(start, end, false)).await.unwrap().into_inner();
        assert!(outside.metrics.is_empty(), "{:?}", outside.metrics);
    }
    let open = GetNlbMetricsRequest { end_time: None, ..within(-60, 0, false) };
    assert!(!nlb.modules.get_nlb_metrics(open).await.unwrap().into_inner().metrics.is_empty());
}

#[tokio::test]
async fn instances_are_distinguished() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    nlb.add(registration_at("alb-2", 2, "v2")).await;
    nlb.sampled(counted(1)).await;
    report(&mut nlb, |_| {}).await.unwrap();
    let request = GetModuleMetricsRequest { instance_id: "alb-1".into(), ..Default::default() };
    let answer = nlb.modules.get_module_metrics(request.clone()).await.unwrap().into_inner();
    let metrics = answer.metrics.unwrap();
    assert_eq!((metrics.instance_id.as_str(), metrics.module_type()), ("alb-1", ModuleType::Alb));
    let found = values(&metrics.metrics);
    assert_eq!(found["nlb_instance_packets_total{instance_id=alb-1}"], 202.0);
    assert_eq!(found["nlb_backend_packets_total{backend=10.0.0.1:80,instance_id=alb-1,route_id=web}"], 101.0);
    assert_eq!(found["requests_total{path=/}"], 40.0);
    assert!(found.keys().all(|series| !series.contains("alb-2") && !series.contains("nlb_packets")));
    let within = GetModuleMetricsRequest {
        metric_names: vec!["requests_total".into()],
        start_time: after(-60),
        ..request
    };
    let within = nlb.modules.get_module_metrics(within).await.unwrap().into_inner().metrics.unwrap().metrics;
    assert_eq!(within.iter().map(|point| point.value).collect::<Vec<_>>(), [30.0, 40.0]);
    let unheard = GetModuleMetricsRequest {
        instance_id: "alb-1".into(),
        metric_names: vec!["errors_total".into()],
        ..Default::default()
    };
    let none = nlb.modules.get_module_metrics(unheard).await.unwrap().into_inner();
    assert!(none.metrics.unwrap().metrics.is_empty(), "no module reported it");
    let none = nlb.modules.get_nlb_metrics(ask(&["errors_*"])).await.unwrap().into_inner();
    assert!(none.metrics.is_empty());
    let ghost = GetModuleMetricsRequest { instance_id: "ghost".into(), ..Default::default() };
    assert_eq!(nlb.modules.get_module_metrics(ghost).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn malformed_questions_are_refused_by_their_field() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    let names = |names: &[&str]| -> Vec<String> { names.iter().map(|name| name.to_string()).collect() };
    let bad_time = Some(Timestamp { seconds: 0, nanos: -1 });
    let many = vec!["*".to_owned(); 65];
    let long = "n".repeat(129);
    let mut refusals = Vec::new();
    for (metric_names, field) in [
        (names(&["nlb_modules", "nlb_moduls"]), "metric_names[1]"),
        (names(&["nlb_module"]), "metric_names[0]"),
        (names(&["nlb_moduls*"]), "metric_names[0]"),
        (names(&[""]), "metric_names[0]"),
        (names(&["nlb_modules\0"]), "metric_names[0]"),
        (names(&[&long]), "metric_names[0]"),
        (many, "metric_names"),
    ] {
        let ask = GetNlbMetricsRequest { metric_names: metric_names.clone(), ..Default::default() };
        refusals.push((nlb.modules.get_nlb_metrics(ask).await.unwrap_err(), field));
        let request = GetModuleMetricsRequest { metric_names: metric_names.clone(), ..of_module(None, None) };
        refusals.push((nlb.modules.get_module_metrics(request).await.unwrap_err(), field));
        let request = StreamNlbMetricsRequest { metric_names, ..Default::default() };
        refusals.push((nlb.modules.stream_nlb_metrics(request).await.unwrap_err(), field));
    }
    for (start_time, end_time, field) in [
        (after(0), after(-1), "start_time"),
        (bad_time, None, "start_time"),
        (None, bad_time, "end_time"),
        (None, Some(Timestamp { seconds: i64::MAX, nanos: 0 }), "end_time"),
    ] {
        let request = GetNlbMetricsRequest { start_time, end_time, ..ask(&[]) };
        refusals.push((nlb.modules.get_nlb_metrics(request).await.unwrap_err(), field));
        let request = of_module(start_time, end_time);
        refusals.push((nlb.modules.get_module_metrics(request).await.unwrap_err(), field));
    }
    for instance_id in ["", "a b", "a\0"] {
        let request = GetModuleMetricsRequest { instance_id: instance_id.into(), ..Default::default() };
        refusals.push((nlb.modules.get_module_metrics(request).await.unwrap_err(), "instance_id"));
    }
    let negative = StreamNlbMetricsRequest { interval_seconds: -1, ..Default::default() };
    refusals.push((nlb.modules.stream_nlb_metrics(negative).await.unwrap_err(), "interval_seconds"));
    for (status, field) in &refusals {
        assert_eq!(status.code(), Code::InvalidArgument, "{field}: {status}");
        assert!(
            status.message().starts_with(&format!("{field}: "))
                || status.message().starts_with(&format!("{field} ")),
            "{field}: {}",
            status.message()
        );
    }
    let similar = refusals[0].0.message();
    assert!(similar.contains("nlb_modules"), "{similar}");
}

fn of_module(start_time: Option<Timestamp>, end_time: Option<Timestamp>) -> GetModuleMetricsRequest {
    GetModuleMetricsRequest { instance_id: "alb-1".into(), start_time, end_time, ..Default::default() }
}
