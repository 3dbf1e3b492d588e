//! The task that expires leases in time.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};
use tracing::warn;

use crate::registry::Registry;

/// How often leases are checked. A suspension of the process that is shorter than this goes unnoticed.
const TICK: Duration = Duration::from_secs(1);

/// Waking later than this means that the process was suspended, not that the scheduler was busy.
const SUSPENDED_FROM: Duration = Duration::from_millis(200);

/// Expires leases in time. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>) -> Infallible {
    loop {
        let wake = Instant::now() + TICK;
        time::sleep_until(wake).await;
        let now = Instant::now();
        let late = now.saturating_duration_since(wake);
        if late > SUSPENDED_FROM {
            // A suspended process received no heartbeats, which must not end leases.
            warn!(?late, "the process was suspended; all leases are extended by that time");
            registry.extend_leases(late);
        }
        registry.expire_leases(now);
    }
}
