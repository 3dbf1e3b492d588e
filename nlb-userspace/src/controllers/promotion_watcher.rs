//! The task that drives promotions by counters and time.

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

/// The interval in which the data path's counters are read.
const EVALUATION_INTERVAL: Duration = Duration::from_secs(1);

/// Starts the next step of promotions, or rolls them back. Runs until it is dropped.
pub(crate) async fn watch(registry: Arc<Registry>, traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    loop {
        time::sleep(EVALUATION_INTERVAL).await;
        let traffic = traffic.borrow().clone();
        registry.follow_promotions(&traffic, Now::read());
    }
}
