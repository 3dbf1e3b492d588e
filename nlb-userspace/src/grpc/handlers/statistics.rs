//! Statistics by ModuleService of the NLB: GetStats, GetMetrics and StreamMetrics, of one instance or of the
//! NLB itself.
//!
//! Counts of the data path come from the samples that GetNLBMetrics answers from, and a module's own counts
//! from the module. The NLB's counters are never reset: clients compute differences.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb_proto::{
    GetMetricsRequest, GetMetricsResponse, GetStatsRequest, GetStatsResponse, MetricDataPoint, ModuleMetrics,
    ModuleStats, ModuleType, StreamMetricsRequest, StreamMetricsResponse,
};
use tonic::Status;

use super::control::Control;
use super::metrics_stream::Subscription;
use crate::grpc::client::fan_out::{all_done, peer};
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome};
use crate::grpc::convert::enums;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::heartbeat_report::render;
use crate::grpc::convert::numbers::signed_64;
use crate::grpc::convert::points::{Points, TimeRange, extent, select, spawn_blocking};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::traffic::Counts;
use crate::registry::Record;
use crate::telemetry::metrics::{OWN, Selection, Subject, View, catalogue};

pub(crate) type Samples = Subscription<StreamMetricsResponse>;

/// A request for metrics, with the NLB's part of it parsed.
struct Question {
    request: GetMetricsRequest,
    selection: Selection,
    extent: TimeRange,
    /// How long a module may take to answer.
    max_wait: Duration,
    passed_on: bool,
}

impl Control {
    /// The statistics of an instance; with an empty id those of the data path.
    pub async fn stats(
        &self,
        request: GetStatsRequest,
        passed_on: bool,
    ) -> Result<GetStatsResponse, CallError> {
        if request.instance_id.is_empty() {
            if request.reset_counters {
                let problem = "is not for the NLB's own counters, which only grow; name an instance_id";
                return Err(FieldViolation::new("reset_counters", problem).into());
            }
            let stats = ModuleStats { since: Some(self.started_at.into()), ..seen(self.counted()) };
            return Ok(GetStatsResponse { stats: Some(stats) });
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        let reset = request.reset_counters;
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&id)?;
        let outcome = self.peers.pass_on_to(peer(record), request, passed_on).await;
        let counts = self.counted_for(&id);
        let text = outcome.to_string();
        let (mut stats, source) = match outcome {
            // Only the module can reset its counts.
            outcome if reset => {
                let answers = all_done(vec![(id.clone(), outcome)])?;
                let answer = answers.into_iter().map(|(_, answer)| answer).next().unwrap_or_default();
                (answer.stats.unwrap_or_default(), "module".to_owned())
            }
            Outcome::Done(answer) => (answer.stats.unwrap_or_default(), "module".to_owned()),
            _ => {
                let (stats, source) = self.known_stats(record, counts);
                (stats, format!("{source}; {text}"))
            }
        };
        stats.instance_id = id;
        stats.custom_stats.insert("source".to_owned(), source);
        for (metric, value) in catalogue::INSTANCES.iter().zip(catalogue::counts(&counts)) {
            stats.custom_stats.insert(metric.name.to_owned(), value.to_string());
        }
        Ok(GetStatsResponse { stats: Some(stats) })
    }

    /// An instance's statistics without a call to it, and their source: the last heartbeat, or else the data
    /// path.
    fn known_stats(&self, record: &Record, counts: Counts) -> (ModuleStats, &'static str) {
        let id = &record.registration.instance_id;
        match &record.report {
            Some(stats) => (render(id, stats), "last heartbeat"),
            None => (ModuleStats { instance_id: id.clone(), ..seen(counts) }, "data path"),
        }
    }

    /// The same, with the source in the statistics.
    pub fn known_stats_of(&self, record: &Record) -> ModuleStats {
        let counts = self.counted_for(&record.registration.instance_id);
        let (mut stats, source) = self.known_stats(record, counts);
        stats.custom_stats.insert("source".to_owned(), source.to_owned());
        stats
    }

    /// The metrics of an instance; with an empty id those of the NLB.
    pub async fn metrics(
        &self,
        request: GetMetricsRequest,
        passed_on: bool,
    ) -> Result<GetMetricsResponse, CallError> {
        let view = self.metrics.view();
        let extent = extent((request.start_time, request.end_time), false, &view)?;
        let question = Question { extent, ..Question::about_now(request, passed_on)? };
        self.answer(Arc::new(question), view).await
    }

    /// Streams metrics; the stream ends with a reason when the instance leaves.
    pub fn metrics_stream(
        &self,
        request: StreamMetricsRequest,
        passed_on: bool,
    ) -> Result<Samples, CallError> {
        let seconds = validate::unsigned_32("interval_seconds", request.interval_seconds)?.max(1);
        let asked = GetMetricsRequest {
            instance_id: request.instance_id,
            metric_names: request.metric_names,
            ..Default::default()
        };
        // A module that answers more slowly than the interval must not delay the stream.
        let max_wait = ANSWER_TIMEOUT.min(Duration::from_secs(seconds.into()) * 3 / 4);
        let question = Question { max_wait, ..Question::about_now(asked, passed_on)? };
        if !question.request.instance_id.is_empty() {
            self.registry.snapshot().record(&question.request.instance_id)?;
        }
        let (control, question) = (self.clone(), Arc::new(question));
        Ok(Subscription::start(self.metrics.clone(), seconds.into(), move |view| {
            let (control, question) = (control.clone(), question.clone());
            async move {
                let sample = control.answer(question, view).await.map_err(Status::from)?;
                Ok(StreamMetricsResponse { metrics: sample.metrics, timestamp: sample.collected_at })
            }
        }))
    }

    async fn answer(&self, question: Arc<Question>, view: View) -> Result<GetMetricsResponse, CallError> {
        let collected_at = Some(view.latest.at.into());
        let id = &question.request.instance_id;
        let mut metrics = ModuleMetrics { instance_id: id.clone(), collected_at, ..Default::default() };
        let own = own_points(question.clone(), view);
        if id.is_empty() {
            metrics.module_type = ModuleType::Nlb.into();
            metrics.metrics = own.await?;
        } else {
            let snapshot = self.registry.snapshot();
            let record = snapshot.record(id)?;
            metrics.module_type = enums::module_type_to_wire(record.registration.module.module_type).into();
            metrics.metrics = own.await?;
            if let Some(call) = question.of_module() {
                let asked = vec![peer(record)];
                let outcomes =
                    self.peers.pass_on(asked, |_| call.clone(), question.max_wait, question.passed_on).await;
                for (_, outcome) in outcomes {
                    metrics.metrics.extend(question.answered(id, &outcome));
                    let theirs = outcome.done().and_then(|answer| answer.metrics).unwrap_or_default().metrics;
                    metrics.metrics.extend(question.wanted(theirs));
                }
            }
        }
        Ok(GetMetricsResponse { metrics: Some(metrics), collected_at })
    }

    /// The counts of all modules, including those that have left.
    pub fn counted(&self) -> Counts {
        with_flows_of(self.metrics.view().latest.counts(&Subject::All), self.traffic.borrow().total())
    }

    /// The counts of an instance since it registered.
    fn counted_for(&self, instance_id: &str) -> Counts {
        let subject = Subject::Instance { instance_id: instance_id.to_owned() };
        let sampled = self.metrics.view().latest.counts(&subject);
        with_flows_of(sampled, self.traffic.borrow().instance(instance_id))
    }
}

impl Question {
    fn about_now(request: GetMetricsRequest, passed_on: bool) -> Result<Self, FieldViolation> {
        let of_module = !request.instance_id.is_empty();
        if of_module {
            validate::id("instance_id", &request.instance_id)?;
        }
        let selection = select(&request.metric_names, if of_module { catalogue::ANSWERED } else { &[] })?;
        Ok(Question { request, selection, extent: TimeRange::Latest, max_wait: ANSWER_TIMEOUT, passed_on })
    }

    /// The request to the module, unless none of its metrics are wanted. Modules match whole names, and no
    /// prefixes.
    fn of_module(&self) -> Option<GetMetricsRequest> {
        let asked = &self.request.metric_names;
        let theirs: Vec<String> = asked.iter().filter(|name| !name.starts_with(OWN)).cloned().collect();
        if theirs.is_empty() && !catalogue::ANSWERED.iter().any(|metric| self.selection.takes(metric.name)) {
            return None;
        }
        let plain = !theirs.iter().any(|name| name.ends_with('*'));
        Some(GetMetricsRequest {
            metric_names: if plain { theirs } else { Vec::new() },
            ..self.request.clone()
        })
    }

    /// The wanted points of a module's answer. Points with the NLB's own prefix are dropped.
    fn wanted(&self, points: Vec<MetricDataPoint>) -> impl Iterator<Item = MetricDataPoint> {
        points.into_iter().filter(|point| !point.name.starts_with(OWN) && self.selection.takes(&point.name))
    }

    /// Whether the module answered, as a metric. A failure is always reported, because a client could not
    /// distinguish it from an answer without points.
    fn answered<T>(&self, instance_id: &str, outcome: &Outcome<T>) -> Option<MetricDataPoint> {
        let failed = !matches!(outcome, Outcome::Done(_));
        let metric = catalogue::ANSWERED.iter().find(|metric| failed || self.selection.takes(metric.name))?;
        let labels = [("instance_id", instance_id.to_owned()), ("outcome", outcome.to_string())];
        Some(MetricDataPoint {
            name: metric.name.to_owned(),
            value: f64::from(u8::from(!failed)),
            labels: labels.map(|(label, value)| (label.to_owned(), value)).into(),
            timestamp: Some(SystemTime::now().into()),
        })
    }
}

/// The NLB's own points, of all subjects or of one instance.
async fn own_points(question: Arc<Question>, view: View) -> Result<Vec<MetricDataPoint>, CallError> {
    spawn_blocking(move || {
        let id = &question.request.instance_id;
        let wanted = |subject: &Subject| id.is_empty() || subject.instance_id() == Some(id);
        Points::new(&question.selection, &question.extent).own(&view, wanted)
    })
    .await
}

/// The sampled counts with the newest number of flows, which is counted before it is sampled.
fn with_flows_of(sampled: Counts, newest: Counts) -> Counts {
    Counts { active_flows: newest.active_flows, active_tcp_flows: newest.active_tcp_flows, ..sampled }
}

/// The data path's counts in the form of a module's statistics. A flow counts as a request.
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
