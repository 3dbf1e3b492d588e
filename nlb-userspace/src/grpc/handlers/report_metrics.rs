//! ReportMetrics: the metrics that modules measure themselves, validated before they are stored.

use std::time::{Duration, SystemTime};

use nlb_proto::{MetricDataPoint, ModuleMetrics, ModuleType, ReportMetricsRequest, ReportMetricsResponse};

use super::control::Control;
use crate::grpc::convert::enums;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::telemetry::metrics::reported::{BUDGET, Point, Taken};

const MAX_POINTS: usize = 1000;
const NAME_LENGTH: usize = 128;

/// How far a module's clock may be ahead.
const CLOCK_SKEW: Duration = Duration::from_secs(60);

impl Control {
    pub fn report_metrics(&self, request: ReportMetricsRequest) -> Result<ReportMetricsResponse, CallError> {
        let instance_id = validate::id("instance_id", &request.instance_id)?;
        let now = SystemTime::now();
        let reported_at = time("reported_at", request.reported_at, now)?.unwrap_or(now);
        let metrics = request.metrics.ok_or_else(|| FieldViolation::new("metrics", "is missing"))?;
        let (metrics, points) = parse(&instance_id, metrics, reported_at, now)?;
        self.registry.authenticate_caller(&instance_id, &request.registration_id)?;
        let snapshot = self.registry.snapshot();
        let own_type = snapshot.record(&instance_id)?.registration.module.module_type;
        if metrics.is_some_and(|named| named != enums::module_type_to_wire(own_type)) {
            let own = own_type.name();
            return Err(FieldViolation::new(
                "metrics.module_type",
                format!("the instance is registered as {own}"),
            )
            .into());
        }
        let taken = self.metrics.reported.add(&instance_id, points, now);
        Ok(ReportMetricsResponse {
            acknowledged: taken.too_many == 0 || taken.points > 0,
            message: outcome(taken),
            processed_at: Some(now.into()),
        })
    }
}

fn outcome(taken: Taken) -> String {
    let Taken { points, old, too_many, replaced } = taken;
    let mut text = format!("{points} points taken");
    if old > 0 {
        text += &format!("; {old} are older than an hour");
    }
    if too_many > 0 {
        text += &format!(
            "; {too_many} left out: the series of an instance may take {BUDGET} bytes; report fewer, or with fewer labels"
        );
    }
    if replaced > 0 {
        text += &format!("; {replaced} series that were not reported any more gave way");
    }
    text
}

/// The module's type and its points, according to the report.
fn parse(
    instance_id: &str,
    metrics: ModuleMetrics,
    reported_at: SystemTime,
    now: SystemTime,
) -> Result<(Option<ModuleType>, Vec<Point>), FieldViolation> {
    if !metrics.instance_id.is_empty() && metrics.instance_id != instance_id {
        let problem = format!("{:?} is not the instance that the report is from", metrics.instance_id);
        return Err(FieldViolation::new("metrics.instance_id", problem));
    }
    let module_type = validate::known::<ModuleType>("metrics.module_type", metrics.module_type)?;
    let collected_at = time("metrics.collected_at", metrics.collected_at, now)?.unwrap_or(reported_at);
    let sent = metrics.metrics.len();
    if sent > MAX_POINTS {
        let problem = format!("has {sent} points; report at most {MAX_POINTS} at a time");
        return Err(FieldViolation::new("metrics.metrics", problem));
    }
    let parse = |(index, point): (usize, MetricDataPoint)| {
        parse_point(point, collected_at, now)
            .map_err(|violation| violation.within(format!("metrics.metrics[{index}]")))
    };
    let points = metrics.metrics.into_iter().enumerate().map(parse).collect::<Result<_, _>>()?;
    Ok((Some(module_type).filter(|named| *named != ModuleType::Unspecified), points))
}

fn parse_point(
    point: MetricDataPoint,
    collected_at: SystemTime,
    now: SystemTime,
) -> Result<Point, FieldViolation> {
    let name = validate::text("name", &point.name, NAME_LENGTH)?;
    if name.is_empty() || name.contains(|c: char| c.is_whitespace() || c == '*') {
        return Err(FieldViolation::new("name", format!("{name:?} is empty, or has a space or an asterisk")));
    }
    if name.starts_with("nlb_") {
        return Err(FieldViolation::new(
            "name",
            format!("{name:?}: names with nlb_ are the NLB's own; choose another"),
        ));
    }
    if !point.value.is_finite() {
        return Err(FieldViolation::new("value", format!("{} is not a finite number", point.value)));
    }
    let labels = validate::text_map("labels", point.labels)?;
    let at = time("timestamp", point.timestamp, now)?.unwrap_or(collected_at);
    Ok(Point { name, labels, value: point.value, at })
}

fn time(
    field: &str,
    timestamp: Option<prost_types::Timestamp>,
    now: SystemTime,
) -> Result<Option<SystemTime>, FieldViolation> {
    let time = validate::time(field, timestamp)?;
    if time.is_some_and(|time| time > now + CLOCK_SKEW) {
        return Err(FieldViolation::new(field, "is in the future; set the module's clock, or leave it out"));
    }
    Ok(time)
}
