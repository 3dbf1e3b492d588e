//! GetMetrics of the NLB's own ModuleService: the same metrics as GetNLBMetrics, and a module's own.

use std::collections::BTreeMap;

use nlb::telemetry::metrics::catalogue;
use nlb_proto::*;
use prost::Message as _;
use tonic::Code;

use super::fake_module::Fake;
use super::fleet::{registration, without_control};
use super::metrics::{after, ask, counted, values_in_time};
use super::nlb::Nlb;

#[tokio::test]
async fn the_front_answers_what_the_nlb_measures() {
    let mut nlb = Nlb::start().await;
    nlb.add(without_control(registration("alb-1"))).await;
    nlb.sampled(counted(1)).await;
    nlb.sampled(counted(3)).await;
    let own = async |nlb: &mut Nlb, request: GetMetricsRequest| {
        let answer = nlb.front.get_metrics(request).await.unwrap().into_inner();
        values_in_time(&answer.metrics.unwrap().metrics)
    };
    for start_time in [None, after(-60)] {
        let same = |series: &BTreeMap<String, Vec<f64>>| {
            let steady = |name: &&String| !name.starts_with("nlb_history") && !name.contains("answered");
            series
                .iter()
                .filter(|(name, _)| steady(name))
                .map(|(n, v)| (n.clone(), v.clone()))
                .collect::<Vec<_>>()
        };
        // A period that is over, so that both see the same samples.
        let end_time = start_time.and_then(|_| after(0));
        let request = GetNlbMetricsRequest { start_time, end_time, ..ask(&[]) };
        let nlbs = nlb.modules.get_nlb_metrics(request).await.unwrap().into_inner().metrics;
        let request = GetMetricsRequest { start_time, end_time, ..Default::default() };
        let fronts = own(&mut nlb, request.clone()).await;
        assert_eq!(same(&fronts), same(&values_in_time(&nlbs)));
        assert!(fronts.contains_key("nlb_packets_total{reason=loop,verdict=drop}"));

        let request = GetMetricsRequest { instance_id: "alb-1".into(), ..request };
        let of_instance = own(&mut nlb, request).await;
        let answer = GetModuleMetricsRequest {
            instance_id: "alb-1".into(),
            start_time,
            end_time,
            ..Default::default()
        };
        let answer = nlb.modules.get_module_metrics(answer).await.unwrap().into_inner();
        assert_eq!(same(&of_instance), same(&values_in_time(&answer.metrics.unwrap().metrics)));
        assert!(of_instance.keys().all(|series| series.contains("instance_id=alb-1")), "{of_instance:?}");
    }
}

#[tokio::test]
async fn a_modules_own_figures_come_beside_the_nlbs() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("alb-1", 1, "v1", WITH_METRICS).await;
    nlb.wait_for("nlb_instance_new_flows_total{instance_id=alb-1}", 0.0).await;
    for (asked, expected, passed_on) in [
        (&[][..], &["module_a", "module_b", "nlb_instance_answered_ratio"][..], Some(&[][..])),
        (&["module_a"], &["module_a"], Some(&["module_a"])),
        (&["module_*", "nlb_instance_active_flows"], &["module_a", "module_b"], Some(&[])),
        (&["nlb_instance_answered_ratio"], &["nlb_instance_answered_ratio"], Some(&[])),
        (&["*"], &["module_a", "module_b", "nlb_instance_answered_ratio"], Some(&[])),
        (&["nlb_instance_active_flows"], &[], None),
        (&["of_another"], &[], Some(&["of_another"])),
    ] {
        let before = module.calls().len();
        let request = GetMetricsRequest { instance_id: "alb-1".into(), ..Default::default() };
        let request =
            GetMetricsRequest { metric_names: asked.iter().map(|n| n.to_string()).collect(), ..request };
        let answer = nlb.front.get_metrics(request).await.unwrap().into_inner().metrics.unwrap();
        let sampled = catalogue::metrics().map(|metric| metric.name).collect::<Vec<_>>();
        let mut names: Vec<&str> = answer.metrics.iter().map(|point| point.name.as_str()).collect();
        assert!(!names.contains(&"nlb_forged_total"), "a module cannot report the NLB's metrics");
        names.retain(|name| !sampled.contains(name));
        names.sort_unstable();
        assert_eq!(names, expected, "{asked:?}");
        assert_eq!(module.calls().len() - before, usize::from(passed_on.is_some()), "{asked:?}");
        if let Some(passed_on) = passed_on {
            let question: GetMetricsRequest = module.last("GetMetrics").unwrap();
            assert_eq!(question.metric_names, passed_on, "{asked:?}");
        }
    }
    for name in ["nlb_instance_activ_flows", "nlb_modules_*", ""] {
        let metric_names = vec![name.to_owned()];
        let request = GetMetricsRequest { instance_id: "alb-1".into(), metric_names, ..Default::default() };
        let refusal = nlb.front.get_metrics(request).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{name:?}");
        assert!(refusal.message().starts_with("metric_names[0]"), "{refusal}");
    }
}

#[tokio::test]
async fn a_module_that_does_not_answer_is_named_whatever_was_asked_of_it() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("alb-1", 1, "v1", Fake::GARBLED).await;
    let request = GetMetricsRequest {
        instance_id: "alb-1".into(),
        metric_names: vec!["module_a".into()],
        ..Default::default()
    };
    let points = nlb.front.get_metrics(request).await.unwrap().into_inner().metrics.unwrap().metrics;
    let [answered] = &points[..] else { panic!("one point: {points:?}") };
    assert_eq!((answered.name.as_str(), answered.value), ("nlb_instance_answered_ratio", 0.0));
    assert!(answered.labels["outcome"].contains("undecodable"));
}

/// A module with metrics of its own, and with one in the NLB's name.
const WITH_METRICS: Fake = Fake::Answers(|_| {
    let point = |name: &str| MetricDataPoint { name: name.into(), value: 3.0, ..Default::default() };
    let metrics = ["module_a", "module_b", "nlb_forged_total"].map(point).into();
    let metrics = Some(ModuleMetrics { metrics, ..Default::default() });
    Ok(GetMetricsResponse { metrics, ..Default::default() }.encode_to_vec())
});
