//! Streams of metrics: a message at once, one in every interval, and none kept for subscribers that do not
//! read.

use std::time::Duration;

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::*;
use tonic::Code;
use tonic::transport::Channel;

use super::fleet::{registration, registration_at};
use super::nlb::Nlb;
use super::reports::{metrics, report};

#[tokio::test]
async fn a_stream_begins_at_once_and_goes_on() {
    let mut nlb = Nlb::start().await;
    nlb.add(registration("alb-1")).await;
    report(&mut nlb, |_| {}).await.unwrap();
    let request = |include_modules| StreamNlbMetricsRequest {
        metric_names: vec!["nlb_packets_seen_total".into(), "requests_total".into()],
        include_modules,
        ..Default::default()
    };
    let mut stream = nlb.modules.stream_nlb_metrics(request(true)).await.unwrap().into_inner();
    let mut before = None;
    for _ in 0..3 {
        let message = stream.message().await.unwrap().unwrap();
        let names: Vec<&str> = message.metrics.iter().map(|point| point.name.as_str()).collect();
        assert_eq!(names, ["nlb_packets_seen_total"]);
        assert_eq!(message.module_metrics["alb-1"].metrics[0].name, "requests_total");
        let at = message.timestamp.map(|at| (at.seconds, at.nanos));
        assert!(at > before, "{at:?} after {before:?}");
        before = at;
    }
    let mut brief = nlb.modules.stream_nlb_metrics(request(false)).await.unwrap().into_inner();
    assert!(brief.message().await.unwrap().unwrap().module_metrics.is_empty());
}

#[tokio::test]
async fn a_subscriber_that_does_not_read_is_dropped() {
    let mut nlb = Nlb::start().await;
    for (n, host) in (1..=5).enumerate() {
        let instance_id = format!("alb-{n}");
        nlb.add(registration_at(&instance_id, host, "v1")).await;
        report(&mut nlb, |request| {
            request.instance_id = instance_id;
            let point =
                |n: usize| MetricDataPoint { name: format!("{n:0>100}"), value: 1.0, ..Default::default() };
            metrics(request).metrics = (0..200).map(point).collect();
        })
        .await
        .unwrap();
    }
    let request = StreamNlbMetricsRequest { include_modules: true, ..Default::default() };
    // One message fills what this client takes without reading.
    let channel = Channel::from_shared(format!("http://{}", nlb.address)).unwrap();
    let channel = channel.initial_stream_window_size(1 << 16).connect().await.unwrap();
    let mut slow = NlbServiceClient::new(channel);
    let mut stream = slow.stream_nlb_metrics(request).await.unwrap().into_inner();
    tokio::time::sleep(Duration::from_secs(8)).await;
    for _ in 0..4 {
        if let Err(status) = stream.message().await {
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
            return;
        }
    }
    panic!("messages were kept for a subscriber that did not read");
}

#[tokio::test]
async fn streams_end_when_the_server_stops() {
    let mut nlb = Nlb::start().await;
    let mut stream =
        nlb.modules.stream_nlb_metrics(StreamNlbMetricsRequest::default()).await.unwrap().into_inner();
    assert!(stream.message().await.unwrap().is_some());
    nlb.stop.notify_one();
    let status = loop {
        match stream.message().await {
            Ok(message) => assert!(message.is_some(), "it should end with a status"),
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable, "{status}");
}
