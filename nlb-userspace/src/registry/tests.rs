//! Every transition of the registry, with time as an argument.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::fixtures::{Fleet, at, registration, registry, route, settings};
use super::*;
use crate::controllers::resolve::{self, Resolver};
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::model::{DataAddresses, Health};

fn health(registry: &Registry, instance_id: &str) -> Option<Health> {
    registry.desired().borrow().modules.get(instance_id).map(|module| module.health)
}

#[test]
fn a_registration_is_published_under_a_new_revision() {
    let registry = registry();
    assert_eq!(registry.desired().borrow().revision, 0);
    let registered = registry.admit(registration("alb-1"), Now::read()).unwrap();
    assert_eq!((registered.revision, registered.admission), (1, Admission::New));
    let desired = registry.desired().borrow().clone();
    assert_eq!(desired.revision, 1);
    assert_eq!(*desired.modules["alb-1"], registration("alb-1").module);
    assert_eq!(desired.vips.len(), 2);
    assert!(desired.fail_open);
}

#[test]
fn changes_outside_the_data_path_make_no_revision() {
    let registry = registry();
    let id = registry.add("alb-1");
    let beat = |health| registry.heartbeat("alb-1", &id, Some(health), None, Now::read()).unwrap();
    assert_eq!(beat(Health::Healthy), None);
    assert_eq!(registry.set_instance_weight("alb-1", "", 100, Commit::Apply).unwrap(), 1);

    registry.add("alb-2");
    assert_eq!(beat(Health::Healthy), None, "another module's registration is no reason to wait");
    assert_eq!(beat(Health::Degraded), Some(3));
}

#[test]
fn registration_ids_are_long_and_never_the_same() {
    let registry = registry();
    let (first, second) = (registry.add("alb-1"), registry.add("alb-1"));
    assert_eq!(first.len(), 32);
    assert_ne!(first, second);
}

#[test]
fn calls_must_carry_the_current_registration_id() {
    let registry = registry();
    let old = registry.add("alb-1");
    let new = registry.add("alb-1");
    let beat = |id: &str| registry.heartbeat("alb-1", id, None, None, Now::read()).map(drop);
    assert_eq!(beat(""), Err(RegistryError::CredentialMissing("alb-1".into())));
    assert_eq!(beat(&old), Err(RegistryError::CredentialInvalid("alb-1".into())));
    assert_eq!(beat(&new[..31]), Err(RegistryError::CredentialInvalid("alb-1".into())));
    assert_eq!(beat(&new), Ok(()));
    assert_eq!(
        registry.begin_leaving("alb-1", &old).unwrap_err(),
        RegistryError::CredentialInvalid("alb-1".into())
    );
    assert_eq!(
        registry.unregister("alb-1", "").unwrap_err(),
        RegistryError::CredentialMissing("alb-1".into())
    );
    let beat = registry.heartbeat("ghost", &new, None, None, Now::read());
    assert_eq!(beat, Err(RegistryError::UnknownInstance("ghost".into())));
}

#[test]
fn a_switch_accepts_empty_ids_but_no_wrong_ones() {
    let registry = Registry::new(Settings { accept_empty_ids: true, ..settings() });
    registry.add("alb-1");
    assert!(registry.heartbeat("alb-1", "", None, None, Now::read()).is_ok());
    let wrong = registry.heartbeat("alb-1", "guess", None, None, Now::read());
    assert_eq!(wrong, Err(RegistryError::CredentialInvalid("alb-1".into())));
}

#[test]
fn the_same_address_supersedes_freely() {
    let registry = registry();
    registry.add("alb-1");
    let mut again = registration("alb-1");
    again.module.weight = 7;
    let registered = registry.admit(again, Now::read()).unwrap();
    assert_eq!(registered.admission, Admission::Superseding);
    assert_eq!(registry.desired().borrow().modules["alb-1"].weight, 7);
}

#[test]
fn another_address_needs_a_credential_while_the_lease_is_valid() {
    let start = Instant::now();
    let registry = registry();
    let first = registry.admit(registration("alb-1"), at(start, 0)).unwrap();
    let elsewhere = || Registration { address: "10.0.0.9:50051".parse().unwrap(), ..registration("alb-1") };

    let refused = registry.admit(elsewhere(), at(start, 29)).unwrap_err();
    let RegistryError::Taken { epoch, address, .. } = refused else { panic!("{refused}") };
    assert_eq!(address.to_string(), "10.0.0.1:50051");
    let guess = Claim::RegistrationId("guess".into());
    assert!(matches!(
        registry.register(elsewhere(), &guess, at(start, 29)),
        Err(RegistryError::Taken { .. })
    ));
    assert_eq!(registry.desired().borrow().revision, 1, "a refused call changes nothing");

    let proof = Claim::RegistrationId(first.registration_id.reveal().into());
    let proven = registry.register(elsewhere(), &proof, at(start, 29)).unwrap();
    assert_eq!(proven.admission, Admission::Superseding);

    // A finding about an earlier registration does not count against the one that superseded it.
    let back = registry.register(registration("alb-1"), &Claim::Silent { epoch }, at(start, 29));
    assert!(matches!(back, Err(RegistryError::Taken { .. })));
    let epoch = registry.snapshot().record("alb-1").unwrap().epoch;
    assert!(registry.register(registration("alb-1"), &Claim::Silent { epoch }, at(start, 29)).is_ok());
}

#[test]
fn another_address_may_register_once_the_lease_has_expired() {
    let start = Instant::now();
    let registry = registry();
    registry.admit(registration("alb-1"), at(start, 0)).unwrap();
    let elsewhere = Registration { address: "10.0.0.9:50051".parse().unwrap(), ..registration("alb-1") };
    assert_eq!(registry.admit(elsewhere, at(start, 30)).unwrap().admission, Admission::Superseding);
}

#[test]
fn missed_heartbeats_take_flows_away_the_next_brings_them_back_and_silence_evicts() {
    let start = Instant::now();
    let registry = registry();
    let id = registry.admit(registration("alb-1"), at(start, 0)).unwrap().registration_id;

    registry.expire_leases(at(start, 29).at);
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy));
    registry.expire_leases(at(start, 30).at);
    assert_eq!(health(&registry, "alb-1"), Some(Health::Unhealthy));

    registry.heartbeat("alb-1", id.reveal(), None, None, at(start, 40)).unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy), "the next heartbeat restores it");

    registry.expire_leases(at(start, 339).at);
    assert_eq!(health(&registry, "alb-1"), Some(Health::Unhealthy));
    registry.expire_leases(at(start, 340).at);
    assert_eq!(health(&registry, "alb-1"), None);
    let beat = registry.heartbeat("alb-1", id.reveal(), None, None, at(start, 341));
    assert_eq!(beat, Err(RegistryError::UnknownInstance("alb-1".into())));
}

#[test]
fn an_expired_lease_does_not_hide_the_reported_health() {
    let start = Instant::now();
    let registry = registry();
    let id = registry.admit(registration("alb-1"), at(start, 0)).unwrap().registration_id;
    registry.expire_leases(at(start, 30).at);
    registry.heartbeat("alb-1", id.reveal(), Some(Health::Degraded), None, at(start, 31)).unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Degraded));
    registry.heartbeat("alb-1", id.reveal(), Some(Health::Stopping), None, at(start, 32)).unwrap();
    registry.expire_leases(at(start, 100).at);
    assert_eq!(
        health(&registry, "alb-1"),
        Some(Health::Stopping),
        "a stopping module is never part of a pool that fails open"
    );
}

#[tokio::test(start_paused = true)]
async fn the_lease_watcher_expires_leases_in_time() {
    let registry = Arc::new(registry());
    let watch = tokio::spawn(crate::controllers::lease_watcher::watch(registry.clone()));
    tokio::time::sleep(Duration::from_secs(7)).await;
    registry.add("alb-1");
    let mut desired = registry.desired();
    tokio::time::sleep(Duration::from_millis(29_500)).await;
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy));
    desired.mark_unchanged();
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(health(&registry, "alb-1"), Some(Health::Unhealthy));
    assert!(desired.has_changed().unwrap(), "the reconciler wakes");
    tokio::time::sleep(Duration::from_secs(270)).await;
    assert_eq!(health(&registry, "alb-1"), None);
    watch.abort();
}

#[tokio::test(start_paused = true)]
async fn a_suspended_process_expires_no_leases() {
    let registry = Arc::new(registry());
    registry.add("alb-1");
    let watch = tokio::spawn(crate::controllers::lease_watcher::watch(registry.clone()));
    tokio::time::sleep(Duration::from_secs(5)).await;
    // All timers fire late, at one jump of the clock: 60 s in which no heartbeat could be received.
    tokio::time::advance(Duration::from_secs(60)).await;
    tokio::task::yield_now().await;
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy));
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(health(&registry, "alb-1"), Some(Health::Unhealthy), "the lease is extended, not suspended");
    watch.abort();
}

#[test]
fn a_leaving_module_takes_no_flows_until_it_is_gone() {
    let start = Instant::now();
    let registry = registry();
    let id = registry.admit(registration("alb-1"), at(start, 0)).unwrap().registration_id;
    let draining = registry.begin_leaving("alb-1", id.reveal()).unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Stopping));
    registry.heartbeat("alb-1", id.reveal(), Some(Health::Healthy), None, at(start, 1)).unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Stopping), "a heartbeat does not end a drain");
    assert_eq!(registry.resume("alb-1").unwrap_err(), RegistryError::Leaving("alb-1".into()));
    registry.expire_leases(at(start, 1000).at);
    assert_eq!(health(&registry, "alb-1"), Some(Health::Stopping), "the drain has its own deadline");
    assert!(registry.remove("alb-1", draining.epoch).is_some());
    assert_eq!(health(&registry, "alb-1"), None);
}

#[test]
fn a_drain_ends_its_own_registration_only() {
    let registry = registry();
    let id = registry.add("alb-1");
    let draining = registry.begin_leaving("alb-1", &id).unwrap();
    registry.add("alb-1");
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy), "registering again ends the drain");
    assert_eq!(registry.remove("alb-1", draining.epoch), None);
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy));
}

#[test]
fn an_operator_drains_and_resumes() {
    let registry = registry();
    let id = registry.add("alb-1");
    registry.begin_maintenance("alb-1").unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Stopping));
    registry.resume("alb-1").unwrap();
    assert_eq!(health(&registry, "alb-1"), Some(Health::Healthy));
    registry.begin_leaving("alb-1", &id).unwrap();
    registry.begin_maintenance("alb-1").unwrap();
    assert_eq!(registry.snapshot().record("alb-1").unwrap().drain, Some(Drain::Leaving));
    assert_eq!(
        registry.begin_maintenance("ghost").unwrap_err(),
        RegistryError::UnknownInstance("ghost".into())
    );
}

#[test]
fn unregistering_at_once_forgets_the_module() {
    let registry = registry();
    let id = registry.add("alb-1");
    assert_eq!(registry.unregister("alb-1", &id).unwrap(), 2);
    assert!(registry.desired().borrow().modules.is_empty());
    assert_eq!(registry.unregister("alb-1", &id), Err(RegistryError::UnknownInstance("alb-1".into())));
}

#[test]
fn the_number_of_modules_and_routes_is_bounded() {
    let registry = registry();
    for instance in ["a", "b", "c", "d"] {
        registry.add(instance);
    }
    let fifth = registry.admit(registration("e"), Now::read());
    assert_eq!(fifth.unwrap_err(), RegistryError::TooManyModules(4));
    registry.add("a");

    let more: BTreeMap<_, _> = (1..=5).map(|port| (port.to_string(), route(port))).collect();
    let refused = registry.update_routes(Owner::Operator, more.into(), false, Commit::Apply, Now::read());
    assert_eq!(refused, Err(RegistryError::TooManyRoutes { wanted: 9, limit: 8 }));
    assert!(registry.desired().borrow().operator_routes.is_empty());
}

#[test]
fn a_moved_name_changes_its_own_registration_only() {
    let registry = registry();
    let mut named = registration("alb-1");
    named.data_hosts = vec!["alb-1.example".parse().unwrap()];
    registry.admit(named.clone(), Now::read()).unwrap();
    let [found] = &registry.named_hosts()[..] else { panic!("one module has a name") };
    let moved = DataAddresses { v4: Some("10.0.0.7".parse().unwrap()), v6: None };
    registry.readdress("alb-1", found.epoch, moved);
    assert_eq!(registry.desired().borrow().modules["alb-1"].data, moved);
    registry.admit(named, Now::read()).unwrap();
    registry.readdress("alb-1", found.epoch, moved);
    assert_eq!(registry.desired().borrow().modules["alb-1"].data, registration("alb-1").module.data);
}

#[test]
fn modules_without_names_are_not_looked_up() {
    let registry = registry();
    registry.add("alb-1");
    assert!(registry.named_hosts().is_empty());
}

#[tokio::test(start_paused = true)]
async fn names_are_looked_up_again_and_followed() {
    let registry = Arc::new(registry());
    let mut named = registration("alb-1");
    named.data_hosts = vec!["alb-1.example".parse().unwrap()];
    registry.admit(named, Now::read()).unwrap();
    let moved_after = Instant::now() + Duration::from_secs(45);
    let resolver = Resolver::with(move |_| async move {
        let address = if Instant::now() < moved_after { "10.0.0.1" } else { "10.0.0.7" };
        Ok(vec![address.parse().unwrap()])
    });
    let follow = tokio::spawn(resolve::follow(registry.clone(), resolver, Duration::from_secs(30)));
    let address = || registry.desired().borrow().modules["alb-1"].data.v4.map(|address| address.to_string());
    tokio::time::sleep(Duration::from_secs(59)).await;
    assert_eq!(address().as_deref(), Some("10.0.0.1"));
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(address().as_deref(), Some("10.0.0.7"));
    follow.abort();
}

#[tokio::test(start_paused = true)]
async fn a_name_that_no_longer_resolves_keeps_its_last_address() {
    let registry = Arc::new(registry());
    let mut named = registration("alb-1");
    named.data_hosts = vec!["alb-1.example".parse().unwrap()];
    registry.admit(named, Now::read()).unwrap();
    let before = registry.desired().borrow().clone();
    let resolver = Resolver::with(|_| async { Err(std::io::Error::other("no such host")) });
    let follow = tokio::spawn(resolve::follow(registry.clone(), resolver, Duration::from_secs(30)));
    tokio::time::sleep(Duration::from_secs(31)).await;
    assert_eq!(*registry.desired().borrow(), before);
    follow.abort();
}
