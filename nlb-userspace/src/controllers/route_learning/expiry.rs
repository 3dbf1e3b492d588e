//! How long a learned route is kept: while somebody can handle it, somebody uses it, and no configured route takes its
//! place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::destination::L4Destination;
use crate::model::traffic::Traffic;
use crate::registry::{Registry, State};

/// A route without flows for so long makes room for others. The next packet asks anew.
pub const IDLE: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct LearnedRouteExpiry {
    /// By route id.
    persisted: BTreeMap<String, PersistedState>,
}

/// When these were last so.
struct PersistedState {
    able: Instant,
    used: Instant,
}

impl LearnedRouteExpiry {
    /// Forgets what is not to be kept.
    pub fn evaluate(&mut self, registry: &Registry, traffic: &Traffic, now: Instant) {
        let flows = |destination: &L4Destination| {
            traffic
                .service_flows
                .get(&(destination.vip, destination.port, destination.l4))
                .is_some_and(|flows| *flows > 0)
        };
        let gone = self.review(&registry.snapshot(), flows, now);
        if !gone.is_empty() {
            registry.forget_learned(&gone);
        }
    }

    /// The ids of the routes that are to go.
    fn review(
        &mut self,
        state: &State,
        has_flows: impl Fn(&L4Destination) -> bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let mut gone = state.superseded();
        self.persisted.retain(|route_id, _| state.learned.contains_key(route_id));
        for (route_id, learned) in &state.learned {
            let persisted =
                self.persisted.entry(route_id.clone()).or_insert(PersistedState { able: now, used: now });
            let used = has_flows(&learned.destination);
            if used {
                persisted.used = now;
            }
            let able = state.said_of_learned(route_id).any(|(_, ability)| ability.can_handle);
            if able {
                persisted.able = now;
            }
            // Open flows may end in peace.
            let lingers = used && now - persisted.able < state.settings.drain_timeout;
            if !able && !lingers || now - persisted.used >= IDLE {
                gone.insert(route_id.clone());
            }
        }
        gone
    }
}
