//! Rate limits, which operators set.

use tracing::info;

use crate::model::RateLimit;

use super::{Commit, Registry, RegistryError};

impl Registry {
    /// Adds a limit, or replaces the one with that id.
    pub fn set_rate_limit(&self, id: String, limit: RateLimit) -> Result<u64, RegistryError> {
        let (replaced, revision) = self.change(Commit::Apply, |state| {
            Ok(state.rate_limits.insert(id.clone(), limit.into()).is_some())
        })?;
        info!(limit = id, replaced, revision, "rate limit set");
        Ok(revision)
    }

    pub fn remove_rate_limit(&self, id: &str) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            state.rate_limits.remove(id).map(drop).ok_or_else(|| RegistryError::UnknownLimit(id.to_owned()))
        })?;
        info!(limit = id, revision, "rate limit removed");
        Ok(revision)
    }
}
