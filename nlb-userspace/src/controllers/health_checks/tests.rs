//! Checks in paused time: when they are made, what they change, and when they end.

use std::collections::BTreeMap;
use std::sync::Mutex;

use super::*;
use crate::model::Health;
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::registry::Registration;
use crate::registry::fixtures::{CHECK, Fleet, registration, registry, settings};

/// How the module responds to a check.
#[derive(Clone, Copy, PartialEq)]
enum Does {
    Pass,
    Fail,
    Hang,
}

/// A registry with the task, and the checks that were made, in milliseconds since the start.
struct Rig {
    registry: Arc<Registry>,
    does: Arc<Mutex<Does>>,
    tried: Arc<Mutex<Vec<(String, u64)>>>,
    /// Checks in flight, and the most there ever were.
    in_flight: Arc<Mutex<(usize, usize)>>,
    _watching: JoinSet<()>,
}

impl Rig {
    fn new(does: Does) -> Rig {
        Rig::over(registry(), does)
    }

    fn over(registry: Registry, does: Does) -> Rig {
        let registry = Arc::new(registry);
        let does = Arc::new(Mutex::new(does));
        let (tried, in_flight) = (Arc::<Mutex<Vec<(String, u64)>>>::default(), Arc::default());
        let (start, doing, trying) = (Instant::now(), does.clone(), tried.clone());
        let flying: Arc<Mutex<(usize, usize)>> = Arc::clone(&in_flight);
        let probe = move |target: Target| {
            let millis = start.elapsed().as_millis() as u64;
            trying.lock().unwrap().push((target.instance_id, millis));
            let (does, flight) = (*doing.lock().unwrap(), Flight::begin(&flying));
            async move {
                let _flight = flight;
                match does {
                    Does::Pass => Ok(()),
                    Does::Fail => Err("refused".to_owned()),
                    Does::Hang => std::future::pending().await,
                }
            }
        };
        let mut watching = JoinSet::new();
        let watched = watch(registry.clone(), probe);
        watching.spawn(async move { match watched.await {} });
        Rig { registry, does, tried, in_flight, _watching: watching }
    }

    fn add(&self, instance_id: &str) {
        self.registry.admit(checked(instance_id), Now::read()).unwrap();
    }

    fn does(&self, does: Does) {
        *self.does.lock().unwrap() = does;
    }

    fn health(&self) -> Health {
        self.registry.desired().borrow().modules["alb-1"].health
    }

    fn reason(&self) -> String {
        let snapshot = self.registry.snapshot();
        snapshot.record("alb-1").unwrap().signal(Source::Check).unwrap().why.clone()
    }

    /// When the module was checked, in seconds.
    fn tries(&self) -> Vec<f64> {
        self.tried.lock().unwrap().iter().map(|(_, millis)| *millis as f64 / 1000.0).collect()
    }
}

struct Flight(Arc<Mutex<(usize, usize)>>);

impl Flight {
    fn begin(in_flight: &Arc<Mutex<(usize, usize)>>) -> Flight {
        let (now, most) = &mut *in_flight.lock().unwrap();
        *now += 1;
        *most = (*most).max(*now);
        Flight(in_flight.clone())
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.lock().unwrap().0 -= 1;
    }
}

fn checked(instance_id: &str) -> Registration {
    Registration { check: Some(CHECK), ..registration(instance_id) }
}

async fn seconds(seconds: u64) {
    time::sleep(Duration::from_secs(seconds)).await;
}

/// Advances the time to just after a check: there is one check in each interval.
async fn checks(rig: &Rig, count: usize) {
    let enough = rig.tries().len() + count;
    while rig.tries().len() < enough {
        time::sleep(Duration::from_millis(10)).await;
    }
    time::sleep(Duration::from_millis(10)).await;
}

#[tokio::test(start_paused = true)]
async fn a_new_module_is_checked_at_once_and_healthy_once_it_passes() {
    let rig = Rig::new(Does::Pass);
    seconds(5).await;
    rig.add("alb-1");
    assert_eq!(rig.health(), Health::Starting, "the module takes no flows before the first success");
    seconds(1).await;
    assert_eq!((rig.health(), rig.tries()), (Health::Healthy, vec![5.0]));
}

#[tokio::test(start_paused = true)]
async fn a_module_that_never_passes_stays_starting_with_a_reason() {
    let rig = Rig::new(Does::Fail);
    rig.add("alb-1");
    seconds(120).await;
    assert_eq!(rig.health(), Health::Starting);
    assert_eq!(rig.reason(), "never passed: refused");
    rig.does(Does::Pass);
    checks(&rig, 1).await;
    assert_eq!(rig.health(), Health::Healthy);
}

#[tokio::test(start_paused = true)]
async fn each_module_is_checked_once_an_interval_at_an_offset_of_its_own() {
    let rig = Rig::over(Registry::new(Settings { max_modules: 100, ..settings() }), Does::Pass);
    for n in 0..8 {
        rig.add(&format!("alb-{n}"));
    }
    seconds(100).await;
    let mut by_module = BTreeMap::<String, Vec<u64>>::new();
    for (id, millis) in rig.tried.lock().unwrap().iter() {
        by_module.entry(id.clone()).or_default().push(*millis);
    }
    let mut moments = BTreeSet::new();
    for (id, tries) in by_module {
        assert!((10..=11).contains(&tries.len()), "{id}: {tries:?}");
        assert!(tries[1] <= 10_000, "{id}: {tries:?}");
        assert!(
            tries[1..].windows(2).all(|pair| (10_000..10_100).contains(&(pair[1] - pair[0]))),
            "{tries:?}"
        );
        moments.insert(tries[1] / 100);
    }
    assert!(moments.len() > 4, "checks are not all at the same time: {moments:?}");
}

#[tokio::test(start_paused = true)]
async fn thresholds_decide_and_a_flapping_check_changes_nothing() {
    let rig = Rig::new(Does::Pass);
    rig.add("alb-1");
    checks(&rig, 1).await;
    let revision = || rig.registry.desired().borrow().revision;
    let before = revision();
    for does in
        [Does::Fail, Does::Fail, Does::Pass, Does::Fail, Does::Pass, Does::Fail, Does::Fail, Does::Pass]
    {
        rig.does(does);
        checks(&rig, 1).await;
        assert_eq!((rig.health(), revision()), (Health::Healthy, before));
    }
    rig.does(Does::Fail);
    checks(&rig, 2).await;
    assert_eq!(rig.health(), Health::Healthy);
    checks(&rig, 1).await;
    assert_eq!(rig.health(), Health::Unhealthy);
    assert_eq!(rig.reason(), "failures in a row: 3; the last: refused");
    rig.does(Does::Pass);
    checks(&rig, 1).await;
    assert_eq!(rig.health(), Health::Unhealthy);
    checks(&rig, 1).await;
    assert_eq!((rig.health(), revision()), (Health::Healthy, before + 2));
}

#[tokio::test(start_paused = true)]
async fn a_check_that_hangs_is_cut_at_its_timeout() {
    let rig = Rig::new(Does::Hang);
    rig.add("alb-1");
    time::sleep(Duration::from_millis(1900)).await;
    assert_eq!(rig.in_flight.lock().unwrap().0, 1);
    time::sleep(Duration::from_millis(200)).await;
    assert_eq!(rig.in_flight.lock().unwrap().0, 0);
    assert_eq!(rig.reason(), "never passed: no answer within 2s");
}

#[tokio::test(start_paused = true)]
async fn the_number_of_checks_in_flight_is_bounded_and_all_are_made() {
    let many = MAX_IN_FLIGHT + 44;
    let limits = crate::model::settings::TableSizes { backends: 1000, ..settings().limits };
    let settings = Settings { max_modules: many, max_routes: many, limits, ..settings() };
    let rig = Rig::over(Registry::new(settings), Does::Hang);
    for n in 0..many {
        rig.add(&format!("alb-{n}"));
    }
    seconds(5).await;
    assert_eq!(rig.in_flight.lock().unwrap().1, MAX_IN_FLIGHT);
    let tried: BTreeSet<String> = rig.tried.lock().unwrap().iter().map(|(id, _)| id.clone()).collect();
    assert_eq!(tried.len(), many);
}

#[tokio::test(start_paused = true)]
async fn a_superseding_registration_starts_over_and_a_removed_one_is_not_checked() {
    let rig = Rig::new(Does::Pass);
    rig.add("alb-1");
    checks(&rig, 1).await;
    rig.does(Does::Fail);
    rig.add("alb-1");
    seconds(2).await;
    assert_eq!(rig.health(), Health::Starting, "a check of the former registration does not count");
    assert_eq!(rig.tries().len(), 2, "checked at once");
    seconds(100).await;
    assert!((12..=13).contains(&rig.tries().len()), "checks follow one schedule: {:?}", rig.tries());
    let epoch = rig.registry.snapshot().record("alb-1").unwrap().epoch;
    rig.registry.remove("alb-1", epoch);
    let tries = rig.tries().len();
    seconds(60).await;
    assert_eq!(rig.tries().len(), tries);
}

#[tokio::test(start_paused = true)]
async fn heartbeats_and_drains_neither_hide_a_failed_check_nor_are_hidden_by_a_good_one() {
    let rig = Rig::new(Does::Pass);
    let id = rig.registry.admit(checked("alb-1"), Now::read()).unwrap().registration_id;
    let beat = |health| {
        rig.registry.heartbeat("alb-1", id.reveal(), Some(health), None, Now::read()).unwrap();
    };
    checks(&rig, 1).await;
    beat(Health::Degraded);
    assert_eq!(rig.health(), Health::Degraded);
    rig.does(Does::Fail);
    checks(&rig, 3).await;
    beat(Health::Healthy);
    assert_eq!(rig.health(), Health::Unhealthy);
    rig.registry.begin_maintenance("alb-1").unwrap();
    assert_eq!(rig.health(), Health::Stopping);
    rig.does(Does::Pass);
    checks(&rig, 2).await;
    assert_eq!(rig.health(), Health::Stopping);
    rig.registry.resume("alb-1").unwrap();
    assert_eq!(rig.health(), Health::Healthy);
}
