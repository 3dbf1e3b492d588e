//! The catalogue of the NLB's own metrics: name, kind, labels and meaning.
//!
//! Names follow Prometheus' conventions: they start with `nlb_`, end with their unit, and counters end with
//! `_total`. Metrics with the same labels form a family; a sample has one row of values for each subject of a
//! family, in the family's order. Values are whole numbers, of a fraction of the unit if the unit is too
//! coarse.

use smallvec::SmallVec;

use crate::model::Health;
use crate::model::traffic::Counts;
use crate::policy::health::HealthSignals;
use crate::registry::Report;

/// The values of a subject. Most families have at most this many, so that their rows need no allocation: a
/// large fleet has tens of thousands of rows, which are built anew every second.
pub type Row = SmallVec<[u64; 9]>;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A counter only grows, from 0, while its series exists.
    Counter,
    Gauge,
}

#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// One sentence.
    pub help: &'static str,
    /// Values are whole numbers of this fraction of the unit.
    per_unit: u32,
    /// The constant value of the last label, if a row has several values of one metric.
    pub fixed: Option<&'static str>,
}

pub type Family = &'static [Metric];

impl Metric {
    pub fn value(&self, held: f64) -> f64 {
        held / f64::from(self.per_unit)
    }
}

const fn counter(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Counter, labels, help, per_unit: 1, fixed: None }
}

const fn gauge(name: &'static str, labels: &'static [&'static str], help: &'static str) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help, per_unit: 1, fixed: None }
}

const fn fine_gauge(
    name: &'static str,
    labels: &'static [&'static str],
    per_unit: u32,
    help: &'static str,
) -> Metric {
    Metric { name, kind: Kind::Gauge, labels, help, per_unit, fixed: None }
}

/// The metrics of [`Counts`], in the order of [`counts`].
macro_rules! flows {
    ($scope:literal, $labels:expr, $whose:literal) => {
        &[
            counter(
                concat!("nlb_", $scope, "new_flows_total"),
                $labels,
                concat!("Flows that began", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "closed_flows_total"),
                $labels,
                concat!("Flows that ended", $whose, "."),
            ),
            gauge(
                concat!("nlb_", $scope, "active_flows"),
                $labels,
                concat!("Flows that are neither closed nor idle beyond their time", $whose, "."),
            ),
            gauge(
                concat!("nlb_", $scope, "active_tcp_flows"),
                $labels,
                concat!("Active flows that are TCP", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "packets_total"),
                $labels,
                concat!("Packets from clients", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "bytes_total"),
                $labels,
                concat!("Bytes of the IP packets from clients", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "reply_packets_total"),
                $labels,
                concat!("Packets back to clients, where they cross the NLB", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "reply_bytes_total"),
                $labels,
                concat!("Bytes of the IP packets back to clients, where they cross the NLB", $whose, "."),
            ),
            counter(
                concat!("nlb_", $scope, "resets_total"),
                $labels,
                concat!("TCP resets from modules that the NLB saw", $whose, "."),
            ),
        ]
    };
}

pub const NEW_FLOWS: usize = 0;
pub const ACTIVE_FLOWS: usize = 2;

pub fn counts(counts: &Counts) -> Row {
    Row::from_buf([
        counts.new_flows,
        counts.closed_flows,
        counts.active_flows,
        counts.active_tcp_flows,
        counts.packets,
        counts.bytes,
        counts.reply_packets,
        counts.reply_bytes,
        counts.resets,
    ])
}

/// The inverse of [`counts`].
pub fn counts_of(row: &[u64]) -> Counts {
    let value = |column: usize| row.get(column).copied().unwrap_or_default();
    Counts {
        new_flows: value(NEW_FLOWS),
        active_flows: value(ACTIVE_FLOWS),
        closed_flows: value(1),
        active_tcp_flows: value(3),
        packets: value(4),
        bytes: value(5),
        reply_packets: value(6),
        reply_bytes: value(7),
        resets: value(8),
    }
}

pub static ALL: Family = flows!("forwarded_", &[], ", over all modules");
pub static INSTANCES: Family = flows!("instance_", &["instance_id"], ", by instance");
pub static VERSIONS: Family = flows!("version_", &["deployment", "version"], ", by version of a deployment");
pub static BACKENDS: Family =
    flows!("backend_", &["instance_id", "route_id", "backend"], ", by instance, route, and address and port");

pub static RATE_LIMITS: Family = &[
    counter(
        "nlb_rate_limit_passed_total",
        &["limit_id"],
        "Admitted by the rate limit since it was enabled, in its unit.",
    ),
    counter(
        "nlb_rate_limit_refused_total",
        &["limit_id"],
        "Refused by the rate limit since it was enabled, in its unit.",
    ),
];

pub static EXITS: Family = &[counter(
    "nlb_packets_total",
    &["verdict", "reason"],
    "Packets that the XDP program saw, by verdict and reason.",
)];

pub static LOST_REDIRECTS: Family = &[counter(
    "nlb_lost_redirects_total",
    &["interface", "error"],
    "Packets that count as sent, and that the kernel could not redirect to the interface, by its error.",
)];

pub static SERVICES: Family = &[gauge(
    "nlb_service_active_flows",
    &["vip", "port", "protocol"],
    "Active flows by the address and port that clients reach.",
)];

pub static MODULES: Family =
    &[gauge("nlb_modules", &["module_type", "health"], "Registered modules by type and health.")];

/// By source, in the order of [`health`].
pub static HEALTH: Family = &[
    by_source("module"),
    by_source("lease"),
    by_source("network"),
    by_source("check"),
    by_source("resets"),
    by_source("operator"),
];

const fn by_source(source: &'static str) -> Metric {
    let metric = fine_gauge(
        "nlb_instance_health_ratio",
        &["instance_id", "source"],
        2,
        "Share of the instance's weight by the source's health signal: 1 if healthy, 0.5 if degraded, 0 if worse.",
    );
    Metric { fixed: Some(source), ..metric }
}

/// A missing health check counts as healthy.
pub fn health(signals: HealthSignals) -> Row {
    let HealthSignals { module, lease, network, check, resets, operator } = signals;
    let share = |health| match health {
        Health::Healthy => 2,
        Health::Degraded => 1,
        Health::Starting | Health::Unhealthy | Health::Stopping => 0,
    };
    let check = check.unwrap_or(Health::Healthy);
    Row::from_slice(&[module, lease, network, check, resets, operator].map(share))
}

/// Figures of heartbeats, in the order of [`reported`].
pub static REPORTS: Family = &[
    fine_gauge(
        "nlb_instance_cpu_usage_ratio",
        &["instance_id"],
        10_000,
        "CPU usage in the instance's last heartbeat; 1 is the whole machine.",
    ),
    gauge(
        "nlb_instance_memory_usage_bytes",
        &["instance_id"],
        "Memory usage in the instance's last heartbeat.",
    ),
    fine_gauge(
        "nlb_instance_latency_seconds",
        &["instance_id"],
        1_000_000,
        "Average latency in the instance's last heartbeat.",
    ),
    gauge(
        "nlb_instance_queued_requests",
        &["instance_id"],
        "The queue_depth among the custom_stats of the instance's last heartbeat; 0 if there is none.",
    ),
];

pub const CPU: usize = 0;
pub const MEMORY: usize = 1;
pub const LATENCY: usize = 2;
pub const QUEUE: usize = 3;

pub fn reported(report: &Report) -> Row {
    // Casts of floats saturate, so that absurd figures do no harm.
    Row::from_slice(&[
        (report.cpu_usage_percent * 100.0).round() as u64,
        (report.memory_usage_mb * 1024.0 * 1024.0).round() as u64,
        (report.avg_latency_ms * 1000.0).round() as u64,
        report.queue_depth(),
    ])
}

/// Measured while a module is asked for its own metrics, so it is in no sample: see
/// `grpc::handlers::statistics`.
pub static ANSWERED: Family = &[gauge(
    "nlb_instance_answered_ratio",
    &["instance_id", "outcome"],
    "1 if the instance answered GetMetrics, and else 0 with the reason as its outcome.",
)];

/// Metrics of the NLB as a whole.
pub static NLB: Family = &[
    counter("nlb_packets_seen_total", &[], "Packets that the XDP program saw."),
    counter(
        "nlb_unrecorded_packets_total",
        &[],
        "Packets that were forwarded by hash alone, because the flow table had no room for their flow.",
    ),
    counter(
        "nlb_full_pools_total",
        &[],
        "New flows that found every instance of their pool at its max_connections.",
    ),
    counter(
        "nlb_unasked_destinations_total",
        &[],
        "Packets without a service that should have raised an upcall, and did not because the kernel had no room \
         for it.",
    ),
    gauge("nlb_learned_routes_number", &[], "Routes learned from modules' CanHandle answers."),
    gauge("nlb_desired_revision_number", &[], "Revision of the state that modules and operators asked for."),
    gauge(
        "nlb_applied_revision_number",
        &[],
        "Newest revision that was applied to the kernel's maps, or tried.",
    ),
    counter("nlb_apply_failures_total", &[], "Failed attempts to update the kernel's maps."),
    gauge("nlb_start_time_seconds", &[], "When the daemon started, in seconds since 1970."),
    gauge("nlb_history_seconds", &[], "Seconds of metrics on record."),
    gauge("nlb_history_bytes", &[], "Memory that the metrics on record take, as accounted."),
];

pub static FAMILIES: &[&Family] = &[
    &NLB,
    &EXITS,
    &LOST_REDIRECTS,
    &ALL,
    &SERVICES,
    &MODULES,
    &INSTANCES,
    &HEALTH,
    &REPORTS,
    &BACKENDS,
    &RATE_LIMITS,
    &VERSIONS,
];

/// Each metric once.
pub fn metrics() -> impl Iterator<Item = &'static Metric> {
    // Metrics of one name are adjacent.
    FAMILIES.iter().flat_map(|family| family.chunk_by(|a, b| a.name == b.name)).map(|same| &same[0])
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn names_are_unique_and_follow_the_conventions() {
        let units = ["flows", "seconds", "bytes", "ratio", "requests", "modules", "number"];
        let mut names = BTreeSet::new();
        for Metric { name, kind, labels, help, .. } in metrics().chain(ANSWERED) {
            assert!(names.insert(name), "{name} is listed twice");
            assert!(name.starts_with("nlb_"), "{name}");
            assert!(name.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_'), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Kind::Counter, "{name}");
            assert!(
                *kind == Kind::Counter || units.iter().any(|unit| name.ends_with(unit)),
                "{name}: no unit"
            );
            assert!(help.ends_with('.') && !help.contains(". "), "{name}: {help:?} is not one sentence");
            assert!(labels.iter().all(|label| !label.starts_with("__")), "{name}");
        }
    }

    #[test]
    fn rows_read_as_they_were_written() {
        let numbers = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        assert_eq!(*counts(&counts_of(&numbers)), numbers);
    }

    #[test]
    fn docs_list_the_catalogue() {
        let docs = include_str!("../../../../docs/metrics.md");
        let mut table = String::from("| name | kind | labels | meaning |\n|---|---|---|---|\n");
        for Metric { name, kind, labels, help, .. } in metrics().chain(ANSWERED) {
            let kind = format!("{kind:?}").to_lowercase();
            let labels: Vec<String> = labels.iter().map(|label| format!("`{label}`")).collect();
            writeln!(table, "| `{name}` | {kind} | {} | {help} |", labels.join(", ")).unwrap();
        }
        assert!(docs.contains(&table), "docs/metrics.md should hold this table:\n{table}");
    }
}
