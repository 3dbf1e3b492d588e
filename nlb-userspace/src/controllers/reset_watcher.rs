//! The task of outlier detection, by the TCP resets that the data path counts.
//!
//! Modules are compared with those of their type that would otherwise take new flows. If more than half of
//! these reset their flows, the cause is the service, or the way in which it closes connections: ejections
//! would only send all flows to the other modules. Then no module is ejected, and all ejections end.

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

/// The interval in which the data path's counters are read.
const POLL_INTERVAL: Duration = Duration::from_secs(1);

/// Watches the data path's counters. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>, traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    let mut detectors = OutlierDetectors::default();
    loop {
        time::sleep(POLL_INTERVAL).await;
        let traffic = traffic.borrow().clone();
        for found in detectors.evaluate(&registry.snapshot(), &traffic, Instant::now()) {
            registry.report_signal(&found.instance_id, found.epoch, Source::Resets, found.signal);
        }
    }
}

/// One detector for each registration, by instance id.
#[derive(Default)]
struct OutlierDetectors(BTreeMap<String, (u64, OutlierDetector)>);

struct Found {
    instance_id: String,
    epoch: u64,
    signal: HealthSignal,
}

impl OutlierDetectors {
    fn evaluate(&mut self, state: &State, traffic: &Traffic, now: Instant) -> Vec<Found> {
        let config = state.settings.resets;
        if config.max_percent == 0 {
            return self.end_ejections();
        }
        self.0.retain(|id, (epoch, _)| state.modules.get(id).is_some_and(|record| record.epoch == *epoch));
        let counters = tcp_counters(state, traffic);
        for (instance_id, record) in &state.modules {
            let counters = counters.get(instance_id.as_str()).copied().unwrap_or_default();
            match self.0.get_mut(instance_id) {
                Some((_, outlier)) => outlier.observe(counters, &config, now),
                None => {
                    drop(self.0.insert(instance_id.clone(), (record.epoch, OutlierDetector::new(counters))))
                }
            }
        }
        let groups = self.groups(state, &config, now);
        let mut found = Vec::new();
        for (instance_id, (epoch, outlier)) in &mut self.0 {
            let module_type = state.modules[instance_id].registration.module.module_type;
            let group = groups.get(&module_type).copied().unwrap_or(Group::Undecided);
            let Some(change) = outlier.conclude(group, &config, now) else { continue };
            let signal = HealthSignal { health: health_after(change), why: change.to_string() };
            found.push(Found { instance_id: instance_id.clone(), epoch: *epoch, signal });
        }
        found
    }

    /// Outlier detection is switched off: all ejections end.
    fn end_ejections(&mut self) -> Vec<Found> {
        let detectors = std::mem::take(&mut self.0).into_iter();
        let ejected = detectors.filter(|(_, (_, outlier))| !outlier.is_closed());
        ejected
            .map(|(instance_id, (epoch, _))| Found { instance_id, epoch, signal: HealthSignal::healthy() })
            .collect()
    }

    /// The state of each type's modules, over those that would otherwise take new flows.
    fn groups(&self, state: &State, config: &OutlierConfig, now: Instant) -> BTreeMap<ModuleType, Group> {
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
            match outlier.resets(config, now) {
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

/// Counters by instance id, summed over its backends. Backends of UDP routes are left out, because they have
/// no resets; routes without a backend of their own are counted together, whatever their protocol.
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
