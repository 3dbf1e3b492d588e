//! Figures on the front of the fleet: GetStats, GetMetrics and StreamMetrics, of one instance or of the NLB.
//!
//! What the data path counted comes from us, and what a module counts of itself from the module. The NLB's counters
//! are never reset: whoever reads them takes differences.

use std::pin::Pin;
use std::time::{Duration, SystemTime};

use nlb_proto::{
    GetMetricsRequest, GetMetricsResponse, GetStatsRequest, GetStatsResponse, MetricDataPoint, ModuleMetrics,
    ModuleStats, ModuleType, StreamMetricsRequest, StreamMetricsResponse,
};
use prost_types::Timestamp;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::failure::Failure;
use super::fault::{self, Fault};
use super::fleet::{all_done, peer};
use super::numbers::signed_64;
use super::peers::Outcome;
use super::{Control, names, report};
use crate::stats::Counts;

const MAX_NAMES: usize = 1000;

pub type Samples = Pin<Box<dyn Stream<Item = Result<StreamMetricsResponse, Status>> + Send>>;

impl Control {
    /// With an empty id the data path's own counts.
    pub async fn stats(
        &self,
        request: GetStatsRequest,
        passed_on: bool,
    ) -> Result<GetStatsResponse, Failure> {
        if request.instance_id.is_empty() {
            if request.reset_counters {
                let problem = "is not for the NLB's own counters, which only grow; name an instance_id";
                return Err(Fault::new("reset_counters", problem).into());
            }
            let total = self.traffic.borrow().total();
            let stats = ModuleStats { since: Some(self.started_at.into()), ..seen(total) };
            return Ok(GetStatsResponse { stats: Some(stats) });
        }
        let id = fault::id("instance_id", &request.instance_id)?;
        let reset = request.reset_counters;
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&id)?;
        let outcome = self.ask(peer(record), request, passed_on).await;
        let counts = self.traffic.borrow().instance(&id);
        let said = outcome.to_string();
        let (mut stats, source) = match outcome {
            // Only the module can reset what it counts.
            outcome if reset => {
                let answers = all_done(vec![(id.clone(), outcome)])?;
                let answer = answers.into_iter().map(|(_, answer)| answer).next().unwrap_or_default();
                (answer.stats.unwrap_or_default(), "module".to_owned())
            }
            Outcome::Done(answer) => (answer.stats.unwrap_or_default(), "module".to_owned()),
            _ => match &record.report {
                Some(told) => (report::render(&id, told), format!("last heartbeat; {said}")),
                None => (seen(counts), format!("data path; {said}")),
            },
        };
        stats.instance_id = id;
        stats.custom_stats.insert("source".to_owned(), source);
        for (name, value) in points(counts) {
            stats.custom_stats.insert(name.to_owned(), value.to_string());
        }
        Ok(GetStatsResponse { stats: Some(stats) })
    }

    /// With an empty id the NLB's.
    pub async fn metrics(
        &self,
        request: GetMetricsRequest,
        passed_on: bool,
    ) -> Result<GetMetricsResponse, Failure> {
        let wanted = Wanted::parse(&request)?;
        let now = SystemTime::now();
        let mut metrics = ModuleMetrics { collected_at: Some(now.into()), ..Default::default() };
        // Nothing of the past is kept here: a span that leaves this moment out has no points.
        let covers_now = wanted.covers(now);
        if request.instance_id.is_empty() {
            metrics.module_type = ModuleType::Nlb.into();
            if covers_now {
                let total = self.traffic.borrow().total();
                let modules = self.registry.snapshot().modules.len() as u64;
                let own = points(total).into_iter().chain([("nlb_modules", modules)]);
                metrics.metrics = own.map(|(name, value)| point(name, value as f64, now)).collect();
            }
        } else {
            let id = fault::id("instance_id", &request.instance_id)?;
            let snapshot = self.registry.snapshot();
            let record = snapshot.record(&id)?;
            metrics.module_type = names::module_type_to_wire(record.registration.module.module_type).into();
            metrics.instance_id = id.clone();
            if covers_now {
                let counts = self.traffic.borrow().instance(&id);
                metrics.metrics =
                    points(counts).into_iter().map(|(name, value)| point(name, value as f64, now)).collect();
            }
            let outcome = self.ask(peer(record), request, passed_on).await;
            let mut answered = point("nlb_module_answered", 0.0, now);
            answered.labels.insert("outcome".to_owned(), outcome.to_string());
            if let Outcome::Done(answer) = outcome {
                answered.value = 1.0;
                metrics.metrics.extend(answer.metrics.unwrap_or_default().metrics);
            }
            metrics.metrics.push(answered);
        }
        metrics.metrics.retain(|point| wanted.names(&point.name));
        Ok(GetMetricsResponse { metrics: Some(metrics), collected_at: Some(now.into()) })
    }

    /// Ends with the reason when the instance goes.
    pub fn metrics_stream(&self, request: StreamMetricsRequest, passed_on: bool) -> Result<Samples, Failure> {
        let seconds = fault::unsigned_32("interval_seconds", request.interval_seconds)?.max(1);
        let asked = GetMetricsRequest {
            instance_id: request.instance_id,
            metric_names: request.metric_names,
            ..Default::default()
        };
        Wanted::parse(&asked)?;
        if !asked.instance_id.is_empty() {
            let id = fault::id("instance_id", &asked.instance_id)?;
            self.registry.snapshot().record(&id)?;
        }
        let mut ticks = interval(Duration::from_secs(seconds.into()));
        // A subscriber that does not read misses samples, rather than have them pile up.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let control = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = sender.closed() => return,
                }
                let sample = control.metrics(asked.clone(), passed_on).await;
                let sample = sample.map(|sample| StreamMetricsResponse {
                    metrics: sample.metrics,
                    timestamp: sample.collected_at,
                });
                let ended = sample.is_err();
                if sender.send(sample.map_err(Status::from)).await.is_err() || ended {
                    return;
                }
            }
        });
        Ok(Box::pin(ReceiverStream::new(receiver)))
    }
}

/// Which metrics are asked for.
struct Wanted {
    names: Vec<String>,
    from: Option<SystemTime>,
    until: Option<SystemTime>,
}

impl Wanted {
    fn parse(request: &GetMetricsRequest) -> Result<Self, Fault> {
        if request.metric_names.len() > MAX_NAMES {
            return Err(Fault::new("metric_names", format!("are more than {MAX_NAMES}")));
        }
        for (index, name) in request.metric_names.iter().enumerate() {
            let field = format!("metric_names[{index}]");
            if name.is_empty() {
                return Err(Fault::new(field, "is empty; name a metric, or leave the list empty for all"));
            }
            fault::text(&field, name, fault::TEXT_LENGTH)?;
        }
        let from = fault::time("start_time", request.start_time)?;
        let until = fault::time("end_time", request.end_time)?;
        if let (Some(from), Some(until)) = (from, until)
            && from > until
        {
            return Err(Fault::new("end_time", "is before start_time"));
        }
        Ok(Wanted { names: request.metric_names.clone(), from, until })
    }

    fn covers(&self, moment: SystemTime) -> bool {
        self.from.is_none_or(|from| from <= moment) && self.until.is_none_or(|until| until >= moment)
    }

    fn names(&self, name: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|wanted| wanted == name)
    }
}

/// What the data path counted, as a module would say it of itself. A request is a flow.
fn seen(counts: Counts) -> ModuleStats {
    ModuleStats {
        total_requests: signed_64(counts.new_flows),
        active_connections: signed_64(counts.active_flows),
        total_connections: signed_64(counts.new_flows),
        bytes_received: signed_64(counts.bytes),
        bytes_sent: signed_64(counts.reply_bytes),
        ..Default::default()
    }
}

fn points(counts: Counts) -> [(&'static str, u64); 7] {
    [
        ("nlb_flows_new_total", counts.new_flows),
        ("nlb_flows_active", counts.active_flows),
        ("nlb_packets_total", counts.packets),
        ("nlb_bytes_total", counts.bytes),
        ("nlb_reply_packets_total", counts.reply_packets),
        ("nlb_reply_bytes_total", counts.reply_bytes),
        ("nlb_resets_total", counts.resets),
    ]
}

fn point(name: &str, value: f64, at: SystemTime) -> MetricDataPoint {
    MetricDataPoint {
        name: name.to_owned(),
        value,
        labels: Default::default(),
        timestamp: Some(Timestamp::from(at)),
    }
}
