//! The task that judges modules by the TCP resets that the data path sees.
//!
//! Modules are compared with those of their type that would serve. Where more than half of them reset their flows it is the
//! service that fails, or its way of closing connections, and shutting out one after the other would only make the rest
//! carry all: then nobody is excluded, nor stays so.

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, Instant};

use crate::model::settings::OutlierConfig;
use crate::model::traffic::Traffic;
use crate::model::{Health, L4, ModuleType};
use crate::policy::health::outlier::{Change, Counters, Group, OutlierDetector};
use crate::policy::health::{HealthSignal, Source};
use crate::registry::{Registry, State};

/// As often as the data path's counters are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the data path's counters. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>, traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    let mut breakers = OutlierDetectors::default();
    loop {
        time::sleep(POLL_INTERVAL).await;
        let traffic = traffic.borrow().clone();
        for found in breakers.look(&registry.snapshot(), &traffic, Instant::now()) {
            registry.report_signal(&found.instance_id, found.epoch, Source::Resets, found.signal);
        }
    }
}

/// One for each registration, by instance id.
#[derive(Default)]
struct OutlierDetectors(BTreeMap<String, (u64, OutlierDetector)>);

struct Found {
    instance_id: String,
    epoch: u64,
    signal: HealthSignal,
}

impl OutlierDetectors {
    fn look(&mut self, state: &State, traffic: &Traffic, now: Instant) -> Vec<Found> {
        let terms = state.settings.resets;
        if terms.max_percent == 0 {
            return self.give_up();
        }
        self.0.retain(|id, (epoch, _)| state.modules.get(id).is_some_and(|record| record.epoch == *epoch));
        let counters = tcp_counters(state, traffic);
        for (instance_id, record) in &state.modules {
            let counters = counters.get(instance_id.as_str()).copied().unwrap_or_default();
            match self.0.get_mut(instance_id) {
                Some((_, outlier)) => outlier.observe(counters, &terms, now),
                None => {
                    drop(self.0.insert(instance_id.clone(), (record.epoch, OutlierDetector::new(counters))))
                }
            }
        }
        let groups = self.groups(state, &terms, now);
        let mut found = Vec::new();
        for (instance_id, (epoch, outlier)) in &mut self.0 {
            let module_type = state.modules[instance_id].registration.module.module_type;
            let group = groups.get(&module_type).copied().unwrap_or(Group::Undecided);
            let Some(change) = outlier.conclude(group, &terms, now) else { continue };
            let signal = HealthSignal { health: health_after(change), why: change.to_string() };
            found.push(Found { instance_id: instance_id.clone(), epoch: *epoch, signal });
        }
        found
    }

    /// Resets are out of account from now on: nobody is excluded for them.
    fn give_up(&mut self) -> Vec<Found> {
        let breakers = std::mem::take(&mut self.0).into_iter();
        let excluded = breakers.filter(|(_, (_, outlier))| !outlier.is_closed());
        excluded
            .map(|(instance_id, (epoch, _))| Found { instance_id, epoch, signal: HealthSignal::healthy() })
            .collect()
    }

    /// How those fare that would serve, by type.
    fn groups(&self, state: &State, terms: &OutlierConfig, now: Instant) -> BTreeMap<ModuleType, Group> {
        #[derive(Default)]
        struct Tally {
            all: usize,
            reset: usize,
            undecided: usize,
        }
        let mut tallies = BTreeMap::<ModuleType, Tally>::new();
        for (instance_id, record) in &state.modules {
            let Some((_, outlier)) = self.0.get(instance_id) else { continue };
            if !record.signals().serves_but_for_resets() {
                continue;
            }
            let tally = tallies.entry(record.registration.module.module_type).or_default();
            tally.all += 1;
            match outlier.resets(terms, now) {
                Some(resets) => tally.reset += usize::from(resets),
                None => tally.undecided += usize::from(outlier.takes_flows()),
            }
        }
        let group = |tally: Tally| match tally {
            Tally { all, reset, .. } if 2 * reset > all => Group::Resets,
            Tally { undecided: 0, .. } => Group::Serves,
            _ => Group::Undecided,
        };
        tallies.into_iter().map(|(module_type, tally)| (module_type, group(tally))).collect()
    }
}

fn health_after(change: Change) -> Health {
    match change {
        Change::Opened { .. } => Health::Unhealthy,
        Change::HalfOpened => Health::Degraded,
        Change::Closed { .. } | Change::Acquitted => Health::Healthy,
    }
}

/// By instance id, over its backends. Those of UDP routes would only hide resets; routes without a backend of their own are
/// counted together, whatever they carry.
fn tcp_counters<'a>(state: &State, traffic: &'a Traffic) -> BTreeMap<&'a str, Counters> {
    let mut counters = BTreeMap::<&str, Counters>::new();
    for (backend, counts) in &traffic.backends {
        let idle = counts.new_flows == 0 && counts.resets == 0;
        if idle || state.route_of(backend).is_some_and(|route| route.protocol.l4() == L4::Udp) {
            continue;
        }
        let sum = counters.entry(backend.instance_id.as_str()).or_default();
        *sum = sum.plus(Counters { flows: counts.new_flows, resets: counts.resets });
    }
    counters
}
