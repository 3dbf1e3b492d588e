//! Brings the maps to the desired state: the one loop that applies changes.
//!
//! It wakes when the desired state or the network changes, compiles, plans, and applies the plan change by
//! change. The rows are updated with each change, so that they are right after a failure in the middle of a
//! plan; the rest is retried with growing pauses until it succeeds or is obsolete.

pub mod change;
pub mod plan;

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};

use crate::compile::{MapImage, Rows, compile};
use crate::model::Desired;
use crate::model::next_hop::Hops;
use crate::reconcile::change::{MapError, MapStore};
use plan::plan;

/// What the maps hold, for the RPCs that wait for it.
#[derive(Clone, Debug, Default)]
pub struct Applied {
    /// The newest revision that was tried.
    pub revision: u64,
    /// Why that revision could not be applied, if it failed; `image` is then the last one that was applied
    /// completely.
    pub error: Option<String>,
    /// Failed attempts since the start.
    pub failures: u64,
    pub image: Arc<MapImage>,
    /// Changes are being applied, or one of them failed: the maps are between `image` and a newer one.
    pub changing: bool,
}

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);

/// Keeps the maps in the desired state until the registry is dropped. `empty` is their state before.
pub async fn run(
    mut desired: watch::Receiver<Arc<Desired>>,
    mut hops: watch::Receiver<Arc<Hops>>,
    applied: watch::Sender<Arc<Applied>>,
    empty: MapImage,
    maps: Box<dyn MapStore>,
) {
    let mut reconciler = Reconciler::new(empty, maps);
    let mut retry = FIRST_RETRY;
    let mut failures = 0;
    loop {
        let wanted = desired.borrow_and_update().clone();
        let around = hops.borrow_and_update().clone();
        // Nobody waits for this.
        applied.send_if_modified(|applied| {
            Arc::make_mut(applied).changing = true;
            false
        });
        let error = reconciler.reconcile(&wanted, &around).err();
        match &error {
            None => retry = FIRST_RETRY,
            Some(error) => {
                warn!(revision = wanted.revision, "the maps could not be brought up to date: {error}")
            }
        }
        let failed = error.is_some();
        failures += u64::from(failed);
        let image = reconciler.whole.clone();
        let revision = wanted.revision;
        applied.send_replace(Arc::new(Applied { revision, error, failures, image, changing: failed }));
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { return },
            changed = hops.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry), if failed => retry = (retry * 2).min(LAST_RETRY),
        }
    }
}

struct Reconciler {
    maps: Box<dyn MapStore>,
    /// The contents of the maps.
    rows: Rows,
    /// The newest image that was tried. The next image takes its ids, even if it was not applied completely:
    /// some of them may be in the maps.
    tried: Arc<MapImage>,
    /// The newest image that was applied completely.
    whole: Arc<MapImage>,
}

impl Reconciler {
    fn new(empty: MapImage, maps: Box<dyn MapStore>) -> Self {
        let empty = Arc::new(empty);
        Reconciler { maps, rows: Rows::default(), tried: empty.clone(), whole: empty }
    }

    fn reconcile(&mut self, desired: &Desired, hops: &Hops) -> Result<(), String> {
        self.tried = Arc::new(compile(desired, hops, &self.tried).map_err(|error| error.to_string())?);
        let changes = plan(&self.rows, &self.tried.rows);
        for change in &changes {
            self.maps.apply(change).map_err(|error: MapError| error.to_string())?;
            change.apply_to(&mut self.rows);
        }
        if !changes.is_empty() {
            info!(revision = desired.revision, changes = changes.len(), "maps brought up to date");
        }
        self.whole = self.tried.clone();
        Ok(())
    }
}
