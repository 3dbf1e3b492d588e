//! Every transition of a promotion, in paused time, with the registry and the task.

use std::collections::BTreeMap;

use super::*;
use crate::model::settings::{PromotionConfig, Settings};
use crate::model::traffic::Counts;
use crate::model::{Backend, ForwardMode, Health, RouteKey, Snat};
use crate::policy::promotion::*;
use crate::registry::fixtures::{Fleet as _, alb, albs, registration, settings};
use crate::registry::{Commit, Moved, PersistedState, RegistryError, Report};

/// A registry with v1 and v2, each with one instance of the same name, and the task.
struct Fleet {
    registry: Arc<Registry>,
    traffic: watch::Sender<Arc<Traffic>>,
    ids: BTreeMap<&'static str, String>,
}

const STEP: u64 = 30;

fn moved(previous: &str, current: &str) -> Moved {
    Moved { previous: previous.into(), current: current.into() }
}

impl Fleet {
    fn start() -> Fleet {
        let promotion = PromotionConfig { step: Duration::from_secs(STEP), max_error_percent: 5 };
        let mut fleet = Fleet::with(Registry::new(Settings { promotion, ..settings() }));
        fleet.add("v1");
        fleet.add("v2");
        fleet
    }

    fn with(registry: Registry) -> Fleet {
        let registry = Arc::new(registry);
        let (traffic, readings) = watch::channel(Arc::default());
        let promotions = super::watch(registry.clone(), readings);
        tokio::spawn(async move { match promotions.await {} });
        Fleet { registry, traffic, ids: BTreeMap::new() }
    }

    fn add(&mut self, version: &'static str) {
        let mut newcomer = registration(version);
        newcomer.module.version = version.into();
        let registered = self.registry.admit(newcomer, Now::read()).unwrap();
        self.ids.insert(version, registered.registration_id.reveal().to_owned());
    }

    fn promote(&self, version: &str, pace: Pace) -> Result<u32, RegistryError> {
        let traffic = self.traffic.borrow().clone();
        let promoted = self.registry.promote(&albs(), version, pace, &traffic, Commit::Apply, Now::read());
        promoted.map(|promoted| promoted.percent[&alb()])
    }

    fn report(&self, instance: &str, health: Option<Health>, total_requests: u64, failed_requests: u64) {
        let report = Report { total_requests, failed_requests, ..Report::default() };
        let id = &self.ids[instance];
        self.registry.heartbeat(instance, id, health, Some(report), Now::read()).unwrap();
    }

    fn see(&self, instance: &str, new_flows: u64, resets: u64) {
        let backend = Backend {
            instance_id: instance.into(),
            route: Some(RouteKey { id: "web".into(), operators: false }),
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            mode: ForwardMode::Nat,
            snat: Snat::Always,
        };
        let counts = Counts { new_flows, resets, ..Counts::default() };
        self.traffic.send_replace(Arc::new(Traffic {
            backends: [(backend.into(), counts)].into(),
            ..Traffic::default()
        }));
    }

    /// Lets this many seconds pass, one by one, so that every evaluation is made.
    async fn pass(&self, seconds: u64) {
        for _ in 0..seconds {
            time::sleep(Duration::from_secs(1)).await;
        }
    }

    fn weights(&self) -> Vec<(String, u32)> {
        self.registry.desired().borrow().weights_of(&alb()).clone().into_iter().collect()
    }

    fn split(&self) -> (u32, u32) {
        let weights = self.registry.desired().borrow().weights_of(&alb()).clone();
        (weights["v1"], weights["v2"])
    }

    fn is_promoting(&self) -> bool {
        self.registry.snapshot().rollouts.of(&alb()).promotion.is_some()
    }

    fn ended(&self) -> String {
        self.registry.snapshot().rollouts.of(&alb()).last_promotion.clone().unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn grows_step_by_step_and_is_complete_after_a_last_evaluation() {
    let fleet = Fleet::start();
    // Without a weight of its own, v2 would have half by the weight of its instance.
    fleet.registry.set_version_weight(&albs(), "v2", 0, Commit::Apply, Now::read()).unwrap();
    assert_eq!(fleet.promote("v2", Pace::Steps(40)), Ok(40));
    assert_eq!(fleet.split(), (60, 40), "the first step is made at once");
    fleet.pass(STEP - 2).await;
    assert_eq!(fleet.split(), (60, 40));
    fleet.pass(4).await;
    assert_eq!(fleet.split(), (20, 80));
    fleet.pass(STEP).await;
    assert_eq!(fleet.split(), (0, 100), "never more than all new flows");
    assert!(fleet.is_promoting(), "all new flows are evaluated for a step, too");
    fleet.pass(STEP + 2).await;
    assert!(!fleet.is_promoting());
    assert_eq!(fleet.split(), (0, 100));
    assert_eq!(fleet.ended(), "v2 has all new flows");
}

#[tokio::test(start_paused = true)]
async fn starts_from_the_versions_current_share() {
    let fleet = Fleet::start();
    assert_eq!(fleet.promote("v2", Pace::Steps(10)), Ok(60), "it had half");
    assert_eq!(fleet.split(), (40, 60));
}

#[tokio::test(start_paused = true)]
async fn the_others_divide_the_rest_as_before() {
    let mut fleet = Fleet::start();
    fleet.add("v3");
    for (version, weight) in [("v1", 60), ("v3", 20), ("v2", 20)] {
        fleet.registry.set_version_weight(&albs(), version, weight, Commit::Apply, Now::read()).unwrap();
    }
    fleet.promote("v2", Pace::Steps(40)).unwrap();
    assert_eq!(fleet.weights(), [("v1".into(), 30), ("v2".into(), 60), ("v3".into(), 10)]);
}

#[tokio::test(start_paused = true)]
async fn at_once_is_one_revision() {
    let fleet = Fleet::start();
    let before = fleet.registry.desired().borrow().revision;
    assert_eq!(fleet.promote("v2", Pace::AtOnce), Ok(100));
    assert_eq!((fleet.split(), fleet.registry.desired().borrow().revision), ((0, 100), before + 1));
    fleet.pass(STEP + 2).await;
    assert!(!fleet.is_promoting());
}

#[tokio::test(start_paused = true)]
async fn failed_requests_roll_it_back_at_any_step() {
    for steps in [0, 1, 2] {
        let fleet = Fleet::start();
        fleet.report("v2", None, 500, 500);
        fleet.promote("v2", Pace::Steps(15)).unwrap();
        fleet.pass(steps * STEP + 2).await;
        assert!(fleet.is_promoting(), "earlier errors do not count");
        fleet.report("v2", None, 600, 506);
        fleet.pass(2).await;
        assert_eq!((fleet.is_promoting(), fleet.weights()), (false, Vec::new()), "after {steps} steps");
        assert_eq!(fleet.ended(), "v2 was rolled back: 6 of 100 requests failed");
    }
}

#[tokio::test(start_paused = true)]
async fn resets_roll_it_back() {
    let fleet = Fleet::start();
    fleet.see("v2", 100, 50);
    fleet.promote("v2", Pace::AtOnce).unwrap();
    fleet.see("v2", 119, 69);
    fleet.pass(2).await;
    assert!(fleet.is_promoting(), "too few flows for a sample");
    fleet.see("v2", 120, 70);
    fleet.pass(2).await;
    assert_eq!((fleet.is_promoting(), fleet.weights()), (false, Vec::new()));
    assert_eq!(fleet.ended(), "v2 was rolled back: 20 TCP resets in 20 new flows");
}

#[tokio::test(start_paused = true)]
async fn errors_of_the_former_version_do_not_count() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::Steps(10)).unwrap();
    fleet.report("v1", None, 1000, 1000);
    fleet.see("v1", 1000, 1000);
    fleet.pass(2).await;
    assert!(fleet.is_promoting());
}

#[tokio::test(start_paused = true)]
async fn a_version_without_serving_instances_is_rolled_back() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::AtOnce).unwrap();
    fleet.report("v2", Some(Health::Unhealthy), 0, 0);
    fleet.pass(2).await;
    assert_eq!((fleet.is_promoting(), fleet.weights()), (false, Vec::new()));
    assert_eq!(fleet.ended(), "v2 was rolled back: no instance of it takes new flows");
}

#[tokio::test(start_paused = true)]
async fn it_stops_if_no_other_version_can_serve() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::AtOnce).unwrap();
    let v1 = fleet.registry.snapshot().record("v1").unwrap().epoch;
    fleet.registry.remove("v1", v1);
    // v2 is the active version of the former split too, because v1 is unregistered.
    fleet.report("v2", Some(Health::Unhealthy), 0, 0);
    fleet.pass(2).await;
    assert_eq!((fleet.is_promoting(), fleet.split()), (false, (0, 100)));
    assert!(fleet.ended().starts_with("v2 was stopped"), "{}", fleet.ended());
}

#[tokio::test(start_paused = true)]
async fn the_same_version_changes_its_pace_and_another_has_to_wait() {
    let mut fleet = Fleet::start();
    fleet.add("v3");
    fleet.registry.set_version_weight(&albs(), "v3", 0, Commit::Apply, Now::read()).unwrap();
    fleet.registry.set_version_weight(&albs(), "v2", 0, Commit::Apply, Now::read()).unwrap();
    fleet.promote("v2", Pace::Steps(10)).unwrap();
    assert_eq!(
        fleet.promote("v3", Pace::AtOnce),
        Err(RegistryError::Promoting { version: "v2".into(), percent: 10 })
    );
    assert_eq!(fleet.promote("v2", Pace::AtOnce), Ok(100));
    let back = fleet.registry.roll_back(&albs(), "", Commit::Apply).unwrap();
    assert_eq!(back.moved[&alb()], moved("v2", "v1"));
    assert_eq!(
        fleet.weights(),
        [("v2".into(), 0), ("v3".into(), 0)],
        "the split before the promotion, not before its last step"
    );
    assert!(!fleet.is_promoting());
}

/// The fleet after a restart of the daemon: nothing but the persisted state is left.
fn restarted(before: &Fleet) -> Fleet {
    let persisted = PersistedState::clone(&before.registry.persisted().borrow().state);
    let registry = Registry::restore((*before.registry.settings()).clone(), persisted, Now::read()).unwrap();
    Fleet::with(registry)
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_it_waits_for_its_instances_and_resumes_its_step() {
    let fleet = Fleet::start();
    fleet.registry.set_version_weight(&albs(), "v2", 0, Commit::Apply, Now::read()).unwrap();
    fleet.promote("v2", Pace::Steps(40)).unwrap();
    fleet.pass(STEP + 2).await;
    assert_eq!(fleet.split(), (20, 80));

    let mut fleet = restarted(&fleet);
    fleet.add("v1");
    fleet.pass(3 * STEP).await;
    assert_eq!((fleet.is_promoting(), fleet.split()), (true, (20, 80)), "v2 has no instance yet");
    fleet.add("v2");
    fleet.report("v2", None, 500, 500);
    fleet.pass(STEP - 2).await;
    assert_eq!(fleet.split(), (20, 80), "the step lasts its full time");
    fleet.pass(4).await;
    assert_eq!(fleet.split(), (0, 100));
    fleet.pass(STEP + 2).await;
    assert_eq!((fleet.is_promoting(), fleet.split()), (false, (0, 100)));
    assert_eq!(fleet.ended(), "v2 has all new flows");
}

#[tokio::test(start_paused = true)]
async fn after_a_restart_it_can_be_rolled_back() {
    for errs in [true, false] {
        let fleet = Fleet::start();
        fleet.promote("v2", Pace::AtOnce).unwrap();
        let mut fleet = restarted(&fleet);
        fleet.add("v1");
        fleet.add("v2");
        fleet.report("v2", None, 500, 500);
        fleet.pass(2).await;
        assert!(fleet.is_promoting(), "counts from before the restart do not count");
        match errs {
            true => fleet.report("v2", None, 600, 506),
            false => fleet.report("v2", Some(Health::Unhealthy), 500, 500),
        }
        fleet.pass(2).await;
        assert_eq!((fleet.is_promoting(), fleet.weights()), (false, Vec::new()));
        assert!(fleet.ended().starts_with("v2 was rolled back"), "{}", fleet.ended());
    }
}

#[tokio::test(start_paused = true)]
async fn while_it_waits_an_operator_can_end_it() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::Steps(10)).unwrap();
    let mut fleet = restarted(&fleet);
    fleet.add("v1");
    fleet.registry.roll_back(&albs(), "", Commit::Apply).unwrap();
    assert_eq!((fleet.is_promoting(), fleet.weights()), (false, Vec::new()));
}

#[tokio::test(start_paused = true)]
async fn another_version_can_be_promoted_during_the_last_evaluation() {
    for pace in [Pace::AtOnce, Pace::Steps(40)] {
        let fleet = Fleet::start();
        fleet.promote("v2", Pace::AtOnce).unwrap();
        fleet.promote("v1", pace).unwrap();
        let v1 = if pace == Pace::AtOnce { 100 } else { 40 };
        assert_eq!(fleet.split(), (v1, 100 - v1));
        fleet.report("v2", None, 100, 100);
        fleet.pass(2).await;
        assert!(fleet.is_promoting(), "errors of the former version roll nothing back");
        fleet.report("v1", None, 100, 100);
        fleet.pass(2).await;
        assert_eq!((fleet.is_promoting(), fleet.split()), (false, (0, 100)));
        assert!(fleet.ended().starts_with("v1 was rolled back"), "{}", fleet.ended());
    }
}

#[tokio::test(start_paused = true)]
async fn an_operators_weight_ends_a_promotion_in_its_last_evaluation() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::AtOnce).unwrap();
    fleet.registry.set_version_weight(&albs(), "v1", 50, Commit::Apply, Now::read()).unwrap();
    fleet.report("v2", None, 100, 100);
    fleet.pass(STEP).await;
    assert_eq!((fleet.is_promoting(), fleet.split()), (false, (50, 100)));
}

#[tokio::test(start_paused = true)]
async fn an_operators_weight_ends_it() {
    let fleet = Fleet::start();
    fleet.promote("v2", Pace::Steps(10)).unwrap();
    fleet.registry.set_version_weight(&albs(), "v1", 7, Commit::Apply, Now::read()).unwrap();
    fleet.pass(3 * STEP).await;
    assert_eq!((fleet.is_promoting(), fleet.split()), (false, (7, 60)));
}

#[tokio::test(start_paused = true)]
async fn a_rollback_is_one_revision_and_goes_further_back_each_time() {
    let fleet = Fleet::start();
    let set = |version, weight| {
        fleet.registry.set_version_weight(&albs(), version, weight, Commit::Apply, Now::read()).unwrap();
    };
    assert_eq!(fleet.registry.roll_back(&albs(), "", Commit::Apply), Err(RegistryError::NoFormerSplit));
    set("v1", 95);
    set("v2", 5);
    fleet.promote("v2", Pace::AtOnce).unwrap();
    let before = fleet.registry.desired().borrow().revision;
    assert!(fleet.registry.roll_back(&albs(), "", Commit::DryRun).is_ok());
    assert_eq!(fleet.split(), (0, 100), "a dry run");
    let back = fleet.registry.roll_back(&albs(), "", Commit::Apply).unwrap();
    assert_eq!((&back.moved[&alb()], back.revision), (&moved("v2", "v1"), before + 1));
    assert_eq!(fleet.split(), (95, 5));
    fleet.registry.roll_back(&albs(), "", Commit::Apply).unwrap();
    assert_eq!(fleet.weights(), [("v1".into(), 95)]);
}

#[tokio::test(start_paused = true)]
async fn a_rollback_to_a_version_finds_its_last_split() {
    let fleet = Fleet::start();
    let set = |version, weight| {
        fleet.registry.set_version_weight(&albs(), version, weight, Commit::Apply, Now::read()).unwrap();
    };
    set("v2", 5);
    set("v2", 300);
    set("v2", 400);
    let back = fleet.registry.roll_back(&albs(), "v1", Commit::Apply).unwrap();
    assert_eq!(back.moved[&alb()], moved("v2", "v1"));
    assert_eq!(fleet.weights(), [("v2".into(), 5)]);
    assert_eq!(
        fleet.registry.roll_back(&albs(), "v2", Commit::Apply),
        Err(RegistryError::NeverActive("v2".into()))
    );
    assert_eq!(
        fleet.registry.roll_back(&albs(), "v9", Commit::Apply),
        Err(RegistryError::UnknownVersion("v9".into()))
    );
}

#[tokio::test(start_paused = true)]
async fn a_split_without_serving_instances_is_not_restored() {
    let fleet = Fleet::start();
    for (version, weight) in [("v1", 0), ("v2", 0), ("v2", 5)] {
        fleet.registry.set_version_weight(&albs(), version, weight, Commit::Apply, Now::read()).unwrap();
    }
    let refusal = fleet.registry.roll_back(&albs(), "", Commit::Apply).unwrap_err();
    assert_eq!(refusal, RegistryError::EmptySplit);
    let why = refusal.to_string();
    assert!(why.contains("weight 0") && why.contains("target_version"), "{why}");
    assert_eq!(fleet.split(), (0, 5), "a refused rollback changes nothing");
    let back = fleet.registry.roll_back(&albs(), "v2", Commit::Apply).unwrap();
    assert_eq!(
        (back.moved[&alb()].current.as_str(), fleet.weights()),
        ("v2", vec![("v1".to_owned(), 0)]),
        "a target_version with flows can be named"
    );
}

#[tokio::test(start_paused = true)]
async fn unknown_versions_are_not_promoted() {
    let fleet = Fleet::start();
    assert_eq!(fleet.promote("v9", Pace::AtOnce), Err(RegistryError::UnknownVersion("v9".into())));
    assert!(fleet.weights().is_empty());
}
