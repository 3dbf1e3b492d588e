//! What the NLB measures of itself: a catalogue, a sample of it every second, and the last hour of samples.
//!
//! `catalogue` names every metric; `sample` reads their values; `recorder` does so once a second and adds the sample to
//! `history`; `activity` tells when backends were last used. Readers share what the recorder made: nobody counts twice. What modules say of themselves is kept in
//! `reported`.

mod activity;
pub mod catalogue;
mod chunk;
pub mod history;
mod recorder;
pub mod reported;
pub mod sample;
mod selection;
mod totals;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

pub use activity::Activity;
pub use history::History;
pub use recorder::{Recorder, Sources};
pub use reported::Reported;
pub use sample::{Sample, Subject};
pub use selection::{OWN, Selection, UnknownName};

/// How far back the history goes, if its budget allows.
pub const HOUR: Duration = Duration::from_secs(3600);

/// What is known at one moment. Cheap to copy.
#[derive(Clone, Debug)]
pub struct View {
    pub latest: Arc<Sample>,
    pub history: Arc<History>,
    pub activity: Arc<Activity>,
}

/// The readers' end.
#[derive(Clone)]
pub struct Metrics {
    views: watch::Receiver<View>,
    pub reported: Arc<Reported>,
    closed: watch::Sender<bool>,
}

impl Metrics {
    pub fn view(&self) -> View {
        self.views.borrow().clone()
    }

    /// Wakes with every second's view.
    pub fn views(&self) -> watch::Receiver<View> {
        self.views.clone()
    }

    /// Tells those who follow the views that the daemon ends.
    pub fn close(&self) {
        self.closed.send_replace(true);
    }

    /// Returns when the daemon ends.
    pub async fn closed(&self) {
        let mut closed = self.closed.subscribe();
        // The sender is our own, so this ends only with the wish to close.
        let _ = closed.wait_for(|closed| *closed).await;
    }
}
