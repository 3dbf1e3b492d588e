//! The state of a running instance, shared by everything that serves it.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};

use nlb_proto::{HealthCheckConfig, HealthStatus, ModuleInstance, ModuleStats, Route};
use tokio::sync::watch;

use crate::latency::Latencies;
use crate::nlb::Nlb;
use crate::usage::Usage;

/// An instance's identity, routes, condition and figures.
#[derive(Debug)]
pub struct State {
    /// The content of its registration. Health, weight and connections are filled in by [`State::instance`].
    identity: ModuleInstance,
    routes: Mutex<BTreeMap<String, Route>>,
    weight: Mutex<u32>,
    health: Mutex<HealthStatus>,
    phase: watch::Sender<Phase>,
    stop: Mutex<Option<Stop>>,
    pub(crate) health_check: Option<HealthCheckConfig>,
    open: AtomicU64,
    figures: Mutex<Figures>,
    bytes_received: AtomicU64,
    bytes_sent: AtomicU64,
    pub(crate) nlb: Nlb,
}

/// Phases never go back.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Phase {
    Serving,
    /// The NLB is to send no new flows; flows that come are served.
    Draining,
    /// No new connection is accepted.
    Closed,
}

/// How an instance was asked to end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// Open connections may take this long to finish.
    Drain(Duration),
    AtOnce,
}

/// Counts since `since`.
#[derive(Debug)]
struct Figures {
    since: SystemTime,
    usage: Usage,
    connections: u64,
    successful: u64,
    failed: u64,
    latencies: Latencies,
}

impl State {
    pub(crate) fn new(
        identity: ModuleInstance,
        weight: u32,
        routes: Vec<Route>,
        health_check: Option<HealthCheckConfig>,
        nlb: Nlb,
    ) -> State {
        State {
            identity,
            routes: Mutex::new(routes.into_iter().map(|route| (route.route_id.clone(), route)).collect()),
            weight: Mutex::new(weight),
            health: Mutex::new(HealthStatus::Healthy),
            phase: watch::Sender::new(Phase::Serving),
            stop: Mutex::new(None),
            health_check,
            open: AtomicU64::new(0),
            figures: Mutex::new(Figures::new()),
            bytes_received: AtomicU64::new(0),
            bytes_sent: AtomicU64::new(0),
            nlb,
        }
    }

    pub fn instance_id(&self) -> &str {
        &self.identity.instance_id
    }

    pub fn version(&self) -> &str {
        &self.identity.version
    }

    pub fn weight(&self) -> u32 {
        *lock(&self.weight)
    }

    pub(crate) fn set_weight(&self, weight: u32) {
        *lock(&self.weight) = weight;
    }

    /// By route id.
    pub fn routes(&self) -> BTreeMap<String, Route> {
        lock(&self.routes).clone()
    }

    pub(crate) fn set_routes(&self, routes: BTreeMap<String, Route>) {
        *lock(&self.routes) = routes;
    }

    /// The health that the next heartbeat reports.
    pub fn health(&self) -> HealthStatus {
        match *self.phase.borrow() {
            Phase::Serving => *lock(&self.health),
            Phase::Draining | Phase::Closed => HealthStatus::Stopping,
        }
    }

    /// Sets the module's health: the NLB gives a degraded module half its weight, and an unhealthy one no new
    /// flows.
    pub fn set_health(&self, health: HealthStatus) {
        *lock(&self.health) = health;
    }

    /// The instance with its current health, weight and connections.
    pub fn instance(&self) -> ModuleInstance {
        ModuleInstance {
            health_status: self.health().into(),
            traffic_weight: self.weight() as i32,
            current_connections: i32::try_from(self.open_connections()).unwrap_or(i32::MAX),
            ..self.identity.clone()
        }
    }

    /// The figures of what was served. A request is a connection or a datagram. A latency is the time from
    /// the first byte that the client sent to the first byte of the answer, for each such turn of a
    /// connection; if the module speaks first, its first turn begins when it accepts the connection.
    pub fn stats(&self) -> ModuleStats {
        let mut figures = lock(&self.figures);
        ModuleStats {
            instance_id: self.instance_id().to_owned(),
            total_requests: (figures.successful + figures.failed) as i64,
            successful_requests: figures.successful as i64,
            failed_requests: figures.failed as i64,
            active_connections: self.open_connections() as i64,
            total_connections: figures.connections as i64,
            avg_latency_ms: figures.latencies.mean_ms(),
            p50_latency_ms: figures.latencies.percentile_ms(50),
            p95_latency_ms: figures.latencies.percentile_ms(95),
            p99_latency_ms: figures.latencies.percentile_ms(99),
            bytes_received: self.bytes_received.load(Ordering::Relaxed) as i64,
            bytes_sent: self.bytes_sent.load(Ordering::Relaxed) as i64,
            cpu_usage_percent: figures.usage.cpu_percent(),
            memory_usage_mb: Usage::memory_mb(),
            since: Some(figures.since.into()),
            ..ModuleStats::default()
        }
    }

    pub(crate) fn reset_stats(&self) {
        *lock(&self.figures) = Figures::new();
        self.bytes_received.store(0, Ordering::Relaxed);
        self.bytes_sent.store(0, Ordering::Relaxed);
    }

    pub(crate) fn count_request(&self, succeeded: bool) {
        let mut figures = lock(&self.figures);
        *if succeeded { &mut figures.successful } else { &mut figures.failed } += 1;
    }

    pub(crate) fn count_latency(&self, latency: Duration) {
        lock(&self.figures).latencies.record(latency);
    }

    pub(crate) fn count_received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    pub(crate) fn count_sent(&self, bytes: usize) {
        self.bytes_sent.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    /// Asks the instance to end; the first call decides how.
    pub(crate) fn stop(&self, how: Stop) {
        lock(&self.stop).get_or_insert(how);
        self.enter(Phase::Draining);
    }

    pub(crate) fn stop_asked(&self) -> Option<Stop> {
        *lock(&self.stop)
    }

    pub(crate) fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    pub(crate) fn enter(&self, phase: Phase) {
        self.phase.send_modify(|current| *current = phase.max(*current));
    }

    pub(crate) async fn draining(&self) {
        self.reached(Phase::Draining).await;
    }

    pub(crate) async fn closed(&self) {
        self.reached(Phase::Closed).await;
    }

    async fn reached(&self, phase: Phase) {
        // `self` holds the sender, so the channel cannot close meanwhile.
        let _ = self.phase.subscribe().wait_for(|current| *current >= phase).await;
    }

    pub(crate) fn open_connections(&self) -> u64 {
        self.open.load(Ordering::Relaxed)
    }
}

impl Figures {
    fn new() -> Figures {
        Figures {
            since: SystemTime::now(),
            usage: Usage::start(),
            connections: 0,
            successful: 0,
            failed: 0,
            latencies: Latencies::new(),
        }
    }
}

/// Counts a connection as open for as long as it exists.
#[derive(Debug)]
pub(crate) struct Open(Arc<State>);

impl Open {
    pub(crate) fn connection(state: &Arc<State>) -> Open {
        state.open.fetch_add(1, Ordering::Relaxed);
        lock(&state.figures).connections += 1;
        Open(Arc::clone(state))
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.0.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Every critical section is a few assignments, so a panic elsewhere leaves the value whole.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
