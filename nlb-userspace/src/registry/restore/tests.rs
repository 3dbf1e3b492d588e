//! The persisted state is restored, and no other state is persisted.

use std::time::Duration;

use tokio::time::Instant;

use super::*;
use crate::model::traffic::Traffic;
use crate::model::{Health, LimitTarget, LimitUnit, ModuleType, RateLimit, Route, Routes};
use crate::policy::promotion::Pace;
use crate::registry::fixtures::{Fleet, alb, albs, at, registration, registry, route, route_to, settings};
use crate::registry::{Drain, Owner};

/// The registry after a restart of the daemon.
fn again(registry: &Registry, now: Now) -> Registry {
    let persisted = PersistedState::clone(&registry.persisted().borrow().state);
    Registry::restore(settings(), persisted, now).expect("the persisted state fits")
}

fn number(registry: &Registry) -> u64 {
    registry.persisted().borrow().number
}

fn limit() -> RateLimit {
    RateLimit {
        target: LimitTarget::All,
        unit: LimitUnit::NewFlows,
        per_second: 5,
        per_minute: 0,
        per_hour: 0,
        burst: 0,
        enabled: true,
        metadata: Default::default(),
    }
}

fn add_version(registry: &Registry, version: &str) {
    let mut newcomer = registration(version);
    newcomer.module.version = version.into();
    registry.admit(newcomer, Now::read()).unwrap();
}

fn update(registry: &Registry, id: &str, route: Route) -> Result<(usize, u64), RegistryError> {
    let routes = Routes::unit(id.into(), route.into());
    registry.update_routes(Owner::Operator, routes, false, Commit::Apply, Now::read())
}

#[test]
fn whatever_operators_set_is_there_again() {
    let before = registry();
    let now = Now::read();
    add_version(&before, "v1");
    add_version(&before, "v2");
    update(&before, "ops", route(8080)).unwrap();
    before.set_rate_limit("all".into(), limit()).unwrap();
    before.set_version_weight(&albs(), "v2", 0, Commit::Apply, now).unwrap();
    before.promote(&albs(), "v2", Pace::Steps(30), &Traffic::default(), Commit::Apply, now).unwrap();
    before.set_instance_weight("v1", "", 7, Commit::Apply).unwrap();
    before.begin_maintenance("v2").unwrap();
    let group = GroupKey { module_type: ModuleType::Alb, version: "v1".into() };
    before.set_scaling(&group, Policy { max: 3, ..Policy::default() }).unwrap();

    let after = again(&before, now);
    assert_eq!(number(&after), 0, "a restore leaves nothing to write");
    let state = after.snapshot();
    assert!(state.modules.is_empty(), "registrations are not persisted");
    assert_eq!(state.operator_routes, before.snapshot().operator_routes);
    assert_eq!(state.operator_routes_since, before.snapshot().operator_routes_since);
    assert_eq!(state.rate_limits["all"], limit().into());
    let rollout = state.rollouts.of(&alb());
    assert_eq!(rollout.version_weights, [("v1".into(), 70), ("v2".into(), 30)].into());
    assert_eq!(rollout.former_splits.len(), 2);
    assert_eq!(rollout.promotion.as_ref().map(|p| (p.version(), p.percent())), Some(("v2", 30)));
    assert_eq!(state.scaling[&group].max, 3);
    add_version(&after, "v1");
    add_version(&after, "v2");
    let state = after.snapshot();
    assert_eq!(state.record("v1").unwrap().registration.module.weight, 7);
    assert_eq!(state.record("v1").unwrap().asked_weight, 7);
    assert_eq!(state.record("v2").unwrap().drain, Some(Drain::Maintenance));
    assert_eq!(number(&after), 0, "registrations leave nothing to write");
    after.resume("v2").unwrap();
    assert_eq!(after.snapshot().record("v2").unwrap().health(), Health::Healthy);
    after.roll_back(&albs(), "", Commit::Apply).unwrap();
    assert_eq!(after.snapshot().rollouts.of(&alb()).version_weights, [("v2".into(), 0)].into());
}

#[test]
fn only_what_operators_set_has_to_be_written() {
    let registry = registry();
    let id = registry.add("alb-1");
    registry.heartbeat("alb-1", &id, Some(Health::Degraded), None, Now::read()).unwrap();
    registry.rebalance(&[("alb-1".to_owned(), 3)].into()).unwrap();
    registry.unregister("alb-1", &id).unwrap();
    assert_eq!(number(&registry), 0);
    registry.set_rate_limit("all".into(), limit()).unwrap();
    assert_eq!(number(&registry), 1);
    registry.set_rate_limit("all".into(), limit()).unwrap();
    assert_eq!(number(&registry), 1, "the same values leave nothing to write");
    registry.remove_rate_limit("all").unwrap();
    assert_eq!(number(&registry), 2);
    registry.add("alb-1");
    registry.set_instance_weight("alb-1", "", 3, Commit::DryRun).unwrap();
    assert_eq!(number(&registry), 2);
}

#[test]
fn a_registration_counts_unless_it_only_follows_a_restart() {
    let before = registry();
    before.add("alb-1");
    before.set_instance_weight("alb-1", "", 7, Commit::Apply).unwrap();
    before.begin_maintenance("alb-1").unwrap();
    let after = again(&before, Now::read());
    let is = |registry: &Registry| {
        let record = registry.snapshot().record("alb-1").unwrap().clone();
        (record.registration.module.weight, record.drain)
    };
    after.add("alb-1");
    // The first call to register may have been answered too late.
    let id = after.add("alb-1");
    assert_eq!(is(&after), (7, Some(Drain::Maintenance)));
    after.heartbeat("alb-1", &id, None, None, Now::read()).unwrap();
    after.add("alb-1");
    assert_eq!(is(&after), (100, None), "a later registration of its own counts");
    assert!(after.persisted().borrow().state.overrides.is_empty());
}

#[test]
fn overrides_of_an_instance_are_removed_with_it() {
    let registry = registry();
    let id = registry.add("alb-1");
    registry.begin_maintenance("alb-1").unwrap();
    registry.unregister("alb-1", &id).unwrap();
    registry.add("alb-1");
    assert_eq!(registry.snapshot().record("alb-1").unwrap().drain, None);
    registry.begin_maintenance("alb-1").unwrap();
    assert!(registry.persisted().borrow().state.overrides["alb-1"].maintenance);
    registry.resume("alb-1").unwrap();
    assert!(registry.persisted().borrow().state.overrides.is_empty());
}

#[test]
fn instances_that_do_not_register_again_in_time_are_forgotten() {
    let before = registry();
    before.add("alb-1");
    before.add("alb-2");
    before.begin_maintenance("alb-1").unwrap();
    before.begin_maintenance("alb-2").unwrap();
    let start = Instant::now();
    let after = again(&before, at(start, 0));
    after.admit(registration("alb-2"), at(start, 299)).unwrap();
    after.expire_leases(at(start, 299).at);
    assert_eq!(after.snapshot().overrides.len(), 2);
    after.extend_leases(Duration::from_secs(5));
    after.expire_leases(at(start, 304).at);
    assert_eq!(after.snapshot().overrides.len(), 2, "the 5 s of a standstill do not count");
    after.expire_leases(at(start, 305).at);
    assert!(after.persisted().borrow().state.overrides.keys().eq(["alb-2"]));
    after.admit(registration("alb-1"), at(start, 306)).unwrap();
    assert_eq!(after.snapshot().record("alb-1").unwrap().drain, None);
}

#[test]
fn state_beyond_the_settings_is_not_restored() {
    let before = registry();
    update(&before, "ops", route_to("192.0.2.1", 80)).unwrap();
    before.set_rate_limit("all".into(), limit()).unwrap();
    let persisted = PersistedState::clone(&before.persisted().borrow().state);
    let refused = |settings| {
        let restored = Registry::restore(settings, persisted.clone(), Now::read());
        restored.map(drop).expect_err("the state does not fit the settings").to_string()
    };
    let elsewhere = [ipnet::IpNet::from(std::net::IpAddr::from([198, 51, 100, 1]))];
    let gone = refused(Settings { vips: elsewhere.into_iter().collect(), ..settings() });
    assert!(gone.contains("\"ops\"") && gone.contains("--vip"), "{gone}");
    let many = refused(Settings { max_routes: 0, ..settings() });
    assert!(many.contains("--max-routes"), "{many}");
    let mut small = settings();
    small.limits.rate_limits = 0;
    assert!(refused(small).contains("--max-rate-limits"));
}
