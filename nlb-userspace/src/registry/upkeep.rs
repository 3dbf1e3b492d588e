//! Changes of registrations by time: leases expire, and host names resolve to other addresses.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use crate::model::DataAddresses;
use crate::model::endpoint::Host;
use crate::policy::lease::LeaseState;

use super::{Commit, Drain, Registry, RegistryError};

/// A module whose data addresses come from host names.
#[derive(Debug)]
pub struct Named {
    pub instance_id: String,
    pub epoch: u64,
    pub hosts: Vec<Host>,
    pub data: DataAddresses,
}

/// The event for a registration that follows from a change of its lease's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseEvent {
    Restored,
    Expired,
    Evicted,
}

impl Registry {
    /// Updates the states of leases, and evicts modules whose lease has been expired for too long.
    pub fn expire_leases(&self, now: Instant) {
        let mut state = self.lock();
        let config = &state.settings.lease.clone();
        let waited = state.awaited.as_ref().map(|awaited| now.saturating_duration_since(awaited.since));
        if waited.is_some_and(|waited| waited >= config.evict_after) {
            Arc::make_mut(&mut state).end_waiting();
            self.publish(&state);
        }
        let due: Vec<(String, LeaseState)> = state
            .modules
            .iter()
            .map(|(instance_id, record)| (instance_id, record, record.lease.state(config, now)))
            .filter(|(_, record, lease_state)| record.lease_state != *lease_state)
            .map(|(instance_id, _, lease_state)| (instance_id.clone(), lease_state))
            .collect();
        if due.is_empty() {
            return;
        }
        let changed = Arc::make_mut(&mut state);
        for (instance_id, lease_state) in due {
            let Ok(record) = changed.record_mut(&instance_id) else { continue };
            let event = lease_event(record.lease_state, lease_state, record.drain);
            record.lease_state = lease_state;
            let silent = record.lease.age(now);
            match event {
                Some(LeaseEvent::Restored) => {
                    info!(instance = instance_id, ?silent, "lease valid again: it was extended");
                }
                Some(LeaseEvent::Expired) => {
                    warn!(instance = instance_id, ?silent, "heartbeats missed: module gets no new flows");
                }
                Some(LeaseEvent::Evicted) => {
                    warn!(instance = instance_id, ?silent, "lease expired: module evicted");
                    changed.forget_module(&instance_id);
                }
                None => {}
            }
        }
        self.publish(&state);
    }

    /// Extends every lease by a time in which no heartbeat could be received.
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

    /// The modules with host names.
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

    /// Sets the data addresses of the registration of this epoch, after its host name resolved to others. It
    /// keeps the former ones if the new ones do not fit the maps: each family takes backends.
    pub fn readdress(&self, instance_id: &str, epoch: u64, data: DataAddresses) {
        let readdressed = self.change(Commit::Apply, |state| {
            let record = state.record_mut(instance_id)?;
            if record.epoch == epoch {
                record.registration.module.data = data;
            }
            Ok(())
        });
        match readdressed {
            Ok(_) | Err(RegistryError::UnknownInstance(_)) => {}
            Err(why) => warn!(instance = instance_id, %why, "its new addresses are not used"),
        }
    }
}

/// `None` for an expired lease that stays expired.
fn lease_event(before: LeaseState, after: LeaseState, drain: Option<Drain>) -> Option<LeaseEvent> {
    match (before, after) {
        (LeaseState::Expired | LeaseState::Evicted, LeaseState::Valid) => Some(LeaseEvent::Restored),
        // A module that is unregistering stays until the deadline of its drain.
        (_, LeaseState::Evicted) if drain != Some(Drain::Leaving) => Some(LeaseEvent::Evicted),
        (LeaseState::Valid, LeaseState::Expired | LeaseState::Evicted) => Some(LeaseEvent::Expired),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use LeaseState::{Evicted, Expired, Valid};

    #[test]
    fn missed_heartbeats_are_not_reported_when_a_lease_is_restored() {
        assert_eq!(lease_event(Valid, Expired, None), Some(LeaseEvent::Expired));
        assert_eq!(lease_event(Expired, Valid, None), Some(LeaseEvent::Restored));
        assert_eq!(lease_event(Expired, Valid, Some(Drain::Maintenance)), Some(LeaseEvent::Restored));
    }

    #[test]
    fn missed_heartbeats_of_a_leaving_module_are_reported_once() {
        let leaving = Some(Drain::Leaving);
        assert_eq!(lease_event(Valid, Expired, leaving), Some(LeaseEvent::Expired));
        assert_eq!(lease_event(Expired, Evicted, leaving), None);
        assert_eq!(lease_event(Evicted, Expired, leaving), None);
        assert_eq!(lease_event(Valid, Evicted, leaving), Some(LeaseEvent::Expired));
        assert_eq!(lease_event(Evicted, Valid, leaving), Some(LeaseEvent::Restored));
    }

    #[test]
    fn a_module_is_evicted_unless_it_is_leaving() {
        for drain in [None, Some(Drain::Maintenance)] {
            assert_eq!(lease_event(Valid, Evicted, drain), Some(LeaseEvent::Evicted));
            assert_eq!(lease_event(Expired, Evicted, drain), Some(LeaseEvent::Evicted));
        }
    }
}
