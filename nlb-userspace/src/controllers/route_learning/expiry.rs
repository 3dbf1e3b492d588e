//! How long a learned route is kept: while a module can handle its destination, flows use it, and no
//! configured route covers it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::destination::L4Destination;
use crate::model::traffic::Traffic;
use crate::registry::{Registry, State};

/// A learned route without flows for this long is removed, and the next packet raises an upcall.
pub(super) const IDLE: Duration = Duration::from_secs(600);

#[derive(Default)]
pub(super) struct LearnedRouteExpiry {
    /// By route id.
    routes: BTreeMap<String, LastSeen>,
}

/// When a module could last handle the destination, and when the route last had flows.
struct LastSeen {
    able: Instant,
    used: Instant,
}

impl LearnedRouteExpiry {
    /// Removes learned routes that have expired.
    pub(super) fn evaluate(&mut self, registry: &Registry, traffic: &Traffic, now: Instant) {
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

    /// The ids of the routes to be removed.
    fn review(
        &mut self,
        state: &State,
        has_flows: impl Fn(&L4Destination) -> bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let mut gone = state.superseded();
        self.routes.retain(|route_id, _| state.learned.contains_key(route_id));
        for (route_id, learned) in &state.learned {
            let seen = self.routes.entry(route_id.clone()).or_insert(LastSeen { able: now, used: now });
            let used = has_flows(&learned.destination);
            if used {
                seen.used = now;
            }
            let able = state.answers_on_learned(route_id).any(|(_, ability)| ability.can_handle);
            if able {
                seen.able = now;
            }
            // Open flows may end first.
            let lingers = used && now - seen.able < state.settings.drain_timeout;
            if !able && !lingers || now - seen.used >= IDLE {
                gone.insert(route_id.clone());
            }
        }
        gone
    }
}
