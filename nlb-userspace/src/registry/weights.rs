//! Shares of new flows: of an instance among its version's instances, and of a version among versions.

use std::collections::BTreeMap;

use tracing::info;

use crate::model::DEFAULT_WEIGHT;

use super::{Commit, Now, Refusal, Registry, State};

impl Registry {
    /// `version`, if given, must be the instance's own.
    pub fn set_instance_weight(
        &self,
        instance_id: &str,
        version: &str,
        weight: u32,
        commit: Commit,
    ) -> Result<u64, Refusal> {
        let ((), revision) = self.change(commit, |state| {
            let module = &mut state.record_mut(instance_id)?.registration.module;
            if !version.is_empty() && module.version != version {
                return Err(Refusal::VersionMismatch {
                    instance_id: instance_id.to_owned(),
                    asked: version.to_owned(),
                    actual: module.version.clone(),
                });
            }
            module.weight = weight;
            Ok(())
        })?;
        if commit == Commit::Apply {
            info!(instance = instance_id, weight, revision, "instance weight set");
        }
        Ok(revision)
    }

    pub fn set_version_weight(
        &self,
        version: &str,
        weight: u32,
        commit: Commit,
        now: Now,
    ) -> Result<u64, Refusal> {
        let ((), revision) = self.change(commit, |state| {
            if state.instances_of(version).next().is_none() {
                return Err(Refusal::UnknownVersion(version.to_owned()));
            }
            state.version_weights.insert(version.to_owned(), weight);
            state.split_since.get_or_insert(now.wall);
            Ok(())
        })?;
        if commit == Commit::Apply {
            info!(version, weight, revision, "version weight set");
        }
        Ok(revision)
    }
}

impl State {
    /// The ids of the instances of a version.
    pub fn instances_of<'a>(&'a self, version: &'a str) -> impl Iterator<Item = &'a str> {
        let of_version = self.modules.iter().filter(move |(_, r)| r.registration.module.version == version);
        of_version.map(|(instance_id, _)| instance_id.as_str())
    }

    /// The versions there are, and how new flows are shared among them. While no version's weight is set, that follows
    /// from the weights of the instances.
    pub fn version_shares(&self) -> BTreeMap<String, u32> {
        let mut shares = BTreeMap::<String, u32>::new();
        for record in self.modules.values() {
            let module = &record.registration.module;
            let share = shares.entry(module.version.clone()).or_default();
            *share = match self.version_weights.get(&module.version) {
                Some(weight) => *weight,
                None if self.version_weights.is_empty() => share.saturating_add(module.weight),
                None => DEFAULT_WEIGHT,
            };
        }
        shares
    }
}
