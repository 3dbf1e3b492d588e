//! Reports in modules' heartbeats, between protobuf and the registry.

use nlb_proto::ModuleStats;

use super::numbers::signed_64;
use super::validate::{self, FieldViolation};
use crate::registry::Report;

pub(crate) fn parse(instance_id: &str, stats: ModuleStats) -> Result<Report, FieldViolation> {
    if !stats.instance_id.is_empty() && stats.instance_id != instance_id {
        let problem = format!("{:?} is not the instance that the heartbeat is from", stats.instance_id);
        return Err(FieldViolation::new("instance_id", problem));
    }
    Ok(Report {
        total_requests: validate::unsigned("total_requests", stats.total_requests)?,
        successful_requests: validate::unsigned("successful_requests", stats.successful_requests)?,
        failed_requests: validate::unsigned("failed_requests", stats.failed_requests)?,
        active_connections: validate::unsigned("active_connections", stats.active_connections)?,
        total_connections: validate::unsigned("total_connections", stats.total_connections)?,
        avg_latency_ms: validate::measure("avg_latency_ms", stats.avg_latency_ms)?,
        p50_latency_ms: validate::measure("p50_latency_ms", stats.p50_latency_ms)?,
        p95_latency_ms: validate::measure("p95_latency_ms", stats.p95_latency_ms)?,
        p99_latency_ms: validate::measure("p99_latency_ms", stats.p99_latency_ms)?,
        bytes_received: validate::unsigned("bytes_received", stats.bytes_received)?,
        bytes_sent: validate::unsigned("bytes_sent", stats.bytes_sent)?,
        cpu_usage_percent: validate::measure("cpu_usage_percent", stats.cpu_usage_percent)?,
        memory_usage_mb: validate::measure("memory_usage_mb", stats.memory_usage_mb)?,
        since: validate::time("since", stats.since)?,
        custom: validate::text_map("custom_stats", stats.custom_stats)?,
    })
}

pub(crate) fn render(instance_id: &str, report: &Report) -> ModuleStats {
    ModuleStats {
        instance_id: instance_id.to_owned(),
        total_requests: signed_64(report.total_requests),
        successful_requests: signed_64(report.successful_requests),
        failed_requests: signed_64(report.failed_requests),
        active_connections: signed_64(report.active_connections),
        total_connections: signed_64(report.total_connections),
        avg_latency_ms: report.avg_latency_ms,
        p50_latency_ms: report.p50_latency_ms,
        p95_latency_ms: report.p95_latency_ms,
        p99_latency_ms: report.p99_latency_ms,
        bytes_received: signed_64(report.bytes_received),
        bytes_sent: signed_64(report.bytes_sent),
        cpu_usage_percent: report.cpu_usage_percent,
        memory_usage_mb: report.memory_usage_mb,
        since: report.since.map(Into::into),
        custom_stats: report.custom.clone().into_iter().collect(),
    }
}
