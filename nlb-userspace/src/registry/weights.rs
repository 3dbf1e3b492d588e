//! Shares of new flows: of an instance among those of its version, and of a version among versions.

use std::collections::{BTreeMap, BTreeSet};

use tracing::info;

use crate::compile::is_split;
use crate::model::{DEFAULT_WEIGHT, Deployment, VersionWeights};

use super::deployments::{in_each, names};
use super::rollouts::{Author, Holder, MAX_VERSIONS};
use super::{Commit, Deployments, Record, Registry, RegistryError, State};
use crate::model::clock::Now;

impl Registry {
    /// A `version`, if given, must be the instance's own.
    pub fn set_instance_weight(
        &self,
        instance_id: &str,
        version: &str,
        weight: u32,
        commit: Commit,
    ) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(commit, |state| {
            let record = state.record_mut(instance_id)?;
            let module = &record.registration.module;
            if !version.is_empty() && module.version != version {
                return Err(RegistryError::VersionMismatch {
                    instance_id: instance_id.to_owned(),
                    asked: version.to_owned(),
                    actual: module.version.clone(),
                });
            }
            record.weigh(weight);
            state.override_instance(instance_id, |overrides| overrides.weight = Some(weight));
            Ok(())
        })?;
        if commit == Commit::Apply {
            info!(instance = instance_id, weight, revision, "instance weight set");
        }
        Ok(revision)
    }

    /// In each of the deployments, all of which must have the version.
    pub fn set_version_weight(
        &self,
        deployments: &Deployments,
        version: &str,
        weight: u32,
        commit: Commit,
        now: Now,
    ) -> Result<u64, RegistryError> {
        let (_, revision) = self.change(commit, |state| {
            in_each(deployments, |deployment| {
                state.check_version(deployment, version)?;
                state.rollout_mut(Holder::One(deployment), Author::Operator).promotion = None;
                state.weigh_versions(deployment, [(version.to_owned(), weight)], Author::Operator, now);
                Ok(())
            })
        })?;
        if commit == Commit::Apply {
            info!(deployments = %names(deployments), version, weight, revision, "version weight set");
        }
        Ok(revision)
    }
}

impl State {
    /// The ids of a deployment's instances of a version.
    pub fn instances_of<'a>(
        &'a self,
        deployment: &'a Deployment,
        version: &'a str,
    ) -> impl Iterator<Item = &'a str> {
        self.members_of(Holder::One(deployment), version).map(|(instance_id, _)| instance_id)
    }

    pub(super) fn members_of<'a>(
        &'a self,
        holder: Holder<'a>,
        version: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Record)> {
        self.members(holder).filter(move |(_, record)| record.registration.module.version == version)
    }

    /// Sets weights of a deployment's versions, in one change that a rollback undoes.
    pub(super) fn weigh_versions(
        &mut self,
        deployment: &Deployment,
        weights: impl IntoIterator<Item = (String, u32)>,
        author: Author,
        now: Now,
    ) {
        let registered: BTreeSet<String> = self.version_shares(deployment).into_keys().collect();
        let rollout = self.rollout_mut(Holder::One(deployment), author);
        rollout.remember_split();
        rollout.version_weights.extend(weights);
        rollout.split_since.get_or_insert(now.wall);
        if rollout.version_weights.len() > MAX_VERSIONS {
            rollout.version_weights.retain(|version, _| registered.contains(version));
        }
    }

    /// Checks that the deployment has a version.
    pub(super) fn check_version(&self, deployment: &Deployment, version: &str) -> Result<(), RegistryError> {
        if self.instances_of(deployment, version).next().is_some() {
            return Ok(());
        }
        let version = version.to_owned();
        let elsewhere = self.modules.values().any(|record| record.registration.module.version == version);
        Err(match elsewhere {
            true => RegistryError::VersionElsewhere { version, deployment: deployment.clone() },
            false => RegistryError::UnknownVersion(version),
        })
    }

    /// The registered versions of a deployment, and how its new flows are shared among them. While no version
    /// has a weight, or none that gets new flows is here, the shares follow from the weights of instances.
    pub fn version_shares(&self, deployment: &Deployment) -> BTreeMap<String, u32> {
        let shares =
            self.shares_under(&self.rollouts.of(deployment).version_weights, Holder::One(deployment));
        shares.into_iter().map(|(version, share)| (version.to_owned(), share)).collect()
    }

    /// The shares that would follow from these weights of versions.
    pub(super) fn shares_under(&self, weights: &VersionWeights, holder: Holder) -> BTreeMap<&str, u32> {
        let modules = || self.members(holder).map(|(_, record)| &record.registration.module);
        let weight = |version: &str| weights.get(version).copied().unwrap_or(DEFAULT_WEIGHT);
        let is_here = modules().any(|module| weight(&module.version) > 0);
        let is_split = is_split(weights, is_here);
        let mut shares = BTreeMap::<&str, u32>::new();
        for module in modules() {
            let share = shares.entry(&module.version).or_default();
            *share = if is_split { weight(&module.version) } else { share.saturating_add(module.weight) };
        }
        shares
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::registry::fixtures::{Fleet, alb, albs, registration, registry};

    #[test]
    fn instance_weights_are_set_and_zero_means_none() {
        let registry = registry();
        registry.add("alb-1");
        registry.set_instance_weight("alb-1", "", 0, Commit::Apply).unwrap();
        assert_eq!(registry.desired().borrow().modules["alb-1"].weight, 0);
        registry.set_instance_weight("alb-1", "v1", 30, Commit::Apply).unwrap();
        assert_eq!(registry.desired().borrow().modules["alb-1"].weight, 30);
        let mismatch = registry.set_instance_weight("alb-1", "v2", 1, Commit::Apply).unwrap_err().to_string();
        assert!(mismatch.contains("\"v2\"") && mismatch.contains("\"v1\""), "{mismatch}");
        assert!(registry.set_instance_weight("ghost", "", 1, Commit::Apply).is_err());
    }

    #[test]
    fn version_weights_decide_once_one_is_set() {
        let registry = registry();
        registry.add("alb-1");
        let mut canary = registration("alb-2");
        canary.module.version = "v2".into();
        canary.module.weight = 40;
        registry.admit(canary, Now::read()).unwrap();
        let shares = || registry.snapshot().version_shares(&alb());
        assert_eq!(shares(), [("v1".into(), 100), ("v2".into(), 40)].into(), "the sums of instance weights");
        assert!(registry.desired().borrow().splits.is_empty());

        registry.set_version_weight(&albs(), "v2", 5, Commit::Apply, Now::read()).unwrap();
        assert_eq!(shares(), [("v1".into(), 100), ("v2".into(), 5)].into());
        assert_eq!(registry.desired().borrow().splits[&alb()], [("v2".into(), 5)].into());
        let unknown = registry.set_version_weight(&albs(), "v3", 5, Commit::Apply, Now::read());
        assert_eq!(unknown, Err(RegistryError::UnknownVersion("v3".into())));
    }
}
