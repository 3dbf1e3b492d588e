//! Draining modules, and ending drains.

use tracing::info;

use super::{Commit, Drain, Registry, RegistryError};

/// A drain that has begun.
#[derive(Clone, Copy, Debug)]
pub struct Draining {
    pub epoch: u64,
    pub revision: u64,
}

impl Registry {
    /// Drains a module that is unregistering.
    pub fn begin_leaving(&self, instance_id: &str, registration_id: &str) -> Result<Draining, RegistryError> {
        self.authenticate(&self.snapshot(), instance_id, registration_id)?;
        self.begin_drain(instance_id, Drain::Leaving)
    }

    /// Drains a module at an operator's request; the module stays registered.
    pub fn begin_maintenance(&self, instance_id: &str) -> Result<Draining, RegistryError> {
        self.begin_drain(instance_id, Drain::Maintenance)
    }

    fn begin_drain(&self, instance_id: &str, reason: Drain) -> Result<Draining, RegistryError> {
        let (epoch, revision) = self.change(Commit::Apply, |state| {
            let record = state.record_mut(instance_id)?;
            let epoch = record.epoch;
            if record.drain != Some(Drain::Leaving) {
                record.drain = Some(reason);
                state.override_instance(instance_id, |overrides| {
                    overrides.maintenance = reason == Drain::Maintenance
                });
            }
            Ok(epoch)
        })?;
        info!(instance = instance_id, ?reason, revision, "draining");
        Ok(Draining { epoch, revision })
    }

    /// Ends an operator's drain.
    pub fn resume(&self, instance_id: &str) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            let record = state.record_mut(instance_id)?;
            if record.drain == Some(Drain::Leaving) {
                return Err(RegistryError::Leaving(instance_id.to_owned()));
            }
            record.drain = None;
            state.override_instance(instance_id, |overrides| overrides.maintenance = false);
            Ok(())
        })?;
        info!(instance = instance_id, revision, "drain ended");
        Ok(revision)
    }
}
