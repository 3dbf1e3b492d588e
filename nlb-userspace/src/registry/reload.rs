//! Requests to reload, which go to a module with the answer to its next heartbeat.

use std::sync::Arc;

use super::Registry;

impl Registry {
    /// Has the answer to the instance's next heartbeat ask for a reload. Does nothing if there is no such
    /// instance.
    pub fn request_reload(&self, instance_id: &str) {
        let mut state = self.lock();
        if state.modules.contains_key(instance_id)
            && let Ok(record) = Arc::make_mut(&mut state).record_mut(instance_id)
        {
            record.should_reload = true;
            self.publish(&state);
        }
    }

    /// Whether the instance is to reload. Each request is answered once.
    pub fn take_reload(&self, instance_id: &str) -> bool {
        let mut state = self.lock();
        if !state.modules.get(instance_id).is_some_and(|record| record.should_reload) {
            return false;
        }
        let Ok(record) = Arc::make_mut(&mut state).record_mut(instance_id) else { return false };
        record.should_reload = false;
        self.publish(&state);
        true
    }
}
