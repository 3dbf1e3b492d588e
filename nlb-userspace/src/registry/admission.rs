//! Whether a registration is accepted, and what becomes of the registration with the same id.

use std::sync::Arc;
use std::time::SystemTime;

use super::record::Relation;
use super::{Claim, Record, Registration, RegistrationId, RegistryError, State, suitability};
use crate::model::clock::Now;
use crate::policy::lease::LeaseState;

/// The effect of a call to register.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    /// No registration had the id.
    New,
    /// It superseded the registration with the id.
    Superseding,
    /// The registration of the same process goes on, with the values of this call.
    Renewed,
    /// The call has no effect: a later call of the same process came first.
    Outdated,
}

impl State {
    pub(super) fn admit(
        &mut self,
        mut registration: Registration,
        claim: &Claim,
        now: Now,
    ) -> Result<(RegistrationId, SystemTime, Admission), RegistryError> {
        let instance_id = registration.instance_id.clone();
        let old = self.modules.get(&instance_id).cloned();
        let relation = old.as_ref().map(|old| old.relation(&registration));
        if let (Some(old), Some(Relation::Outdated)) = (&old, relation) {
            return Ok((old.registration_id.clone(), old.registered_at, Admission::Outdated));
        }
        if let Some(old) = &old {
            // The nonce is as secret as the registration_id, and proves the same.
            if !old.is_same_process(&registration) {
                self.check_claim(old, &registration, claim, now)?;
            }
            // The answers of the former registration are valid until the module is asked again.
            registration.module.abilities = old.registration.module.abilities.clone();
        }
        suitability::check_suited(&registration, &registration.module.routes, &self.operator_routes)?;
        suitability::check_server_id(&registration, &self.modules)?;
        self.check_deployment(&registration)?;
        let (record, admission) = match (old, relation) {
            (Some(old), Some(Relation::Continuation)) => {
                let overrides = self.overrides.get(&instance_id).copied().unwrap_or_default();
                let mut record = Record::clone(&old);
                record.renew(registration, overrides, || self.next_epoch(), now);
                (record, Admission::Renewed)
            }
            (old, _) => {
                let mut record = Record::new(registration, self.next_epoch(), now);
                record.apply_overrides(self.overrides_of_newcomer(&instance_id));
                (record, if old.is_some() { Admission::Superseding } else { Admission::New })
            }
        };
        let answer = (record.registration_id.clone(), record.registered_at, admission);
        self.modules.insert(instance_id, Arc::new(record));
        Ok(answer)
    }

    /// Whether another process may supersede a registration.
    fn check_claim(
        &self,
        old: &Record,
        newcomer: &Registration,
        claim: &Claim,
        now: Now,
    ) -> Result<(), RegistryError> {
        let lives = old.lease.state(&self.settings.lease, now.at) == LeaseState::Valid;
        if !lives || claim.overrides(old) {
            return Ok(());
        }
        let instance_id = old.registration.instance_id.clone();
        // A module may have another port after a restart.
        if old.registration.address.host != newcomer.address.host {
            let address = old.registration.address.clone();
            return Err(RegistryError::Taken { instance_id, address, epoch: old.epoch });
        }
        // Of two running processes, the one that started last keeps the id.
        match newcomer.is_of_earlier_start(&old.registration) {
            true => Err(RegistryError::StartedEarlier(instance_id)),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use tokio::time::Instant;

    use super::super::fixtures::{CHECK, Fleet, at, registration, registry, route};
    use super::super::{Attempt, Commit, Drain, Registered, Registry};
    use super::*;
    use crate::model::weight_request::WeightRequest;
    use crate::model::{Deployment, Health, ModuleType};
    use crate::policy::health::{HealthSignal, Source};

    const NONCE: &str = "0123456789abcdef";

    /// A call with this number, of the process with this nonce.
    fn call_of(nonce: &str, number: u64) -> Registration {
        let attempt = Some(Attempt::new(nonce.to_owned(), number));
        Registration { attempt, ..registration("alb-1") }
    }

    fn call(number: u64) -> Registration {
        call_of(NONCE, number)
    }

    fn weighing(number: u64, weight: u32) -> Registration {
        let mut call = call(number);
        call.module.weight = weight;
        call
    }

    fn record(registry: &Registry) -> Record {
        registry.snapshot().record("alb-1").unwrap().clone()
    }

    fn is_same(one: &Registered, other: &Registered) -> bool {
        one.registration_id == other.registration_id
    }

    #[test]
    fn a_call_and_its_repetition_make_one_registration_in_either_order() {
        for numbers in [[1, 2], [2, 1]] {
            let (registry, start) = (registry(), Instant::now());
            let calls = numbers.map(|number| weighing(number, 100 + number as u32));
            let [first, second] = calls.map(|call| registry.admit(call, at(start, 0)).unwrap());
            assert!(is_same(&first, &second));
            assert_eq!(
                record(&registry).registration.module.weight,
                102,
                "the values of the last call count"
            );
            let admission = if numbers[1] == 2 { Admission::Renewed } else { Admission::Outdated };
            assert_eq!((first.admission, second.admission), (Admission::New, admission));
            assert!(
                registry.heartbeat("alb-1", first.registration_id.reveal(), None, None, at(start, 1)).is_ok()
            );
        }
    }

    #[test]
    fn an_outdated_call_renews_no_lease() {
        let (registry, start) = (registry(), Instant::now());
        registry.admit(call(2), at(start, 0)).unwrap();
        let before = record(&registry);
        registry.admit(call(1), at(start, 20)).unwrap();
        assert_eq!(record(&registry), before);
        registry.admit(call(2), at(start, 20)).unwrap();
        assert_eq!(record(&registry).lease.age(at(start, 20).at), Duration::ZERO);
    }

    #[test]
    fn another_process_supersedes_and_needs_a_credential_from_another_host() {
        let (registry, start) = (registry(), Instant::now());
        let first = registry.admit(call(7), at(start, 0)).unwrap();
        let elsewhere = |call: Registration| Registration { address: "10.0.0.9:1".parse().unwrap(), ..call };
        let other_process = elsewhere(call_of("fedcba9876543210", 8));
        assert!(matches!(registry.admit(other_process, at(start, 1)), Err(RegistryError::Taken { .. })));
        let moved = registry.admit(elsewhere(call(8)), at(start, 1)).unwrap();
        assert!(is_same(&first, &moved), "the nonce identifies the process");
        let back = registry.register(registration("alb-1"), &Claim::Silent { epoch: 0 }, at(start, 1));
        assert!(matches!(back, Err(RegistryError::Taken { .. })));

        let claim = Claim::RegistrationId(moved.registration_id.reveal().to_owned());
        let restarted = registry.register(call_of("fedcba9876543210", 1), &claim, at(start, 2)).unwrap();
        assert_eq!(restarted.admission, Admission::Superseding);
        assert!(!is_same(&moved, &restarted));
    }

    #[test]
    fn values_set_by_operators_survive_a_repeated_registration() {
        let (registry, start) = (registry(), Instant::now());
        registry.admit(call(1), at(start, 0)).unwrap();
        registry.set_instance_weight("alb-1", "", 7, Commit::Apply).unwrap();
        registry.begin_maintenance("alb-1").unwrap();
        registry.admit(weighing(2, 55), at(start, 1)).unwrap();
        let renewed = record(&registry);
        assert_eq!((renewed.drain, renewed.registration.module.weight), (Some(Drain::Maintenance), 7));
        assert!(registry.persisted().borrow().state.overrides.contains_key("alb-1"), "also on disk");

        registry.admit(call_of("fedcba9876543210", 1), at(start, 2)).unwrap();
        let restarted = record(&registry);
        assert_eq!((restarted.drain, restarted.registration.module.weight), (None, 100));
    }

    #[test]
    fn a_weight_that_rebalancing_moved_stays_until_another_is_asked_for() {
        let (registry, start) = (registry(), Instant::now());
        registry.admit(call(1), at(start, 0)).unwrap();
        registry.rebalance(&[("alb-1".to_owned(), 30)].into()).unwrap();
        registry.admit(call(2), at(start, 1)).unwrap();
        assert_eq!(record(&registry).registration.module.weight, 30);
        registry.admit(weighing(3, 40), at(start, 2)).unwrap();
        let renewed = record(&registry);
        assert_eq!((renewed.registration.module.weight, renewed.asked_weight), (40, 40));
    }

    #[test]
    fn a_deployment_has_instances_of_one_type() {
        let (registry, start) = (registry(), Instant::now());
        let shop = |instance_id: &str, module_type: ModuleType| {
            let mut newcomer = registration(instance_id);
            newcomer.module.module_type = module_type;
            newcomer.module.deployment = Deployment::named("shop");
            newcomer
        };
        registry.admit(shop("alb-1", ModuleType::Alb), at(start, 0)).unwrap();
        let refusal = registry.admit(shop("dblb-1", ModuleType::Dblb), at(start, 1)).unwrap_err().to_string();
        assert!(
            refusal.starts_with("deployment shop has instances of type ALB, such as \"alb-1\"")
                && refusal.contains("choose another name"),
            "{refusal}"
        );
        registry.admit(shop("alb-1", ModuleType::Dblb), at(start, 2)).expect("it was the only one");
        registry.admit(shop("dblb-1", ModuleType::Dblb), at(start, 3)).unwrap();
    }

    #[test]
    fn a_weight_request_counts_in_each_deployment_that_a_process_joins() {
        let (registry, start) = (registry(), Instant::now());
        let joining = |number, deployment: &str| {
            let mut call = call(number);
            call.module.deployment = Deployment::named(deployment);
            call
        };
        let split = WeightRequest::Split([("v1".to_owned(), 5)].into());
        for (number, deployment) in [(1, "orders"), (2, "search")] {
            registry.admit(joining(number, deployment), at(start, number)).unwrap();
            let epoch = record(&registry).epoch;
            registry.apply_weight_request("alb-1", epoch, &split, at(start, number));
            let shares = registry.snapshot().version_shares(&Deployment::named(deployment));
            assert_eq!(shares["v1"], 5, "{deployment}");
        }
    }

    #[test]
    fn a_module_that_leaves_begins_anew_and_its_drain_does_not_remove_it() {
        let (registry, start) = (registry(), Instant::now());
        let first = registry.admit(call(1), at(start, 0)).unwrap();
        let draining = registry.begin_leaving("alb-1", first.registration_id.reveal()).unwrap();
        let late = registry.admit(call(0), at(start, 1)).unwrap();
        assert_eq!((late.admission, record(&registry).drain), (Admission::Outdated, Some(Drain::Leaving)));
        let again = registry.admit(call(2), at(start, 1)).unwrap();
        assert_eq!((again.admission, record(&registry).drain), (Admission::Superseding, None));
        assert_eq!(registry.remove("alb-1", draining.epoch), None);
    }

    #[test]
    fn health_signals_stay_until_the_check_changes() {
        let (registry, start) = (registry(), Instant::now());
        let checked = |number| Registration { check: Some(CHECK), ..call(number) };
        registry.admit(checked(1), at(start, 0)).unwrap();
        let first = record(&registry).epoch;
        registry.report_signal("alb-1", first, Source::Check, HealthSignal::healthy());
        registry.admit(checked(2), at(start, 1)).unwrap();
        assert_eq!((record(&registry).epoch, record(&registry).health()), (first, Health::Healthy));

        let mut more = checked(3);
        more.module.routes.insert("more".to_owned(), route(81).into());
        registry.admit(more, at(start, 2)).unwrap();
        let renewed = record(&registry);
        assert!(renewed.epoch > first, "a new epoch makes observers start over");
        assert_eq!(renewed.health(), Health::Healthy);
        assert_eq!(renewed.routes_since["web"], at(start, 0).wall);
        assert_eq!(renewed.routes_since["more"], at(start, 2).wall);

        let check = Some(crate::policy::health::Check { port: Some(9), ..CHECK });
        registry.admit(Registration { check, ..call(4) }, at(start, 3)).unwrap();
        assert_eq!(record(&registry).health(), Health::Starting);
        registry.report_signal("alb-1", renewed.epoch, Source::Check, HealthSignal::healthy());
        assert_eq!(record(&registry).health(), Health::Starting, "a signal of the former check is ignored");
    }

    #[test]
    fn registering_again_restores_an_expired_lease() {
        let (registry, start) = (registry(), Instant::now());
        registry.admit(call(1), at(start, 0)).unwrap();
        registry.expire_leases(at(start, 30).at);
        assert_eq!(record(&registry).health(), Health::Unhealthy);
        registry.admit(call(2), at(start, 31)).unwrap();
        assert_eq!(record(&registry).health(), Health::Healthy);
    }

    #[test]
    fn of_two_processes_on_a_host_the_one_that_started_last_keeps_the_id() {
        let (registry, start) = (registry(), Instant::now());
        let started = |seconds: Option<u64>| {
            let started_at = seconds.map(|seconds| at(start, seconds).wall);
            Registration { started_at, ..registration("alb-1") }
        };
        registry.admit(started(Some(5)), at(start, 6)).unwrap();
        let newer = registry.admit(started(Some(6)), at(start, 7)).unwrap();
        let before = record(&registry);
        let refused = registry.admit(started(Some(5)), at(start, 8)).unwrap_err();
        assert_eq!(refused, RegistryError::StartedEarlier("alb-1".into()));
        assert_eq!(record(&registry), before);

        let proof = Claim::RegistrationId(newer.registration_id.reveal().to_owned());
        assert!(registry.register(started(Some(5)), &proof, at(start, 9)).is_ok());
        for (seconds, moment) in [(Some(6), 10), (Some(6), 11), (None, 12), (Some(1), 13)] {
            assert!(registry.admit(started(seconds), at(start, moment)).is_ok(), "{seconds:?}");
        }
        registry.admit(started(Some(6)), at(start, 14)).unwrap();
        assert!(registry.admit(started(Some(5)), at(start, 44)).is_ok(), "the lease has expired");
    }

    #[test]
    fn a_nonce_is_not_printed() {
        assert!(!format!("{:?}", call(1)).contains(NONCE));
    }
}
