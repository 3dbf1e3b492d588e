//! Weight requests of modules, beside the weights that operators set.

use std::sync::Arc;

use tracing::{info, warn};

use super::rollouts::Author;
use super::{Commit, Registry, RegistryError, State};
use crate::model::clock::Now;
use crate::model::weight_request::{WeightOutcome, WeightRequest};
use crate::model::{Deployment, VersionWeights};

impl Registry {
    /// Applies a module's weight request if it differs from the module's last one. The weight that a module
    /// registers with is its first request.
    pub fn apply_weight_request(
        &self,
        instance_id: &str,
        epoch: u64,
        request: &WeightRequest,
        now: Now,
    ) -> WeightOutcome {
        let applied = self.change(Commit::Apply, |state| {
            let record = state.record(instance_id)?;
            if record.epoch != epoch || record.request == *request {
                return Ok(false);
            }
            let changed = match request {
                WeightRequest::Own(weight) => state.weigh(instance_id, *weight)?,
                WeightRequest::Split(weights) => {
                    let deployment = record.registration.module.deployment.clone();
                    state.divide(&deployment, weights, now)?
                }
            };
            state.record_mut(instance_id)?.request = request.clone();
            Ok(changed)
        });
        match applied {
            Ok((false, _)) | Err(RegistryError::UnknownInstance(_)) => WeightOutcome::Done,
            Ok((true, revision)) => {
                info!(instance = instance_id, ?request, revision, "weights changed at the module's request");
                WeightOutcome::Done
            }
            // The request is not retried: after the promotion it would undo the promotion's outcome.
            Err(error @ RegistryError::Promoting { .. }) => {
                warn!(instance = instance_id, ?request, why = %error, "the module's weight request is not applied");
                self.note_weight_request(instance_id, epoch, request);
                WeightOutcome::Done
            }
            Err(error) => WeightOutcome::Waits(error.to_string()),
        }
    }

    fn note_weight_request(&self, instance_id: &str, epoch: u64, request: &WeightRequest) {
        let mut state = self.lock();
        if state.record(instance_id).is_ok_and(|record| record.epoch == epoch)
            && let Ok(record) = Arc::make_mut(&mut state).record_mut(instance_id)
        {
            record.request = request.clone();
        }
    }
}

impl State {
    /// Sets a requested weight. Returns whether it differs from the one before.
    fn weigh(&mut self, instance_id: &str, weight: u32) -> Result<bool, RegistryError> {
        let record = self.record_mut(instance_id)?;
        let news = record.asked_weight != weight;
        if news {
            record.weigh(weight);
        }
        Ok(news)
    }

    /// Sets the requested weights of a deployment's versions. Returns whether they differ from those before.
    fn divide(
        &mut self,
        deployment: &Deployment,
        weights: &VersionWeights,
        now: Now,
    ) -> Result<bool, RegistryError> {
        weights.keys().try_for_each(|version| self.check_version(deployment, version))?;
        let shares = self.version_shares(deployment);
        if weights.iter().all(|(version, weight)| shares.get(version) == Some(weight)) {
            return Ok(false);
        }
        if let Some(running) = self.promotion_of(deployment) {
            return Err(RegistryError::Promoting {
                version: running.version().to_owned(),
                percent: running.percent(),
            });
        }
        self.weigh_versions(deployment, weights.clone(), Author::Module, now);
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::promotion::Pace;
    use crate::registry::fixtures::{Fleet, alb, albs, registration, registry};

    /// v1 and v2, with one instance each that is named like the version.
    fn blue_and_green() -> Registry {
        let registry = registry();
        for version in ["v1", "v2"] {
            add(&registry, version);
        }
        registry
    }

    fn add(registry: &Registry, version: &str) {
        let mut newcomer = registration(version);
        newcomer.module.version = version.into();
        registry.admit(newcomer, Now::read()).unwrap();
    }

    fn split(v1: u32, v2: u32) -> WeightRequest {
        WeightRequest::Split([("v1".to_owned(), v1), ("v2".to_owned(), v2)].into())
    }

    fn apply_weight_request(registry: &Registry, instance_id: &str, request: WeightRequest) -> WeightOutcome {
        let epoch = registry.snapshot().record(instance_id).map_or(0, |record| record.epoch);
        registry.apply_weight_request(instance_id, epoch, &request, Now::read())
    }

    fn shares(registry: &Registry) -> (u32, u32) {
        let shares = registry.snapshot().version_shares(&alb());
        (shares["v1"], shares["v2"])
    }

    fn weight(registry: &Registry) -> u32 {
        registry.desired().borrow().modules["v1"].weight
    }

    #[test]
    fn a_split_that_is_new_is_one_change_that_can_be_rolled_back() {
        let registry = blue_and_green();
        let revision = registry.desired().borrow().revision;
        assert_eq!(apply_weight_request(&registry, "v2", split(10, 90)), WeightOutcome::Done);
        assert_eq!((shares(&registry), registry.desired().borrow().revision), ((10, 90), revision + 1));
        assert_eq!(apply_weight_request(&registry, "v1", split(10, 90)), WeightOutcome::Done);
        assert_eq!(registry.desired().borrow().revision, revision + 1, "the split is in force already");
        registry.roll_back(&albs(), "", Commit::Apply).unwrap();
        assert_eq!(shares(&registry), (100, 100));
        assert_eq!(registry.roll_back(&albs(), "", Commit::Apply), Err(RegistryError::NoFormerSplit));
    }

    #[test]
    fn a_repeated_weight_request_does_not_undo_an_operators_split() {
        let registry = blue_and_green();
        apply_weight_request(&registry, "v2", split(10, 90));
        registry.set_version_weight(&albs(), "v2", 5, Commit::Apply, Now::read()).unwrap();
        apply_weight_request(&registry, "v2", split(10, 90));
        assert_eq!(shares(&registry), (10, 5));
        apply_weight_request(&registry, "v2", split(10, 80));
        assert_eq!(shares(&registry), (10, 80), "a new request is applied");
        registry.set_version_weight(&albs(), "v2", 5, Commit::Apply, Now::read()).unwrap();
        add(&registry, "v2");
        apply_weight_request(&registry, "v2", split(10, 80));
        assert_eq!(shares(&registry), (10, 80), "the request of a new registration is applied");
    }

    #[test]
    fn a_request_for_the_shares_in_force_changes_nothing() {
        let registry = blue_and_green();
        apply_weight_request(&registry, "v1", split(100, 100));
        assert!(registry.desired().borrow().splits.is_empty(), "no weight of a version was set");
    }

    #[test]
    fn an_instances_own_weight_counts_from_what_it_registered_with() {
        let registry = blue_and_green();
        registry.set_instance_weight("v1", "", 30, Commit::Apply).unwrap();
        apply_weight_request(&registry, "v1", WeightRequest::Own(100));
        assert_eq!(weight(&registry), 30, "the request is older than the operator's weight");
        apply_weight_request(&registry, "v1", WeightRequest::Own(0));
        assert_eq!((weight(&registry), shares(&registry)), (0, (0, 100)));
        registry.set_instance_weight("v1", "", 30, Commit::Apply).unwrap();
        apply_weight_request(&registry, "v1", WeightRequest::Own(0));
        assert_eq!(weight(&registry), 30);
        apply_weight_request(&registry, "v1", WeightRequest::Own(40));
        let asked = registry.snapshot().record("v1").unwrap().asked_weight;
        assert_eq!((weight(&registry), asked), (40, 40));
    }

    #[test]
    fn a_split_with_a_version_without_instances_waits() {
        let registry = registry();
        add(&registry, "v1");
        let WeightOutcome::Waits(why) = apply_weight_request(&registry, "v1", split(95, 5)) else {
            panic!("v2 has no instance")
        };
        assert!(why.contains("\"v2\""), "{why}");
        assert!(registry.desired().borrow().splits.is_empty());
        add(&registry, "v2");
        assert_eq!(apply_weight_request(&registry, "v1", split(95, 5)), WeightOutcome::Done);
        assert_eq!(shares(&registry), (95, 5));
    }

    #[test]
    fn a_promotion_goes_on_and_its_outcome_stays() {
        let registry = blue_and_green();
        registry
            .promote(&albs(), "v2", Pace::Steps(10), &Default::default(), Commit::Apply, Now::read())
            .unwrap();
        assert_eq!(apply_weight_request(&registry, "v1", split(100, 0)), WeightOutcome::Done);
        assert_eq!(shares(&registry), (40, 60));
        assert!(registry.snapshot().rollouts.of(&alb()).promotion.is_some());
        registry.set_version_weight(&albs(), "v2", 60, Commit::Apply, Now::read()).unwrap();
        apply_weight_request(&registry, "v1", split(100, 0));
        assert_eq!(shares(&registry), (40, 60), "the request was refused for good");
    }

    #[test]
    fn a_request_of_an_earlier_registration_does_not_count() {
        let registry = blue_and_green();
        let epoch = registry.snapshot().record("v2").unwrap().epoch;
        add(&registry, "v2");
        assert_eq!(
            registry.apply_weight_request("v2", epoch, &split(10, 90), Now::read()),
            WeightOutcome::Done
        );
        assert_eq!(apply_weight_request(&registry, "ghost", split(10, 90)), WeightOutcome::Done);
        assert_eq!(shares(&registry), (100, 100));
    }
}
