//! What a module says of its own work in a heartbeat. Kept and shown; the data path counts for itself.

use std::time::SystemTime;

use crate::model::Texts;

/// Latencies are milliseconds, memory is mebibytes.
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
    /// Requests that wait, where the module tells: the contract has no field of its own for them.
    pub fn queue_depth(&self) -> u64 {
        self.custom.get("queue_depth").and_then(|depth| depth.parse().ok()).unwrap_or_default()
    }
}
