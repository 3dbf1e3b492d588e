//! How long a learned route is kept: while somebody can handle it, somebody uses it, and no configured route takes its
//! place.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::destination::Wanted;
use crate::model::traffic::Traffic;
use crate::registry::{Registry, State};

/// A route without flows for so long makes room for others. The next packet asks anew.
pub const IDLE: Duration = Duration::from_secs(600);

#[derive(Default)]
pub struct Keeper {
    /// By route id.
    kept: BTreeMap<String, Kept>,
}

/// When these were last so.
struct Kept {
    able: Instant,
    used: Instant,
}

impl Keeper {
    /// Forgets what is not to be kept.
    pub fn look(&mut self, registry: &Registry, traffic: &Traffic, now: Instant) {
        let flows = |wanted: &Wanted| {
            traffic.service_flows.get(&(wanted.vip, wanted.port, wanted.l4)).is_some_and(|flows| *flows > 0)
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
        has_flows: impl Fn(&Wanted) -> bool,
        now: Instant,
    ) -> BTreeSet<String> {
        let mut gone = state.superseded();
        self.kept.retain(|route_id, _| state.learned.contains_key(route_id));
        for (route_id, learned) in &state.learned {
            let kept = self.kept.entry(route_id.clone()).or_insert(Kept { able: now, used: now });
            let used = has_flows(&learned.wanted);
            if used {
                kept.used = now;
            }
            let able = state.said_of_learned(route_id).any(|(_, ability)| ability.can_handle);
            if able {
                kept.able = now;
            }
            // Open flows may end in peace.
            let lingers = used && now - kept.able < state.settings.drain_timeout;
            if !able && !lingers || now - kept.used >= IDLE {
                gone.insert(route_id.clone());
            }
        }
        gone
    }
}
