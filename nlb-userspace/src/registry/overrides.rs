//! Instance overrides of operators, and the instances that await re-registration after a start.

use super::{InstanceOverrides, State};

impl State {
    /// Records an operator's override for an instance.
    pub(super) fn override_instance(&mut self, instance_id: &str, set: impl FnOnce(&mut InstanceOverrides)) {
        let mut overrides = self.overrides.get(instance_id).copied().unwrap_or_default();
        set(&mut overrides);
        if overrides == InstanceOverrides::default() {
            self.forget_overrides(instance_id);
        } else {
            self.overrides.insert(instance_id.to_owned(), overrides);
        }
    }

    /// The overrides that a new registration keeps: none, unless it is a re-registration after a restart of
    /// the NLB.
    pub(super) fn overrides_of_newcomer(&mut self, instance_id: &str) -> InstanceOverrides {
        if !self.awaits(instance_id) {
            self.forget_overrides(instance_id);
        }
        self.overrides.get(instance_id).copied().unwrap_or_default()
    }

    pub(super) fn forget_overrides(&mut self, instance_id: &str) {
        if self.overrides.contains_key(instance_id) {
            self.overrides.remove(instance_id);
        }
    }

    pub(super) fn awaits(&self, instance_id: &str) -> bool {
        self.awaited.as_ref().is_some_and(|awaited| awaited.instances.contains(instance_id))
    }

    pub(super) fn await_no_more(&mut self, instance_id: &str) {
        if let Some(awaited) = &mut self.awaited {
            awaited.instances.remove(instance_id);
        }
    }

    /// Ends the wait for re-registrations. Instances that did not register again are treated as unregistered.
    pub(super) fn end_waiting(&mut self) {
        self.awaited = None;
        let gone: Vec<String> =
            self.overrides.keys().filter(|id| !self.modules.contains_key(*id)).cloned().collect();
        for instance_id in gone {
            self.forget_overrides(&instance_id);
        }
        self.leave_promotion_to_others();
    }
}
