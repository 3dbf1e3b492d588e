//! Which modules resets eject, in paused time, with the registry and the task.

use super::*;
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::model::traffic::Counts;
use crate::model::{Backend, ForwardMode, Protocol, RouteKey, Snat};
use crate::registry::fixtures::{Fleet, registration, route, settings};

/// A registry with the task, and counters that the test increments.
struct Rig {
    registry: Arc<Registry>,
    counts: BTreeMap<Arc<Backend>, Counts>,
    traffic: watch::Sender<Arc<Traffic>>,
    _watching: tokio::task::JoinSet<()>,
}

impl Rig {
    /// With this many modules, named `m0` and so on.
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

    /// Adds new flows and resets, and lets a second pass.
    async fn second(&mut self, instance_id: &str, route_id: &str, new_flows: u64, resets: u64) {
        self.add(instance_id, route_id, new_flows, resets);
        self.publish().await;
    }

    fn add(&mut self, instance_id: &str, route_id: &str, new_flows: u64, resets: u64) {
        let backend = Backend {
            instance_id: instance_id.into(),
            route: Some(RouteKey { id: route_id.into(), operators: false }),
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            mode: ForwardMode::Nat,
            snat: Snat::Always,
        };
        let counts = self.counts.entry(backend.into()).or_default();
        counts.new_flows += new_flows;
        counts.resets += resets;
    }

    /// Publishes the counters.
    async fn publish(&self) {
        let traffic = Traffic { backends: self.counts.clone(), ..Traffic::default() };
        self.traffic.send_replace(Arc::new(traffic));
        self.seconds(1).await;
    }

    fn health(&self, instance_id: &str) -> Health {
        self.registry.desired().borrow().modules[instance_id].health
    }
}

#[tokio::test(start_paused = true)]
async fn a_module_that_resets_is_ejected_and_tried_again() {
    let mut rig = Rig::new(2).await;
    rig.second("m0", "web", 30, 30).await;
    assert_eq!((rig.health("m0"), rig.health("m1")), (Health::Unhealthy, Health::Healthy));
    let why = rig.registry.snapshot().record("m0").unwrap().resets.why.clone();
    assert_eq!(why, "30 TCP resets in 30 new flows; ejected for 10s");
    rig.seconds(8).await;
    assert_eq!(rig.health("m0"), Health::Unhealthy);
    rig.seconds(2).await;
    assert_eq!(rig.health("m0"), Health::Degraded, "half-open");
    rig.second("m0", "web", 30, 30).await;
    assert_eq!(rig.health("m0"), Health::Unhealthy, "the module still resets its flows");
    rig.seconds(21).await;
    assert_eq!(rig.health("m0"), Health::Degraded);
    rig.second("m0", "web", 30, 0).await;
    assert_eq!(rig.health("m0"), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn an_ejection_without_traffic_ends_by_time() {
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
async fn half_can_be_ejected_and_none_if_more_reset() {
    let mut rig = Rig::new(4).await;
    rig.second("m3", "web", 30, 30).await;
    rig.second("m1", "web", 30, 30).await;
    let health = |rig: &Rig| ["m0", "m1", "m2", "m3"].map(|module| rig.health(module));
    assert_eq!(health(&rig), [Health::Healthy, Health::Unhealthy, Health::Healthy, Health::Unhealthy]);
    rig.second("m0", "web", 30, 30).await;
    assert_eq!(health(&rig), [Health::Healthy; 4]);
    rig.second("m2", "web", 30, 30).await;
    assert_eq!(health(&rig), [Health::Healthy; 4]);
    let why = rig.registry.snapshot().record("m3").unwrap().resets.why.clone();
    assert!(why.contains("most modules of its type"), "{why}");
    let mut alone = Rig::new(1).await;
    alone.second("m0", "web", 30, 30).await;
    assert_eq!(alone.health("m0"), Health::Healthy, "there is no module to compare it with");
}

/// How often each of two modules is ejected in this many seconds of 20 flows, of which m1 gets one unless m0
/// is ejected.
async fn ejections(rig: &mut Rig, seconds: u32, resets: [bool; 2]) -> [u32; 2] {
    let mut ejected = [0, 0];
    for _ in 0..seconds {
        let unhealthy = ["m0", "m1"].map(|module| rig.health(module) == Health::Unhealthy);
        let flows = match unhealthy {
            [true, _] => [0, 20],
            [false, true] => [20, 0],
            [false, false] => [19, 1],
        };
        for (n, flows) in flows.into_iter().enumerate() {
            ejected[n] += u32::from(unhealthy[n]);
            rig.add(&format!("m{n}"), "web", flows, if resets[n] { flows } else { 0 });
        }
        rig.publish().await;
    }
    ejected
}

#[tokio::test(start_paused = true)]
async fn a_service_that_resets_everything_keeps_its_split() {
    let mut rig = Rig::new(2).await;
    let ejected = ejections(&mut rig, 600, [true, true]).await;
    assert!(ejected[0] <= 4 && ejected[1] == 0, "seconds without new flows: {ejected:?}");
    let ejected = ejections(&mut rig, 60, [true, false]).await;
    assert!(ejected[0] >= 20 && ejected[1] == 0, "the module with one flow has recovered: {ejected:?}");
}

#[tokio::test(start_paused = true)]
async fn the_busier_module_is_not_ejected_before_the_rate_of_the_other_is_known() {
    let mut rig = Rig::new(2).await;
    rig.add("m1", "web", 1, 1);
    rig.second("m0", "web", 30, 30).await;
    assert_eq!(rig.health("m0"), Health::Healthy);
    rig.add("m0", "web", 30, 30);
    rig.second("m1", "web", 19, 18).await;
    rig.seconds(5).await;
    assert_eq!(rig.health("m0"), Health::Healthy, "both reset their flows");

    let mut rig = Rig::new(2).await;
    rig.add("m1", "web", 1, 0);
    rig.second("m0", "web", 30, 30).await;
    assert_eq!(rig.health("m0"), Health::Healthy);
    rig.second("m1", "web", 19, 0).await;
    assert_eq!(rig.health("m0"), Health::Unhealthy, "the other module serves");

    let mut rig = Rig::new(2).await;
    rig.add("m1", "web", 1, 1);
    rig.second("m0", "web", 30, 30).await;
    rig.seconds(3).await;
    assert_eq!(rig.health("m0"), Health::Unhealthy, "the wait is bounded");
}

#[tokio::test(start_paused = true)]
async fn a_new_registration_starts_over() {
    let mut rig = Rig::new(2).await;
    rig.second("m0", "web", 30, 30).await;
    rig.registry.admit(registration("m0"), Now::read()).unwrap();
    assert_eq!(rig.health("m0"), Health::Healthy);
    rig.seconds(5).await;
    assert_eq!(rig.health("m0"), Health::Healthy, "earlier counts do not count");
}

#[tokio::test(start_paused = true)]
async fn switching_it_off_ends_all_ejections() {
    let mut rig = Rig::new(2).await;
    rig.second("m0", "web", 30, 30).await;
    let resets = crate::model::settings::OutlierConfig { max_percent: 0, ..Default::default() };
    let settings = Settings { resets, ..settings() };
    rig.registry.configure(settings, crate::registry::Commit::Apply).unwrap();
    rig.seconds(1).await;
    assert_eq!(rig.health("m0"), Health::Healthy);
    rig.second("m0", "web", 30, 30).await;
    assert_eq!(rig.health("m0"), Health::Healthy);
}
