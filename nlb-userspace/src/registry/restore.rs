//! The registry begins with what operators had set before the daemon was restarted.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use tokio::sync::watch;
use tracing::info;

use super::{Awaited, Commit, Keep, Kept, Refusal, Registry, State};
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::policy::promotion::Promotion;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

impl Registry {
    /// Begins with what was kept, if it fits the settings.
    pub fn restore(settings: Settings, kept: Kept, now: Now) -> Result<Self, Refusal> {
        let mut registry = Registry::new(settings);
        registry.change(Commit::Apply, |state| {
            state.take_over(kept, now);
            state.check_vips()
        })?;
        let kept = Arc::new(Kept::of(&registry.snapshot()));
        registry.kept = watch::Sender::new(Keep { number: 0, kept });
        Ok(registry)
    }

    /// What has to be kept; the receiver wakes with every change of it.
    pub fn kept(&self) -> watch::Receiver<Keep> {
        self.kept.subscribe()
    }

    /// Puts an operator's policy in force, for as long as the group has instances.
    pub fn set_scaling(&self, group: &GroupKey, policy: Policy) -> Result<u64, Refusal> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            state.scaling.insert(group.clone(), policy);
            Ok(())
        })?;
        info!(module_type = ?group.module_type, version = group.version, "scaling policy set");
        Ok(revision)
    }

    /// Forgets the policies of groups that nobody belongs to any more.
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
    fn take_over(&mut self, kept: Kept, now: Now) {
        let terms = self.settings.promotion;
        self.operator_routes = kept.operator_routes;
        self.operator_routes_since = kept.operator_routes_since;
        self.rate_limits = kept.rate_limits;
        self.version_weights = kept.version_weights;
        self.split_since = kept.split_since;
        self.former_splits = kept.former_splits;
        self.promotion = kept.promotion.map(|stage| Promotion::resume(stage, &terms, now));
        self.last_promotion = kept.last_promotion;
        self.scaling = kept.scaling.into_iter().map(|kept| (kept.group, kept.policy)).collect();
        let instances: BTreeSet<String> = kept.steering.keys().cloned().collect();
        let waits = !instances.is_empty() || !self.scaling.is_empty();
        self.awaited = waits.then_some(Awaited { since: now.at, instances });
        self.steering = kept.steering;
    }
}
