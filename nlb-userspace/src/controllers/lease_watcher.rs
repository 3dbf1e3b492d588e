//! Lets leases lapse when their time has come.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};
use tracing::warn;

use crate::registry::Registry;

/// How often leases are looked at: also the part of a standstill that goes unnoticed, so it is short.
const TICK: Duration = Duration::from_secs(1);

/// Waking up later than this means that the process stood still, not that the scheduler was busy.
const STANDSTILL: Duration = Duration::from_millis(200);

/// Lets leases lapse when their time has come. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>) -> Infallible {
    loop {
        let wake = Instant::now() + TICK;
        time::sleep_until(wake).await;
        let now = Instant::now();
        let late = now.saturating_duration_since(wake);
        if late > STANDSTILL {
            // A process that was stopped heard no heartbeats: its modules must not pay for that.
            warn!(?late, "the process was suspended; all leases are extended by that time");
            registry.extend_leases(late);
        }
        registry.expire_leases(now);
    }
}
