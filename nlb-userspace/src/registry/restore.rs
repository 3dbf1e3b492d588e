//! Restores the registry from the persisted state.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::info;

use super::{
    AwaitedRegistrations, Commit, Deployments, PersistedRevision, PersistedRollout, PersistedState, Registry,
    RegistryError, Rollout, Rollouts, State,
};
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::policy::promotion::Promotion;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

impl Registry {
    /// A registry with the persisted state, if that fits the settings.
    pub fn restore(settings: Settings, persisted: PersistedState, now: Now) -> Result<Self, RegistryError> {
        let mut registry = Registry::new(settings);
        registry.change(Commit::Apply, |state| {
            state.restore_from(persisted, now);
            state.check_vips()
        })?;
        let persisted = Arc::new(PersistedState::of(&registry.snapshot()));
        registry.persisted = watch::Sender::new(PersistedRevision { number: 0, state: persisted });
        Ok(registry)
    }

    /// The state to be persisted; the receiver wakes with every change of it.
    pub fn persisted(&self) -> watch::Receiver<PersistedRevision> {
        self.persisted.subscribe()
    }

    /// Sets an operator's policy for a group, which is valid for as long as the group has instances.
    pub fn set_scaling(&self, group: &GroupKey, policy: Policy) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            state.scaling.insert(group.clone(), policy);
            Ok(())
        })?;
        info!(module_type = ?group.module_type, version = group.version, "scaling policy set");
        Ok(revision)
    }

    /// Removes the policies of groups without instances.
    pub fn forget_scaling(&self, gone: &BTreeSet<GroupKey>) {
        let mut state = self.lock();
        let changed = Arc::make_mut(&mut state);
        let modules = &changed.modules;
        changed.scaling.retain(|group, _| {
            !gone.contains(group) || modules.values().any(|record| group.has(&record.registration.module))
        });
        self.publish(&state);
    }
}

impl State {
    fn restore_from(&mut self, persisted: PersistedState, now: Now) {
        let config = self.settings.promotion;
        let rollout = |persisted: PersistedRollout| Rollout {
            version_weights: persisted.version_weights,
            split_since: persisted.split_since,
            former_splits: persisted.former_splits,
            promotion: persisted.promotion.map(|stage| Promotion::resume(stage, &config, now)),
            last_promotion: persisted.last_promotion,
            requested: persisted.requested,
        };
        let own = persisted.rollouts.into_iter();
        self.rollouts = Rollouts {
            own: own.map(|(deployment, persisted)| (deployment, rollout(persisted))).collect(),
            fleet: rollout(persisted.fleet_rollout),
        };
        self.operator_routes = persisted.operator_routes;
        self.operator_routes_since = persisted.operator_routes_since;
        self.rate_limits = persisted.rate_limits;
        self.scaling =
            persisted.scaling.into_iter().map(|persisted| (persisted.group, persisted.policy)).collect();
        let instances: BTreeSet<String> = persisted.overrides.keys().cloned().collect();
        let deployments: Deployments = self.rollouts.own.keys().cloned().collect();
        let splits = !deployments.is_empty() || !self.rollouts.fleet.is_empty();
        let waits = !instances.is_empty() || !self.scaling.is_empty() || splits;
        self.awaited = waits.then_some(AwaitedRegistrations { since: now.at, instances, deployments });
        self.overrides = persisted.overrides;
    }
}
