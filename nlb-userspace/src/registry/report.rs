//! What a module reports of its work in a heartbeat. The NLB stores and shows it; the data path has its own
//! counters.

use std::time::SystemTime;

use crate::model::Texts;

/// Latencies are in milliseconds, memory is in mebibytes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    pub total_requests: u64,
    pub successful_requests: u64,
    pub failed_requests: u64,
    pub active_connections: u64,
    pub total_connections: u64,
    pub avg_latency_ms: f64,
    pub p50_latency_ms: f64,
    pub p95_latency_ms: f64,
    pub p99_latency_ms: f64,
    pub bytes_received: u64,
    pub bytes_sent: u64,
    pub cpu_usage_percent: f64,
    pub memory_usage_mb: f64,
    pub since: Option<SystemTime>,
    pub custom: Texts,
}

impl Report {
    /// Requests that wait, if the module reports them: the contract has no field for it.
    pub fn queue_depth(&self) -> u64 {
        self.custom.get("queue_depth").and_then(|depth| depth.parse().ok()).unwrap_or_default()
    }
}
