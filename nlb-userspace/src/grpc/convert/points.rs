//! Metrics as points of protobuf: their selection, their time, and their form.
//!
//! All calls return what the recorder sampled, under the names of the catalogue.

use std::collections::HashMap;
use std::ops::RangeInclusive;
use std::time::SystemTime;

use nlb_proto::MetricDataPoint;
use prost_types::Timestamp;

use super::error::CallError;
use super::validate::{self, FieldViolation};
use crate::telemetry::metrics::catalogue::{self, Metric};
use crate::telemetry::metrics::reported::{Key, Ledger};
use crate::telemetry::metrics::{Selection, Subject, UnknownName, View, history, reported};

/// The most points of one answer: some 25 MB. A request for more is refused and not truncated.
const MAX_POINTS: usize = 250_000;
const MAX_NAMES: usize = 64;
const NAME_LENGTH: usize = 128;

/// The points of a series that are requested.
#[derive(Clone, Debug)]
pub(crate) enum TimeRange {
    Latest,
    Within(RangeInclusive<SystemTime>),
    /// One point for the whole time.
    Over(RangeInclusive<SystemTime>),
}

/// The points of an answer under construction.
pub(crate) struct Points<'a> {
    selection: &'a Selection,
    extent: &'a TimeRange,
    left: usize,
}

/// Runs work that takes long with many modules outside the runtime, so that other calls are not delayed.
pub(crate) async fn spawn_blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
) -> Result<T, CallError> {
    tokio::task::spawn_blocking(work).await.expect("reading metrics does not panic")
}

pub(crate) fn extent(
    (start, end): (Option<Timestamp>, Option<Timestamp>),
    aggregate: bool,
    view: &View,
) -> Result<TimeRange, FieldViolation> {
    let (start, end) = (validate::time("start_time", start)?, validate::time("end_time", end)?);
    if start.zip(end).is_some_and(|(start, end)| start > end) {
        return Err(FieldViolation::new("start_time", "is after end_time"));
    }
    let given = start.is_some() || end.is_some();
    let oldest = view.history.since().unwrap_or(view.latest.at);
    // Reported points may be older than the NLB's own record, or newer than its last second.
    let start = start.unwrap_or(if given { SystemTime::UNIX_EPOCH } else { oldest });
    let time = start..=end.unwrap_or_else(|| view.latest.at.max(SystemTime::now()).max(start));
    Ok(match (given, aggregate) {
        (_, true) => TimeRange::Over(time),
        (true, false) => TimeRange::Within(time),
        (false, false) => TimeRange::Latest,
    })
}

/// Selects metrics by name. `also` are metrics that are in no sample.
pub(crate) fn select(asked: &[String], also: &'static [Metric]) -> Result<Selection, FieldViolation> {
    if asked.len() > MAX_NAMES {
        return Err(FieldViolation::new(
            "metric_names",
            format!("are more than {MAX_NAMES}; use a trailing *"),
        ));
    }
    for (index, name) in asked.iter().enumerate() {
        validate::text(&format!("metric_names[{index}]"), name, NAME_LENGTH)?;
    }
    let known: Vec<&str> = catalogue::metrics().chain(also).map(|metric| metric.name).collect();
    Selection::parse(asked, known.iter().copied()).map_err(|UnknownName { index, similar }| {
        let problem = format!("no metric is called {:?}; there are {}", asked[index], similar.join(", "));
        FieldViolation::new(format!("metric_names[{index}]"), problem)
    })
}

impl<'a> Points<'a> {
    pub(crate) fn new(selection: &'a Selection, extent: &'a TimeRange) -> Self {
        Points { selection, extent, left: MAX_POINTS }
    }

    /// At one time there are no more points than series, and the sizes of the tables bound those.
    pub(crate) fn latest(selection: &'a Selection) -> Self {
        Points { selection, extent: &TimeRange::Latest, left: usize::MAX }
    }

    /// The NLB's own points, of the subjects that are requested.
    pub(crate) fn own(
        &mut self,
        view: &View,
        wanted: impl Fn(&Subject) -> bool,
    ) -> Result<Vec<MetricDataPoint>, CallError> {
        let mut points = Vec::new();
        let subjects: Vec<&Subject> = match self.extent {
            TimeRange::Latest => view.latest.rows.keys().collect(),
            TimeRange::Within(time) | TimeRange::Over(time) => {
                view.history.subjects(time).into_iter().collect()
            }
        };
        for subject in subjects.into_iter().filter(|subject| wanted(subject)) {
            let columns: Vec<(usize, &Metric)> = subject
                .family()
                .iter()
                .enumerate()
                .filter(|(_, metric)| self.selection.takes(metric.name))
                .collect();
            if columns.is_empty() {
                continue;
            }
            let labels: HashMap<String, String> =
                subject.labels().into_iter().map(|(label, value)| (label.to_owned(), value)).collect();
            let point = |metric: &Metric, held: f64, at: SystemTime| {
                let fixed = metric.labels.last().zip(metric.fixed);
                let fixed = fixed.map(|(label, value)| (label.to_string(), value.to_owned()));
                MetricDataPoint {
                    name: metric.name.to_owned(),
                    value: metric.value(held),
                    labels: labels.clone().into_iter().chain(fixed).collect(),
                    timestamp: Some(at.into()),
                }
            };
            match self.extent {
                TimeRange::Latest => {
                    self.take(columns.len())?;
                    let row = &view.latest.rows[subject];
                    points.extend(columns.iter().map(|(i, m)| point(m, row[*i] as f64, view.latest.at)));
                }
                TimeRange::Within(time) => {
                    let moments = view.history.moments(subject, time);
                    self.take(columns.len() * moments.len())?;
                    for (i, metric) in columns {
                        points.extend(moments.iter().map(|m| point(metric, m.row[i] as f64, m.at)));
                    }
                }
                TimeRange::Over(time) => {
                    let moments = view.history.moments(subject, time);
                    let Some(last) = moments.last() else { continue };
                    self.take(columns.len())?;
                    let aggregate = |(i, metric): &(usize, &Metric)| {
                        Some(point(metric, history::aggregate(metric.kind, *i, &moments)?, last.at))
                    };
                    points.extend(columns.iter().filter_map(aggregate));
                }
            }
        }
        Ok(points)
    }

    /// The points that one instance reported.
    pub(crate) fn reported(&mut self, ledger: &Ledger) -> Result<Vec<MetricDataPoint>, CallError> {
        let point = |key: &Key, at: SystemTime, value: f64| MetricDataPoint {
            name: key.name.clone(),
            value,
            labels: key.labels.clone().into_iter().collect(),
            timestamp: Some(at.into()),
        };
        let wanted = |key: &Key| self.selection.takes(&key.name);
        let points: Vec<MetricDataPoint> = match self.extent {
            TimeRange::Latest => {
                let latest = ledger.latest().filter(|(key, ..)| wanted(key));
                latest.map(|(key, at, value)| point(key, at, value)).collect()
            }
            TimeRange::Within(time) => {
                let series = ledger.within(time).filter(|(key, _)| wanted(key));
                series
                    .flat_map(|(key, points)| {
                        points.into_iter().map(move |(at, value)| point(key, at, value)).collect::<Vec<_>>()
                    })
                    .collect()
            }
            TimeRange::Over(time) => {
                let series = ledger.within(time).filter(|(key, _)| wanted(key));
                let aggregate = |(key, points): (&Key, Vec<(SystemTime, f64)>)| {
                    let (at, _) = *points.last()?;
                    Some(point(key, at, reported::aggregate(&key.name, &points)))
                };
                series.filter_map(aggregate).collect()
            }
        };
        self.take(points.len())?;
        Ok(points)
    }

    fn take(&mut self, points: usize) -> Result<(), CallError> {
        match self.left.checked_sub(points) {
            Some(left) => self.left = left,
            None => {
                let why = format!(
                    "more than {MAX_POINTS} points; name fewer metrics, ask for a shorter time, or aggregate"
                );
                return Err(CallError::TooMuch(why));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use tokio::sync::watch;
    use tonic::{Code, Status};

    use super::*;
    use crate::registry::fixtures::registry;
    use crate::telemetry::metrics::{Recorder, Sources};

    #[tokio::test]
    async fn more_points_than_an_answer_holds_are_refused() {
        let sources = Sources {
            registry: Arc::new(registry()),
            applied: watch::channel(Arc::default()).1,
            traffic: watch::channel(Arc::default()).1,
            started_at: SystemTime::now(),
        };
        let (_recorder, metrics) = Recorder::new(sources, 1 << 20);
        let view = metrics.view();
        let selection = Selection::default();
        let all = SystemTime::UNIX_EPOCH..=SystemTime::now();
        for extent in [TimeRange::Latest, TimeRange::Within(all.clone()), TimeRange::Over(all.clone())] {
            let mut points = Points::new(&selection, &extent);
            let fits = points.own(&view, |_| true).unwrap().len();
            let mut exact = Points { left: fits, ..Points::new(&selection, &extent) };
            assert_eq!(exact.own(&view, |_| true).unwrap().len(), fits);
            let mut short = Points { left: fits - 1, ..Points::new(&selection, &extent) };
            let status = Status::from(short.own(&view, |_| true).unwrap_err());
            assert_eq!(status.code(), Code::ResourceExhausted, "{status}");
        }
    }
}
