//! A hundred subscribers with a connection each, some of which do not read.

use std::time::Duration;

use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::*;
use prost::Message as _;
use prost_types::Timestamp;
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use super::fake_module::Fake;
use super::metrics::{after, ask};
use super::nlb::Nlb;

const SUBSCRIBERS: usize = 100;
const MESSAGES: usize = 8;
const NAME: &str = "nlb_start_time_seconds";

/// More than a subscriber takes without reading.
const WINDOW: u32 = 1 << 16;
const LONG_ANSWERS: Fake = Fake::Answers(|_| {
    let point = |n: usize| MetricDataPoint { name: format!("{n:0>120}"), value: 1.0, ..Default::default() };
    let metrics = Some(ModuleMetrics { metrics: (0..1000).map(point).collect(), ..Default::default() });
    Ok(GetMetricsResponse { metrics, ..Default::default() }.encode_to_vec())
});

async fn connect(nlb: &Nlb) -> Channel {
    let endpoint = Endpoint::from_shared(format!("http://{}", nlb.address)).unwrap();
    endpoint.initial_stream_window_size(WINDOW).connect().await.unwrap()
}

/// The times of one subscriber's samples.
async fn front(channel: Channel, interval_seconds: i32) -> Vec<Timestamp> {
    let request =
        StreamMetricsRequest { interval_seconds, metric_names: vec![NAME.into()], ..Default::default() };
    let mut stream = ModuleServiceClient::new(channel).stream_metrics(request).await.unwrap().into_inner();
    let mut times = Vec::new();
    while times.len() < MESSAGES {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.metrics.unwrap().metrics.len(), 1);
        times.extend(message.timestamp);
    }
    times
}

async fn own(channel: Channel, interval_seconds: i32) -> Vec<Timestamp> {
    let request =
        StreamNlbMetricsRequest { interval_seconds, metric_names: vec![NAME.into()], ..Default::default() };
    let mut stream = NlbServiceClient::new(channel).stream_nlb_metrics(request).await.unwrap().into_inner();
    let mut times = Vec::new();
    while times.len() < MESSAGES {
        let message = stream.message().await.unwrap().unwrap();
        assert_eq!(message.metrics.len(), 1);
        times.extend(message.timestamp);
    }
    times
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_subscribers_keep_their_interval_and_do_not_notice_who_does_not_read() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("alb-1", 1, "v1", LONG_ANSWERS).await;
    // They wait for a module's long answer every second, and do not read it.
    let request = StreamMetricsRequest { instance_id: "alb-1".into(), ..Default::default() };
    let mut idlers = Vec::new();
    for _ in 0..3 {
        let mut client = ModuleServiceClient::new(connect(&nlb).await);
        idlers.push((client.stream_metrics(request.clone()).await.unwrap().into_inner(), client));
    }
    let mut subscribers = tokio::task::JoinSet::new();
    for n in 0..SUBSCRIBERS {
        let (channel, interval) = (connect(&nlb).await, n as i32 / 2 % 2 + 1);
        subscribers.spawn(async move {
            (interval, if n % 2 == 0 { front(channel, interval).await } else { own(channel, interval).await })
        });
    }
    let mut received = Vec::new();
    while let Some(subscriber) = subscribers.join_next().await {
        received.push(subscriber.unwrap());
    }
    // All subscribers share the recorder's samples, which the record lists.
    let request = GetNlbMetricsRequest { start_time: after(-120), end_time: after(1), ..ask(&[NAME]) };
    let taken = nlb.modules.get_nlb_metrics(request).await.unwrap().into_inner().metrics;
    let taken: Vec<Timestamp> = taken.into_iter().filter_map(|point| point.timestamp).collect();
    for (interval, times) in &received {
        let first = taken.iter().position(|at| *at == times[0]).expect("a sample that was taken");
        let last = taken.iter().position(|at| at == times.last().unwrap()).expect("another");
        if *interval == 1 {
            assert_eq!(times[..], taken[first..=last], "every sample once, in order");
        }
        for pair in times.windows(2) {
            let gap = seconds(&pair[1]) - seconds(&pair[0]);
            assert!(gap > f64::from(*interval) - 0.6, "{gap} s, with an interval of {interval} s");
        }
    }
    assert_eq!(received.len(), SUBSCRIBERS);
    for (mut idler, _client) in idlers {
        let mut messages = 0;
        let status = loop {
            match tokio::time::timeout(Duration::from_secs(20), idler.message()).await.expect("it ends") {
                Ok(message) => messages += usize::from(message.is_some()),
                Err(status) => break status,
            }
        };
        assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        assert!(messages < MESSAGES, "{messages} messages were kept for a subscriber that did not read");
    }
}

fn seconds(at: &Timestamp) -> f64 {
    at.seconds as f64 + f64::from(at.nanos) / 1e9
}
