//! Metrics that modules report.

use nlb_proto::*;
use prost_types::Timestamp;
use tonic::{Code, Status};

use super::fleet::registration;
use super::metrics::{after, ask, values};
use super::nlb::Nlb;

/// Reports two points of one series, ten seconds apart, after `spoil`.
pub async fn report(
    nlb: &mut Nlb,
    spoil: impl FnOnce(&mut ReportMetricsRequest),
) -> Result<ReportMetricsResponse, Status> {
    let point = |value, timestamp| MetricDataPoint {
        name: "requests_total".into(),
        value,
        labels: [("path".into(), "/".into())].into(),
        timestamp,
    };
    let metrics =
        ModuleMetrics { metrics: vec![point(30.0, after(-10)), point(40.0, after(0))], ..Default::default() };
    let mut request =
        ReportMetricsRequest { instance_id: "alb-1".into(), metrics: Some(metrics), ..Default::default() };
    spoil(&mut request);
    nlb.modules.report_metrics(request).await.map(|answer| answer.into_inner())
}

fn first(request: &mut ReportMetricsRequest) -> &mut MetricDataPoint {
    &mut metrics(request).metrics[0]
}

pub fn metrics(request: &mut ReportMetricsRequest) -> &mut ModuleMetrics {
    request.metrics.as_mut().unwrap()
}

#[tokio::test]
async fn reports_are_kept_by_instance_and_shown_with_the_rest() {
    let mut nlb = Nlb::start().await;
    let id = nlb.add(registration("alb-1")).await;
    let answer = report(&mut nlb, |request| request.registration_id = id).await.unwrap();
    assert!(answer.acknowledged && answer.processed_at.is_some(), "{}", answer.message);
    let answer = nlb.modules.get_nlb_metrics(ask(&[])).await.unwrap().into_inner();
    let own = &answer.module_metrics["alb-1"];
    assert_eq!((own.instance_id.as_str(), own.module_type()), ("alb-1", ModuleType::Alb));
    assert_eq!(values(&own.metrics)["requests_total{path=/}"], 40.0);

    let aggregate = GetNlbMetricsRequest { aggregate: true, start_time: after(-60), ..ask(&["requests_*"]) };
    let answer = nlb.modules.get_nlb_metrics(aggregate).await.unwrap().into_inner();
    assert!(answer.metrics.is_empty());
    assert_eq!(answer.module_metrics["alb-1"].metrics[0].value, 10.0, "the increase");

    let old = report(&mut nlb, |request| first(request).timestamp = after(-7200)).await.unwrap();
    assert!(old.message.contains("1 are older than an hour"), "{}", old.message);
}

#[tokio::test]
async fn a_report_needs_a_registered_instance_and_no_wrong_proof() {
    let mut nlb = Nlb::start().await;
    assert_eq!(report(&mut nlb, |_| {}).await.unwrap_err().code(), Code::NotFound);
    nlb.add(registration("alb-1")).await;
    let wrong = report(&mut nlb, |request| request.registration_id = "guess".into()).await.unwrap_err();
    assert_eq!(wrong.code(), Code::PermissionDenied, "{wrong}");
    assert!(nlb.modules.get_nlb_metrics(ask(&[])).await.unwrap().into_inner().module_metrics.is_empty());
}

/// A fault in an otherwise valid report, and the field that the refusal must name.
type Case = (fn(&mut ReportMetricsRequest), &'static str);

const CASES: &[Case] = &[
    (|r| r.instance_id.clear(), "instance_id"),
    (|r| r.instance_id = "a\0b".into(), "instance_id"),
    (|r| r.metrics = None, "metrics"),
    (|r| r.reported_at = Some(Timestamp { seconds: -1, nanos: 0 }), "reported_at"),
    (|r| r.reported_at = after(3600), "reported_at"),
    (|r| metrics(r).instance_id = "alb-2".into(), "metrics.instance_id"),
    (|r| metrics(r).module_type = 99, "metrics.module_type"),
    (|r| metrics(r).module_type = ModuleType::Dblb.into(), "metrics.module_type"),
    (|r| metrics(r).collected_at = Some(Timestamp { seconds: 1, nanos: -1 }), "metrics.collected_at"),
    (|r| metrics(r).collected_at = after(3600), "metrics.collected_at"),
    (|r| metrics(r).metrics = vec![MetricDataPoint::default(); 1001], "metrics.metrics"),
    (|r| first(r).name.clear(), "metrics.metrics[0].name"),
    (|r| first(r).name = "a b".into(), "metrics.metrics[0].name"),
    (|r| first(r).name = "a*".into(), "metrics.metrics[0].name"),
    (|r| first(r).name = "a\0".into(), "metrics.metrics[0].name"),
    (|r| first(r).name = "a".repeat(129), "metrics.metrics[0].name"),
    (|r| first(r).name = "nlb_packets_total".into(), "metrics.metrics[0].name"),
    (|r| first(r).value = f64::NAN, "metrics.metrics[0].value"),
    (|r| first(r).value = f64::NEG_INFINITY, "metrics.metrics[0].value"),
    (|r| drop(first(r).labels.insert("k".into(), "v\n".into())), "metrics.metrics[0].labels.k"),
    (|r| drop(first(r).labels.insert(String::new(), "v".into())), "metrics.metrics[0].labels"),
    (
        |r| first(r).labels = (0..65).map(|n| (n.to_string(), "v".into())).collect(),
        "metrics.metrics[0].labels",
    ),
    (|r| first(r).timestamp = after(3600), "metrics.metrics[0].timestamp"),
    (
        |r| first(r).timestamp = Some(Timestamp { seconds: i64::MAX, nanos: 0 }),
        "metrics.metrics[0].timestamp",
    ),
];

#[tokio::test]
async fn every_malformed_report_is_refused_by_its_field() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    for (case, (spoil, field)) in CASES.iter().enumerate() {
        let status = report(&mut nlb, spoil).await.expect_err(&format!("case {case}: {field}"));
        assert_eq!(status.code(), Code::InvalidArgument, "case {case}: {status}");
        let named = status.message().split(": ").next().unwrap();
        assert_eq!(named, *field, "case {case}: {}", status.message());
    }
    let kept = nlb.modules.get_nlb_metrics(ask(&[])).await.unwrap().into_inner().module_metrics;
    assert!(kept.is_empty(), "nothing was stored");
}

#[tokio::test]
async fn what_fits_of_a_report_is_taken() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    let point = |n: usize| MetricDataPoint { name: format!("series_{n}"), ..Default::default() };
    let taken = report(&mut nlb, |r| metrics(r).metrics = (0..1000).map(point).collect()).await.unwrap();
    assert_eq!((taken.acknowledged, taken.message.as_str()), (true, "1000 points taken"));
    let labelled = |n: usize| MetricDataPoint {
        name: format!("labelled_{n}"),
        labels: (0..4).map(|label| (format!("label_{label}"), "x".repeat(40))).collect(),
        ..Default::default()
    };
    let taken = report(&mut nlb, |r| metrics(r).metrics = (0..1000).map(labelled).collect()).await.unwrap();
    assert!(taken.acknowledged, "{taken:?}");
    for part in ["points taken; ", " left out: ", "; 1000 series that were not reported any more gave way"] {
        assert!(taken.message.contains(part), "{}", taken.message);
    }
    let huge = |n: usize| MetricDataPoint {
        name: format!("huge_{n}"),
        labels: (0..64).map(|label| (format!("label_{label}"), "x".repeat(4096))).collect(),
        ..Default::default()
    };
    let none = report(&mut nlb, |r| metrics(r).metrics = vec![huge(0)]).await.unwrap();
    assert!(!none.acknowledged && none.message.starts_with("0 points taken; 1 left out"), "{none:?}");
}
