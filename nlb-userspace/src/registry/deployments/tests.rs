//! Splits, promotions and rollbacks of several deployments side by side.

use super::*;
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::model::traffic::Traffic;
use crate::model::weight_request::{WeightOutcome, WeightRequest};
use crate::model::{Health, ModuleType, VersionWeights};
use crate::policy::promotion::{Pace, Stage};
use crate::registry::fixtures::{Fleet, alb, albs, registration, settings};
use crate::registry::rollouts::MAX_VERSIONS;
use crate::registry::{Commit, PersistedRollout, PersistedState, Registration, Registry, Split};

fn dblb() -> Deployment {
    ModuleType::Dblb.into()
}

fn dblbs() -> Deployments {
    [dblb()].into()
}

fn both() -> Deployments {
    [alb(), dblb()].into()
}

fn of(deployment: &Deployment, instance_id: &str, version: &str) -> Registration {
    let mut newcomer = registration(instance_id);
    newcomer.module.deployment = deployment.clone();
    newcomer.module.version = version.to_owned();
    newcomer
}

fn add(registry: &Registry, deployment: &Deployment, instance_id: &str, version: &str) {
    registry.admit(of(deployment, instance_id, version), Now::read()).unwrap();
}

fn restored(persisted: PersistedState) -> Registry {
    let settings = Settings { max_modules: 1000, max_routes: 1000, ..settings() };
    Registry::restore(settings, persisted, Now::read()).unwrap()
}

/// Ends the wait for registrations after a start.
fn end_waiting(registry: &Registry) {
    let ended = registry.change(Commit::Apply, |state| {
        state.end_waiting();
        Ok(())
    });
    ended.unwrap();
}

/// ALBs and DBLBs of v1 and v2, with one instance each, that have registered since the start.
fn fleet(persisted: PersistedState) -> Registry {
    let registry = restored(persisted);
    for version in ["v1", "v2"] {
        add(&registry, &alb(), &format!("alb-{version}"), version);
        add(&registry, &dblb(), &format!("dblb-{version}"), version);
    }
    end_waiting(&registry);
    registry
}

fn start() -> Registry {
    fleet(PersistedState::default())
}

fn promote(registry: &Registry, deployments: &Deployments, pace: Pace) -> Result<u64, RegistryError> {
    let promoted =
        registry.promote(deployments, "v2", pace, &Traffic::default(), Commit::Apply, Now::read())?;
    Ok(promoted.revision)
}

fn weigh(registry: &Registry, deployments: &Deployments, version: &str, weight: u32) {
    registry.set_version_weight(deployments, version, weight, Commit::Apply, Now::read()).unwrap();
}

fn shares(registry: &Registry, deployment: &Deployment) -> (u32, u32) {
    let shares = registry.snapshot().version_shares(deployment);
    (shares["v1"], shares["v2"])
}

fn weights(registry: &Registry, deployment: &Deployment) -> VersionWeights {
    registry.desired().borrow().weights_of(deployment).clone()
}

fn roll_back(registry: &Registry, deployments: &Deployments) -> Result<u64, RegistryError> {
    registry.roll_back(deployments, "", Commit::Apply).map(|rolled| rolled.revision)
}

#[test]
fn promotions_of_two_deployments_run_side_by_side() {
    let registry = start();
    promote(&registry, &albs(), Pace::Steps(10)).unwrap();
    promote(&registry, &dblbs(), Pace::Steps(20)).unwrap();
    assert_eq!((shares(&registry, &alb()), shares(&registry, &dblb())), ((40, 60), (30, 70)));
    promote(&registry, &albs(), Pace::AtOnce).unwrap();
    assert_eq!((shares(&registry, &alb()), shares(&registry, &dblb())), ((0, 100), (30, 70)));
    roll_back(&registry, &albs()).unwrap();
    assert_eq!((weights(&registry, &alb()).len(), shares(&registry, &dblb())), (0, (30, 70)));
    let state = registry.snapshot();
    assert!(state.rollouts.of(&alb()).promotion.is_none() && state.rollouts.of(&dblb()).promotion.is_some());
    weigh(&registry, &albs(), "v1", 7);
    assert!(registry.snapshot().rollouts.of(&dblb()).promotion.is_some(), "a weight of the ALBs ends none");
    roll_back(&registry, &dblbs()).unwrap();
    assert_eq!(shares(&registry, &alb()), (7, 100));
    assert!(registry.snapshot().rollouts.own.keys().eq([&alb()]), "nothing is left to keep of the DBLBs");
}

#[test]
fn errors_of_one_deployment_roll_back_no_other() {
    let registry = start();
    promote(&registry, &both(), Pace::Steps(10)).unwrap();
    let mut sick = of(&dblb(), "dblb-v2", "v2");
    sick.module.health = Health::Unhealthy;
    registry.admit(sick, Now::read()).unwrap();
    registry.follow_promotions(&Traffic::default(), Now::read());
    assert_eq!((shares(&registry, &alb()), weights(&registry, &dblb()).len()), ((40, 60), 0));
    let state = registry.snapshot();
    let ended = state.rollouts.of(&dblb()).last_promotion.clone().unwrap();
    assert_eq!(ended, "v2 was rolled back: no instance of it takes new flows");
    assert!(state.rollouts.of(&alb()).promotion.is_some());
}

#[test]
fn several_deployments_are_changed_as_one_or_not_at_all() {
    let registry = start();
    let before = registry.desired().borrow().revision;
    assert_eq!(promote(&registry, &both(), Pace::AtOnce), Ok(before + 1));
    assert_eq!(roll_back(&registry, &both()), Ok(before + 2));
    weigh(&registry, &albs(), "v1", 50);
    let refusal = roll_back(&registry, &both()).unwrap_err();
    assert!(
        refusal.to_string().starts_with("in deployment DBLB: the split was not changed yet"),
        "{refusal}"
    );
    assert_eq!(shares(&registry, &alb()), (50, 100), "nothing was changed");
    let v3 = registry.set_version_weight(&both(), "v3", 5, Commit::Apply, Now::read()).unwrap_err();
    assert!(v3.to_string().contains("in deployment ALB: no registered instance"), "{v3}");
}

#[test]
fn a_call_with_a_version_alone_is_for_the_one_deployment_that_has_it() {
    let registry = start();
    add(&registry, &alb(), "alb-v3", "v3");
    let state = registry.snapshot();
    assert_eq!(state.deployments_with(&Scope::Implied, "v3"), Ok(albs()));
    assert_eq!(state.deployments_with(&Scope::All, "v2"), Ok(both()));
    assert_eq!(state.deployments_with(&Scope::All, "v3"), Ok(albs()));
    assert_eq!(state.deployments_with(&Scope::One(dblb()), "v2"), Ok(dblbs()));
    let refused = |scope: Scope, version| state.deployments_with(&scope, version).unwrap_err().to_string();
    let many = refused(Scope::Implied, "v2");
    assert_eq!(
        many,
        "several deployments have version \"v2\": ALB, DBLB; name one, or \"all\", in metadata deployment or by --deployment"
    );
    assert!(refused(Scope::All, "v9").starts_with("no registered instance has version \"v9\""));
    assert!(refused(Scope::One(dblb()), "v3").contains("instance of deployment DBLB has version \"v3\""));
    let unknown = refused(Scope::One(Deployment::named("shop")), "v2");
    assert_eq!(unknown, "there is no deployment \"shop\"; there are: ALB, DBLB");
}

#[test]
fn an_instance_stands_for_its_deployment() {
    let state = start().snapshot();
    for scope in [Scope::Implied, Scope::One(alb())] {
        assert_eq!(state.deployment_of("alb-v1", &scope), Ok(alb()));
    }
    for (scope, named) in [(Scope::One(dblb()), "\"DBLB\""), (Scope::All, "\"all\"")] {
        let refusal = state.deployment_of("alb-v1", &scope).unwrap_err().to_string();
        assert!(refusal.contains("is in deployment ALB") && refusal.contains(named), "{refusal}");
    }
}

#[test]
fn a_rollback_without_a_version_is_for_the_one_deployment_with_a_former_split() {
    let registry = start();
    let meant = |scope: Scope| registry.snapshot().deployments_to_roll_back(&scope, "");
    assert_eq!(meant(Scope::Implied), Err(RegistryError::NoFormerSplit));
    weigh(&registry, &dblbs(), "v1", 5);
    assert_eq!((meant(Scope::Implied), meant(Scope::All)), (Ok(dblbs()), Ok(dblbs())));
    assert_eq!(meant(Scope::One(alb())), Err(RegistryError::NoFormerSplit));
    weigh(&registry, &albs(), "v1", 5);
    let refusal = meant(Scope::Implied).unwrap_err().to_string();
    assert!(refusal.contains("several deployments have a former split: ALB, DBLB"), "{refusal}");
    assert_eq!((meant(Scope::All), meant(Scope::One(alb()))), (Ok(both()), Ok(albs())));
}

#[test]
fn a_question_is_about_one_deployment() {
    let registry = start();
    let state = registry.snapshot();
    assert_eq!(state.deployment_asked_about(&Scope::One(alb())), Ok(Some(alb())));
    for scope in [Scope::Implied, Scope::All] {
        let refusal = state.deployment_asked_about(&scope).unwrap_err().to_string();
        assert!(refusal.contains("ALB, DBLB; name one in metadata deployment"), "{refusal}");
    }
    for instance_id in ["dblb-v1", "dblb-v2"] {
        let epoch = state.record(instance_id).unwrap().epoch;
        registry.remove(instance_id, epoch);
    }
    assert_eq!(registry.snapshot().deployment_asked_about(&Scope::Implied), Ok(Some(alb())));
}

#[test]
fn a_modules_request_is_for_its_own_deployment() {
    let registry = start();
    let split = WeightRequest::Split([("v1".to_owned(), 10), ("v2".to_owned(), 90)].into());
    let epoch = registry.snapshot().record("dblb-v1").unwrap().epoch;
    promote(&registry, &albs(), Pace::Steps(10)).unwrap();
    let applied = registry.apply_weight_request("dblb-v1", epoch, &split, Now::read());
    assert_eq!(applied, WeightOutcome::Done);
    assert_eq!((shares(&registry, &alb()), shares(&registry, &dblb())), ((40, 60), (10, 90)));
    add(&registry, &alb(), "alb-v3", "v3");
    let elsewhere = WeightRequest::Split([("v1".to_owned(), 10), ("v3".to_owned(), 90)].into());
    let waits = registry.apply_weight_request("dblb-v1", epoch, &elsewhere, Now::read());
    assert!(matches!(waits, WeightOutcome::Waits(why) if why.contains("deployment DBLB has version \"v3\"")));
}

/// What an earlier release persisted: v2 is promoted, and has 30 % of the whole fleet.
fn before_deployments() -> PersistedState {
    let stage = Stage {
        version: "v2".into(),
        percent: 30,
        per_step: 30,
        started_at: Now::read().wall,
        others: [("v1".to_owned(), 100)].into(),
    };
    let fleet_rollout = PersistedRollout {
        version_weights: [("v1".to_owned(), 70), ("v2".to_owned(), 30)].into(),
        former_splits: vec![Split { weights: [("v2".to_owned(), 0)].into(), since: None }],
        promotion: Some(stage),
        ..PersistedRollout::default()
    };
    PersistedState { fleet_rollout, ..PersistedState::default() }
}

#[test]
fn an_earlier_releases_split_counts_until_a_deployment_has_its_own() {
    let registry = fleet(before_deployments());
    assert_eq!((shares(&registry, &alb()), shares(&registry, &dblb())), ((70, 30), (70, 30)));
    assert!(registry.desired().borrow().splits.is_empty(), "the data path is as before");
    let others = Deployment::named("later");
    add(&registry, &others, "later-v2", "v2");
    assert_eq!(weights(&registry, &others)["v2"], 30);
    roll_back(&registry, &albs()).unwrap();
    assert_eq!((shares(&registry, &alb()), shares(&registry, &dblb())), ((100, 0), (70, 30)));
    let state = registry.snapshot();
    assert!(state.rollouts.of(&alb()).promotion.is_none() && state.rollouts.of(&dblb()).promotion.is_some());
    let persisted = PersistedState::clone(&registry.persisted().borrow().state);
    let after = fleet(persisted);
    assert_eq!((shares(&after, &alb()), shares(&after, &dblb())), ((100, 0), (70, 30)));
    weigh(&after, &dblbs(), "v1", 9);
    assert_eq!((shares(&after, &alb()), shares(&after, &dblb())), ((100, 0), (9, 30)));
}

#[test]
fn an_earlier_releases_promotion_goes_on_for_those_that_had_it() {
    let registry = fleet(before_deployments());
    promote(&registry, &albs(), Pace::AtOnce).unwrap();
    let mut now = Now::read();
    for expected in [(70, 30), (40, 60), (10, 90), (0, 100)] {
        registry.follow_promotions(&Traffic::default(), now);
        assert_eq!((shares(&registry, &dblb()), shares(&registry, &alb())), (expected, (0, 100)));
        now.at += registry.settings().promotion.step;
    }
    registry.follow_promotions(&Traffic::default(), now);
    let state = registry.snapshot();
    assert_eq!(state.rollouts.fleet.last_promotion.as_deref(), Some("v2 has all new flows"));
    assert_eq!(state.rollouts.of(&alb()).last_promotion.as_deref(), Some("v2 has all new flows"));
}

#[test]
fn the_common_promotion_ends_with_the_last_deployment_that_has_its_version() {
    let registry = fleet(before_deployments());
    let epoch = registry.snapshot().record("dblb-v2").unwrap().epoch;
    registry.remove("dblb-v2", epoch);
    add(&registry, &dblb(), "dblb-v3", "v3");
    registry.follow_promotions(&Traffic::default(), Now::read());
    let before = weights(&registry, &dblb());
    roll_back(&registry, &albs()).unwrap();
    registry.follow_promotions(&Traffic::default(), Now::read());
    let state = registry.snapshot();
    assert!(state.rollouts.fleet.promotion.is_none());
    assert_eq!(
        state.rollouts.fleet.last_promotion.as_deref(),
        Some("v2 was stopped: no deployment without a split of its own has an instance of it")
    );
    assert_eq!(weights(&registry, &dblb()), before, "a rollback of the ALBs moves no flow of the DBLBs");
}

/// All flows went to v2 of the fleet, and the DBLBs have v1 only: the data path does not split them.
#[test]
fn shares_and_rollbacks_are_those_of_the_data_path() {
    let fleet_rollout = PersistedRollout {
        version_weights: [("v1".to_owned(), 0), ("v2".to_owned(), 100)].into(),
        former_splits: vec![Split {
            weights: [("v1".to_owned(), 0), ("v2".to_owned(), 10)].into(),
            since: None,
        }],
        ..PersistedRollout::default()
    };
    let registry = restored(PersistedState { fleet_rollout, ..PersistedState::default() });
    add(&registry, &alb(), "alb-v1", "v1");
    add(&registry, &alb(), "alb-v2", "v2");
    add(&registry, &dblb(), "dblb-v1", "v1");
    let state = registry.snapshot();
    assert_eq!(state.version_shares(&alb()), [("v1".into(), 0), ("v2".into(), 100)].into());
    assert_eq!(state.version_shares(&dblb()), [("v1".into(), 100)].into());
    assert_eq!((state.active_version(&alb()), state.active_version(&dblb())), (Some("v2"), Some("v1")));
    let rolled = registry.roll_back(&dblbs(), "", Commit::Apply).unwrap();
    assert_eq!(rolled.moved[&dblb()].current, "v1");
    assert_eq!(registry.snapshot().active_version(&dblb()), Some("v1"));
}

#[test]
fn the_common_promotion_blocks_no_deployment_without_its_version() {
    let registry = restored(before_deployments());
    add(&registry, &alb(), "alb-v2", "v2");
    for version in ["v1", "v3"] {
        add(&registry, &dblb(), &format!("dblb-{version}"), version);
    }
    let promote = || {
        let pace = Pace::Steps(10);
        registry.promote(&dblbs(), "v3", pace, &Traffic::default(), Commit::Apply, Now::read())
    };
    assert!(matches!(promote(), Err(RegistryError::Promoting { .. })), "DBLBs of v2 may register again");
    end_waiting(&registry);
    let epoch = registry.snapshot().record("dblb-v1").unwrap().epoch;
    let split = WeightRequest::Split([("v1".to_owned(), 10), ("v3".to_owned(), 90)].into());
    registry.apply_weight_request("dblb-v1", epoch, &split, Now::read());
    assert_eq!(weights(&registry, &dblb())["v3"], 90, "a module's request is not blocked either");
    promote().unwrap();
    let state = registry.snapshot();
    assert_eq!(state.promotion_of(&dblb()).unwrap().version(), "v3");
    assert_eq!(state.promotion_of(&alb()).unwrap().version(), "v2");
}

#[test]
fn the_common_promotion_awaits_its_instances_after_a_start() {
    let registry = restored(before_deployments());
    add(&registry, &alb(), "alb-v1", "v1");
    weigh(&registry, &albs(), "v1", 7);
    assert!(registry.snapshot().rollouts.fleet.promotion.is_some(), "the DBLBs of v2 have yet to register");
    add(&registry, &dblb(), "dblb-v2", "v2");
    registry.follow_promotions(&Traffic::default(), Now::read());
    let state = registry.snapshot();
    assert_eq!(state.promotion_of(&dblb()).unwrap().version(), "v2");
    registry.remove("dblb-v2", state.record("dblb-v2").unwrap().epoch);
    add(&registry, &alb(), "alb-v2", "v2");
    end_waiting(&registry);
    let fleet = registry.snapshot().rollouts.fleet.clone();
    assert!(fleet.promotion.is_none() && fleet.last_promotion.unwrap().starts_with("v2 was stopped"));
}

#[test]
fn versions_that_come_and_go_do_not_fill_the_memory() {
    let registry = start();
    weigh(&registry, &albs(), "v1", 5);
    for n in 0..MAX_VERSIONS + 3 {
        let version = format!("x{n}");
        add(&registry, &alb(), "passing", &version);
        weigh(&registry, &albs(), &version, 7);
    }
    let weights = weights(&registry, &alb());
    assert!(weights.len() <= MAX_VERSIONS, "{}", weights.len());
    assert_eq!((weights["v1"], weights[&format!("x{}", MAX_VERSIONS + 2)]), (5, 7), "they have instances");
}

/// A module that registers again and again with another deployment, each time with a request of its own.
#[test]
fn requests_of_modules_displace_no_operators_split() {
    let ask = |registry: &Registry, deployment: &Deployment| {
        for version in ["v1", "v2"] {
            add(registry, deployment, &format!("passing-{version}"), version);
        }
        let epoch = registry.snapshot().record("passing-v1").unwrap().epoch;
        let split = WeightRequest::Split([("v1".to_owned(), 10), ("v2".to_owned(), 90)].into());
        let applied = registry.apply_weight_request("passing-v1", epoch, &split, Now::read());
        assert_eq!(applied, WeightOutcome::Done);
        assert_eq!(shares(registry, deployment), (10, 90));
    };
    let before = start();
    promote(&before, &both(), Pace::AtOnce).unwrap();
    for n in 0..MAX_ROLLOUTS {
        ask(&before, &Deployment::named(format!("d{n}")));
    }
    let persisted = PersistedState::clone(&before.persisted().borrow().state);
    assert_eq!(persisted.rollouts.len(), MAX_ROLLOUTS);

    let settings = Settings { max_modules: 1000, max_routes: 1000, ..settings() };
    let registry = Registry::restore(settings, persisted.clone(), Now::read()).unwrap();
    let names =
        |registry: &Registry| registry.snapshot().rollouts.own.keys().cloned().collect::<Deployments>();
    for n in 0..3 {
        ask(&registry, &Deployment::named(format!("again{n}")));
    }
    let restored: Deployments = persisted.rollouts.keys().cloned().collect();
    assert!(names(&registry).is_superset(&restored), "instances have yet to register again");
    assert_eq!(names(&registry).len(), MAX_ROLLOUTS + 1, "those of modules since the start are forgotten");

    let waited = Now::read().at + registry.settings().lease.evict_after;
    registry.expire_leases(waited);
    for n in 0..MAX_ROLLOUTS {
        ask(&registry, &Deployment::named(format!("late{n}")));
    }
    assert!(names(&registry).is_superset(&both()), "operators set them");
    let shop = Deployment::named("shop");
    add(&registry, &shop, "shop-v1", "v1");
    weigh(&registry, &[shop].into(), "v1", 5);
    assert!(names(&registry).is_superset(&both()), "there are others to forget first");
}

#[test]
fn a_request_of_a_module_displaces_nothing_where_operators_set_all_splits() {
    let set =
        PersistedRollout { version_weights: [("v1".to_owned(), 5)].into(), ..PersistedRollout::default() };
    let names = (0..MAX_ROLLOUTS).map(|n| Deployment::named(format!("d{n}")));
    let rollouts = names.map(|name| (name, set.clone())).collect();
    let registry = fleet(PersistedState { rollouts, ..PersistedState::default() });
    let epoch = registry.snapshot().record("alb-v1").unwrap().epoch;
    let split = WeightRequest::Split([("v1".to_owned(), 10), ("v2".to_owned(), 90)].into());
    registry.apply_weight_request("alb-v1", epoch, &split, Now::read());
    assert_eq!(shares(&registry, &alb()), (10, 90));
    assert_eq!(registry.snapshot().rollouts.own.len(), MAX_ROLLOUTS + 1);
    weigh(&registry, &dblbs(), "v1", 5);
    assert_eq!(
        registry.snapshot().rollouts.own.len(),
        MAX_ROLLOUTS + 1,
        "an operator's displaces the oldest"
    );
}

#[test]
fn names_of_modules_do_not_fill_the_memory() {
    let registry = start();
    weigh(&registry, &albs(), "v1", 5);
    for n in 0..MAX_ROLLOUTS + 3 {
        let passing = Deployment::named(format!("d{n}"));
        add(&registry, &passing, "passing", "v1");
        weigh(&registry, &[passing].into(), "v1", 5);
    }
    let state = registry.snapshot();
    assert_eq!(state.rollouts.own.len(), MAX_ROLLOUTS);
    assert_eq!(state.rollouts.of(&alb()).version_weights["v1"], 5, "it has instances");
    assert!(state.rollouts.own.contains_key(&Deployment::named(format!("d{}", MAX_ROLLOUTS + 2))));
    assert!(!state.rollouts.own.contains_key(&Deployment::named("d0")), "the oldest without an instance");
}
