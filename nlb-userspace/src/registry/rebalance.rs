//! Rebalancing: weights other than the requested ones, for many instances in one change.

use std::collections::BTreeMap;

use tracing::info;

use super::{Commit, Registry, RegistryError};

impl Registry {
    /// Sets the weights by which new flows are shared; the requested weights stay on record.
    pub fn rebalance(&self, weights: &BTreeMap<String, u32>) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            for (instance_id, weight) in weights {
                state.record_mut(instance_id)?.registration.module.weight = *weight;
            }
            Ok(())
        })?;
        info!(instances = weights.len(), revision, "load rebalanced");
        Ok(revision)
    }

    /// Checks that the instance is registered, and the credential if one is given: for calls whose messages
    /// have no field for it in the contract.
    pub fn authenticate_caller(&self, instance_id: &str, registration_id: &str) -> Result<(), RegistryError> {
        self.snapshot().authenticate_caller(instance_id, registration_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixtures::{Fleet, registry};

    #[test]
    fn all_weights_change_in_one_revision_and_what_was_asked_for_stays() {
        let registry = registry();
        registry.add("alb-1");
        registry.add("alb-2");
        let weights = BTreeMap::from([("alb-1".to_owned(), 30), ("alb-2".to_owned(), 170)]);
        assert_eq!(registry.rebalance(&weights), Ok(3));
        let state = registry.snapshot();
        for (id, weight) in &weights {
            let record = state.record(id).unwrap();
            assert_eq!((record.registration.module.weight, record.asked_weight), (*weight, 100));
        }
        registry.set_instance_weight("alb-1", "", 7, Commit::Apply).unwrap();
        assert_eq!(registry.snapshot().record("alb-1").unwrap().asked_weight, 7);
    }

    #[test]
    fn an_unknown_instance_leaves_all_weights() {
        let registry = registry();
        registry.add("alb-1");
        let weights = BTreeMap::from([("alb-1".to_owned(), 30), ("ghost".to_owned(), 170)]);
        assert_eq!(registry.rebalance(&weights), Err(RegistryError::UnknownInstance("ghost".into())));
        assert_eq!(registry.desired().borrow().modules["alb-1"].weight, 100);
    }

    #[test]
    fn a_credential_may_be_left_out_but_not_be_wrong() {
        let registry = registry();
        let id = registry.add("alb-1");
        assert_eq!(registry.authenticate_caller("alb-1", ""), Ok(()));
        assert_eq!(registry.authenticate_caller("alb-1", &id), Ok(()));
        assert_eq!(
            registry.authenticate_caller("alb-1", "guess"),
            Err(RegistryError::CredentialInvalid("alb-1".into()))
        );
        assert_eq!(
            registry.authenticate_caller("ghost", ""),
            Err(RegistryError::UnknownInstance("ghost".into()))
        );
    }
}
