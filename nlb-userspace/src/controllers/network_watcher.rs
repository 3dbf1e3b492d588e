//! Reports modules that no packet gets to: without a route, behind a link that the data path cannot send to,
//! or with a neighbour that does not answer.

use std::convert::Infallible;
use std::sync::Arc;

use tokio::sync::watch;

use crate::model::Health;
use crate::model::reachability::UnreachableAddresses;
use crate::policy::health::{HealthSignal, Source};
use crate::registry::{Record, Registry, State};

/// Follows the data addresses that are unreachable. Runs until it is dropped.
pub async fn watch(
    registry: Arc<Registry>,
    mut unreachable: watch::Receiver<Arc<UnreachableAddresses>>,
) -> Infallible {
    let mut desired = registry.desired();
    loop {
        desired.mark_unchanged();
        let addresses = unreachable.borrow_and_update().clone();
        let state = registry.snapshot();
        for (instance_id, record) in &state.modules {
            let signal = signal(&state, record, &addresses);
            registry.report_signal(instance_id, record.epoch, Source::Network, signal);
        }
        let changed = tokio::select! {
            changed = unreachable.changed() => changed,
            changed = desired.changed() => changed,
        };
        if changed.is_err() {
            return std::future::pending().await;
        }
    }
}

/// A module is unhealthy if packets get to none of its addresses in use.
fn signal(state: &State, record: &Record, addresses: &UnreachableAddresses) -> HealthSignal {
    let in_use = state.data_addresses(record);
    let why: Option<Vec<String>> =
        in_use.iter().map(|address| addresses.get(address).map(|why| format!("{address}: {why}"))).collect();
    match why {
        Some(why) if !why.is_empty() => HealthSignal { health: Health::Unhealthy, why: why.join("; ") },
        _ => HealthSignal::healthy(),
    }
}
