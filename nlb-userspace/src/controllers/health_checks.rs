//! The task that runs the health checks of modules.
//!
//! A module is checked at once when it registers, and then once in every interval, at an offset of its own:
//! otherwise modules that register at the same time would be checked at the same time in every interval.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::convert::Infallible;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::{self, Instant};

use crate::policy::health::tally::Tally;
use crate::policy::health::{Check, Source, Target};
use crate::registry::{Registry, State};

/// The most checks in flight. Checks that are due beyond them wait.
const MAX_IN_FLIGHT: usize = 256;

/// How often to look for registrations that changed nothing for the data path.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// The registrations to be checked, and when.
#[derive(Default)]
struct Schedule {
    watched: BTreeMap<String, Watched>,
    due: BTreeSet<(Instant, String)>,
}

struct Watched {
    /// The epoch of the registration, so that outcomes for an earlier one do not count.
    epoch: u64,
    check: Check,
    tally: Tally,
    /// The first check is made at once, and the second at the offset in the interval that follows.
    first: bool,
    /// `None` while a check is in flight.
    due: Option<Instant>,
}

/// A check that has ended.
struct Done {
    instance_id: String,
    epoch: u64,
    started: Instant,
    outcome: Result<(), String>,
}

/// Runs the check of every module that has one, by this probe. Runs until it is dropped, which cancels the
/// checks in flight.
pub async fn watch<P, F>(registry: Arc<Registry>, probe: P) -> Infallible
where
    P: Fn(Target) -> F,
    F: Future<Output = Result<(), String>> + Send + 'static,
{
    let mut desired = registry.desired();
    let mut schedule = Schedule::default();
    let mut running = JoinSet::new();
    let mut look_at = Instant::now();
    loop {
        let now = Instant::now();
        if now >= look_at {
            schedule.follow(&registry.snapshot(), now);
            look_at = now + POLL_INTERVAL;
        }
        while running.len() < MAX_IN_FLIGHT
            && let Some((instance_id, epoch)) = schedule.next_due(now)
        {
            let Some(target) = registry.check_target(&instance_id, epoch) else { continue };
            let (timeout, probed) = (target.timeout, probe(target));
            running.spawn(async move {
                let outcome = time::timeout(timeout, probed).await;
                let outcome = outcome.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
                Done { instance_id, epoch, started: now, outcome }
            });
        }
        let wake = match schedule.first_due() {
            Some(due) if running.len() < MAX_IN_FLIGHT => due.min(look_at),
            _ => look_at,
        };
        tokio::select! {
            () = time::sleep_until(wake) => {}
            Ok(()) = desired.changed() => look_at = now,
            Some(done) = running.join_next() => {
                schedule.take_in(done.expect("a probe does not panic"), &registry);
            }
        }
    }
}

impl Schedule {
    /// Adds new registrations, and removes those that ended.
    fn follow(&mut self, state: &State, now: Instant) {
        self.watched
            .retain(|id, watched| state.modules.get(id).is_some_and(|record| record.epoch == watched.epoch));
        for (instance_id, record) in &state.modules {
            let Some(check) = &record.registration.check else { continue };
            if self.watched.contains_key(instance_id) {
                continue;
            }
            let watched = Watched {
                epoch: record.epoch,
                check: check.clone(),
                tally: Tally::default(),
                first: true,
                due: Some(now),
            };
            self.watched.insert(instance_id.clone(), watched);
            self.due.insert((now, instance_id.clone()));
        }
    }

    fn first_due(&self) -> Option<Instant> {
        self.due.first().map(|(due, _)| *due)
    }

    /// Takes the next registration that is due from the schedule.
    fn next_due(&mut self, now: Instant) -> Option<(String, u64)> {
        while self.first_due().is_some_and(|due| due <= now) {
            let (due, instance_id) = self.due.pop_first()?;
            // Entries of registrations that ended stay in the schedule until now.
            let watched = self.watched.get_mut(&instance_id).filter(|watched| watched.due == Some(due));
            if let Some(watched) = watched {
                watched.due = None;
                return Some((instance_id, watched.epoch));
            }
        }
        None
    }

    fn take_in(&mut self, done: Done, registry: &Registry) {
        let Done { instance_id, epoch, started, outcome } = done;
        let Some(watched) = self.watched.get_mut(&instance_id).filter(|watched| watched.epoch == epoch)
        else {
            return;
        };
        let interval = watched.check.interval;
        let pause = if watched.first { interval.mul_f64(phase(&instance_id)) } else { interval };
        watched.first = false;
        let due = (started + pause).max(Instant::now());
        watched.due = Some(due);
        self.due.insert((due, instance_id.clone()));
        if let Some(signal) = watched.tally.count(outcome, &watched.check) {
            registry.report_signal(&instance_id, epoch, Source::Check, signal);
        }
    }
}

/// The offset in the interval at which a module is checked: 0 to 1, always the same for an id.
fn phase(instance_id: &str) -> f64 {
    let mut hasher = DefaultHasher::new();
    instance_id.hash(&mut hasher);
    hasher.finish() as f64 / u64::MAX as f64
}
