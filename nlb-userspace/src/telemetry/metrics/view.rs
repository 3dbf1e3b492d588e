//! What readers of the metrics share.

use std::sync::Arc;

use tokio::sync::watch;
use tokio::time::Instant;

use super::{Activity, History, Reported, Sample};

/// The metrics at one moment. Cheap to copy.
#[derive(Clone, Debug)]
pub struct View {
    pub latest: Arc<Sample>,
    /// When `latest` was taken.
    pub at: Instant,
    pub history: Arc<History>,
    pub activity: Arc<Activity>,
}

/// The readers' end.
#[derive(Clone)]
pub struct Metrics {
    pub(super) views: watch::Receiver<View>,
    pub reported: Arc<Reported>,
    pub(super) closed: watch::Sender<bool>,
}

impl Metrics {
    pub fn view(&self) -> View {
        self.views.borrow().clone()
    }

    /// Wakes with every second's view.
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// Informs those who follow the views that the daemon ends.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Returns when the daemon ends.
    pub async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // `self` holds the sender, so this returns only on `close`.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}
