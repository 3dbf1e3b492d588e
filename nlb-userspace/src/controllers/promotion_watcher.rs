//! Shows promotions the counters and the time, and does what they say.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time;

use crate::model::clock::Now;
use crate::model::traffic::Traffic;
use crate::registry::Registry;

/// As often as the data path's counters are read.
const EVALUATION_INTERVAL: Duration = Duration::from_secs(1);

/// Takes promotions forward, or back. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>, traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    loop {
        time::sleep(EVALUATION_INTERVAL).await;
        let traffic = traffic.borrow().clone();
        registry.follow_promotion(&traffic, Now::read());
    }
}
