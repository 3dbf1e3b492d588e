//! What time does to registrations: leases lapse, names move.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

use crate::model::DataAddresses;
use crate::model::endpoint::Host;
use crate::policy::lease::LeaseState;

use super::{Drain, Registry};

/// A module whose addresses come from names.
#[derive(Debug)]
pub struct Named {
    pub instance_id: String,
    pub epoch: u64,
    pub hosts: Vec<Host>,
    pub data: DataAddresses,
}

impl Registry {
    /// Lets leases lapse, and evicts modules whose lease is forfeit.
    pub fn expire_leases(&self, now: Instant) {
        let mut state = self.lock();
        let terms = &state.settings.lease.clone();
        let waited = state.awaited.as_ref().map(|awaited| now.saturating_duration_since(awaited.since));
        if waited.is_some_and(|waited| waited >= terms.evict_after) {
            Arc::make_mut(&mut state).end_waiting();
            self.publish(&state);
        }
        let due: Vec<(String, LeaseState)> = state
            .modules
            .iter()
            .map(|(instance_id, record)| (instance_id, record, record.lease.state(terms, now)))
            .filter(|(_, record, lease_state)| record.lease_state != *lease_state)
            .map(|(instance_id, _, lease_state)| (instance_id.clone(), lease_state))
            .collect();
        if due.is_empty() {
            return;
        }
        let changed = Arc::make_mut(&mut state);
        for (instance_id, lease_state) in due {
            let Ok(record) = changed.record_mut(&instance_id) else { continue };
            record.lease_state = lease_state;
            let silent = record.lease.age(now);
            match lease_state {
                // A drain has a deadline of its own.
                LeaseState::Evicted if record.drain != Some(Drain::Leaving) => {
                    warn!(instance = instance_id, ?silent, "lease expired: module evicted");
                    changed.forget_module(&instance_id);
                }
                _ => warn!(instance = instance_id, ?silent, "heartbeats missed: module gets no new flows"),
            }
        }
        self.publish(&state);
    }

    /// Gives every lease this much longer.
    pub fn extend_leases(&self, by: Duration) {
        let mut state = self.lock();
        let all: Vec<String> = state.modules.keys().cloned().collect();
        let changed = Arc::make_mut(&mut state);
        for instance_id in all {
            if let Ok(record) = changed.record_mut(&instance_id) {
                record.lease.extend(by);
            }
        }
        if let Some(awaited) = &mut changed.awaited {
            awaited.since += by;
        }
    }

    /// The modules whose addresses can move.
    pub fn named_hosts(&self) -> Vec<Named> {
        let snapshot = self.snapshot();
        let named = snapshot.modules.values().filter(|record| record.registration.has_names());
        named
            .map(|record| Named {
                instance_id: record.registration.instance_id.clone(),
                epoch: record.epoch,
                hosts: record.registration.data_hosts.clone(),
                data: record.registration.module.data,
            })
            .collect()
    }

    /// A name has moved: that very registration's traffic goes elsewhere.
    pub fn readdress(&self, instance_id: &str, epoch: u64, data: DataAddresses) {
        let mut state = self.lock();
        if state.modules.get(instance_id).is_none_or(|record| record.epoch != epoch) {
            return;
        }
        if let Ok(record) = Arc::make_mut(&mut state).record_mut(instance_id) {
            record.registration.module.data = data;
        }
        self.publish(&state);
    }
}
