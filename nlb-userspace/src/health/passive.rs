//! The task that judges modules by the TCP resets that the data path sees.
//!
//! At most half of those modules of a type that would serve are excluded at a time. Where more of them reset their flows it
//! is the service that fails, or its way of closing connections, and shutting out one after the other would only make the
//! rest carry all.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{self, Instant};

use super::breaker::{Breaker, Change, Counters};
use super::{Opinion, Source};
use crate::model::{Health, L4, ModuleType};
use crate::registry::{Registry, State};
use crate::stats::Traffic;

/// As often as the data path's counters are read.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Watches the data path's counters. Runs until it is dropped.
pub async fn watch(registry: Arc<Registry>, traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    let mut breakers = Breakers::default();
    loop {
        time::sleep(LOOK_EVERY).await;
        let traffic = traffic.borrow().clone();
        for found in breakers.look(&registry.snapshot(), &traffic, Instant::now()) {
            registry.opine(&found.instance_id, found.epoch, Source::Resets, found.opinion);
        }
    }
}

/// One for each registration, by instance id.
#[derive(Default)]
struct Breakers(BTreeMap<String, (u64, Breaker)>);

struct Found {
    instance_id: String,
    epoch: u64,
    opinion: Opinion,
}

impl Breakers {
    fn look(&mut self, state: &State, traffic: &Traffic, now: Instant) -> Vec<Found> {
        let terms = state.settings.resets;
        if terms.max_percent == 0 {
            return self.give_up();
        }
        self.0.retain(|id, (epoch, _)| state.modules.get(id).is_some_and(|record| record.epoch == *epoch));
        let counters = tcp_counters(state, traffic);
        let mut rooms = self.rooms(state);
        let mut found = Vec::new();
        for (instance_id, record) in &state.modules {
            let counters = counters.get(instance_id.as_str()).copied().unwrap_or_default();
            let Some((_, breaker)) = self.0.get_mut(instance_id) else {
                self.0.insert(instance_id.clone(), (record.epoch, Breaker::new(counters)));
                continue;
            };
            let room = rooms.entry(record.registration.module.module_type).or_default();
            let was_closed = breaker.is_closed();
            let Some(change) = breaker.look(counters, *room > 0, &terms, now) else { continue };
            if was_closed {
                *room -= 1;
            }
            let opinion = Opinion { health: health_after(change), why: change.to_string() };
            found.push(Found { instance_id: instance_id.clone(), epoch: record.epoch, opinion });
        }
        found
    }

    /// Resets are out of account from now on: nobody is excluded for them.
    fn give_up(&mut self) -> Vec<Found> {
        let breakers = std::mem::take(&mut self.0).into_iter();
        let excluded = breakers.filter(|(_, (_, breaker))| !breaker.is_closed());
        excluded
            .map(|(instance_id, (epoch, _))| Found { instance_id, epoch, opinion: Opinion::healthy() })
            .collect()
    }

    /// How many more modules of each type may be excluded.
    fn rooms(&self, state: &State) -> BTreeMap<ModuleType, usize> {
        let mut serving = BTreeMap::<ModuleType, (usize, usize)>::new();
        for (instance_id, record) in &state.modules {
            if !record.opinions().serves_but_for_resets() {
                continue;
            }
            let (all, excluded) = serving.entry(record.registration.module.module_type).or_default();
            *all += 1;
            let closed = self.0.get(instance_id).is_none_or(|(_, breaker)| breaker.is_closed());
            *excluded += usize::from(!closed);
        }
        serving
            .into_iter()
            .map(|(kind, (all, excluded))| (kind, (all / 2).saturating_sub(excluded)))
            .collect()
    }
}

fn health_after(change: Change) -> Health {
    match change {
        Change::Opened { .. } => Health::Unhealthy,
        Change::HalfOpened => Health::Degraded,
        Change::Closed { .. } => Health::Healthy,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Backend, ForwardMode, Protocol, RouteKey, Snat};
    use crate::registry::fixtures::{Fleet, registration, route, settings};
    use crate::registry::{Now, Settings};
    use crate::stats::Counts;

    /// A registry under watch, and counters that are told what is added.
    struct Rig {
        registry: Arc<Registry>,
        counts: BTreeMap<Backend, Counts>,
        traffic: watch::Sender<Arc<Traffic>>,
        _watching: tokio::task::JoinSet<()>,
    }

    impl Rig {
        /// With this many modules, `m0` and so on.
        async fn new(modules: usize) -> Rig {
            let registry = Arc::new(Registry::new(settings()));
            for n in 0..modules {
                let mut registration = registration(&format!("m{n}"));
                let udp = crate::model::Route { protocol: Protocol::Udp, ..route(53) };
                registration.module.routes.insert("dns".into(), udp.into());
                registry.admit(registration, Now::read()).unwrap();
            }
            let (traffic, read) = watch::channel(Arc::default());
            let mut watching = tokio::task::JoinSet::new();
            let watched = watch(registry.clone(), read);
            watching.spawn(async move { match watched.await {} });
            let rig = Rig { registry, counts: BTreeMap::new(), traffic, _watching: watching };
            rig.seconds(1).await;
            rig
        }

        async fn seconds(&self, seconds: u64) {
            time::sleep(Duration::from_millis(seconds * 1000 + 10)).await;
        }

        /// New flows and resets in the second that follows.
        async fn second(&mut self, instance_id: &str, route_id: &str, new_flows: u64, resets: u64) {
            let backend = Backend {
                instance_id: instance_id.into(),
                route: Some(RouteKey { id: route_id.into(), operators: false }),
                addr: "10.0.0.1".parse().unwrap(),
                port: 80,
                mode: ForwardMode::Nat,
                snat: Snat::Always,
            };
            let counts = self.counts.entry(backend).or_default();
            counts.new_flows += new_flows;
            counts.resets += resets;
            let traffic = Traffic { backends: self.counts.clone(), ..Traffic::default() };
            self.traffic.send_replace(Arc::new(traffic));
            self.seconds(1).await;
        }

        fn health(&self, instance_id: &str) -> Health {
            self.registry.desired().borrow().modules[instance_id].health
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_module_that_resets_is_excluded_and_tried_again() {
        let mut rig = Rig::new(2).await;
        rig.second("m0", "web", 30, 30).await;
        assert_eq!((rig.health("m0"), rig.health("m1")), (Health::Unhealthy, Health::Healthy));
        let why = rig.registry.snapshot().record("m0").unwrap().resets.why.clone();
        assert_eq!(why, "30 TCP resets in 30 new flows; tried again after 10s");
        rig.seconds(8).await;
        assert_eq!(rig.health("m0"), Health::Unhealthy);
        rig.seconds(2).await;
        assert_eq!(rig.health("m0"), Health::Degraded, "on trial");
        rig.second("m0", "web", 30, 30).await;
        assert_eq!(rig.health("m0"), Health::Unhealthy, "it has not recovered");
        rig.seconds(21).await;
        assert_eq!(rig.health("m0"), Health::Degraded);
        rig.second("m0", "web", 30, 0).await;
        assert_eq!(rig.health("m0"), Health::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn one_without_traffic_comes_back_by_time() {
        let mut rig = Rig::new(2).await;
        rig.second("m0", "web", 30, 30).await;
        rig.seconds(25).await;
        assert_eq!(rig.health("m0"), Health::Healthy);
    }

    #[tokio::test(start_paused = true)]
    async fn udp_flows_do_not_hide_resets() {
        let mut rig = Rig::new(2).await;
        rig.second("m0", "dns", 1000, 0).await;
        assert_eq!(rig.health("m0"), Health::Healthy);
        rig.second("m0", "web", 30, 20).await;
        assert_eq!(rig.health("m0"), Health::Unhealthy);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_than_half_are_excluded_at_a_time() {
        let mut rig = Rig::new(4).await;
        for module in ["m3", "m1", "m0", "m2"] {
            rig.second(module, "web", 30, 30).await;
        }
        let health = ["m0", "m1", "m2", "m3"].map(|module| rig.health(module));
        assert_eq!(health, [Health::Healthy, Health::Unhealthy, Health::Healthy, Health::Unhealthy]);
        let mut alone = Rig::new(1).await;
        alone.second("m0", "web", 30, 30).await;
        assert_eq!(alone.health("m0"), Health::Healthy, "there is nobody to compare it with");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_registration_has_a_clean_sheet() {
        let mut rig = Rig::new(2).await;
        rig.second("m0", "web", 30, 30).await;
        rig.registry.admit(registration("m0"), Now::read()).unwrap();
        assert_eq!(rig.health("m0"), Health::Healthy);
        rig.seconds(5).await;
        assert_eq!(rig.health("m0"), Health::Healthy, "what was counted before does not count");
    }

    #[tokio::test(start_paused = true)]
    async fn switching_it_off_gives_everybody_flows_again() {
        let mut rig = Rig::new(2).await;
        rig.second("m0", "web", 30, 30).await;
        let resets = crate::health::breaker::Terms { max_percent: 0, ..Default::default() };
        let settings = Settings { resets, ..settings() };
        rig.registry.configure(settings, crate::registry::Commit::Apply).unwrap();
        rig.seconds(1).await;
        assert_eq!(rig.health("m0"), Health::Healthy);
        rig.second("m0", "web", 30, 30).await;
        assert_eq!(rig.health("m0"), Health::Healthy);
    }
}
