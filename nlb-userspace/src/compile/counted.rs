//! Which routes have backends of their own, so that each can be counted and limited.
//!
//! Such backends cost ids and Maglev tables, of which there are fewer than there may be routes. So only a
//! bounded number of routes have them: those that were added first, those with a rate limit, and those whose
//! UDP flows are rebalanced; the others share backends, and are counted together. The choice for a route is
//! permanent, because a route that changed its backends would lose its flows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::limits;
use crate::model::{Desired, LimitTarget, RouteKey};

/// All routes, and whether each is counted.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Counted(Arc<BTreeMap<RouteKey, bool>>);

impl Counted {
    /// Updates the choice, with room for `most` routes besides those that need backends of their own.
    pub(super) fn renew(&self, desired: &Desired, most: u16) -> Self {
        let limited: BTreeSet<&str> = limits::enabled(desired)
            .filter_map(|(_, limit)| match &limit.target {
                LimitTarget::Route(id) => Some(id.as_str()),
                _ => None,
            })
            .collect();
        let of_modules = desired.modules.values().flat_map(|module| module.routes.iter());
        let of_modules = of_modules.map(|(id, route)| (id, false, route));
        let mut keys: BTreeMap<(&String, bool), bool> = BTreeMap::new();
        for (id, operators, route) in
            of_modules.chain(desired.operator_routes.iter().map(|(id, route)| (id, true, route)))
        {
            *keys.entry((id, operators)).or_default() |= route.rebalances_udp();
        }
        let mut counted: BTreeMap<RouteKey, bool> = keys
            .into_iter()
            .map(|((id, operators), is_rebalanced)| {
                let key = RouteKey { id: id.clone(), operators };
                let now = is_rebalanced || limited.contains(id.as_str()) || self.0.get(&key) == Some(&true);
                (key, now)
            })
            .collect();
        let mut room = usize::from(most).saturating_sub(counted.values().filter(|counted| **counted).count());
        for (key, counted) in &mut counted {
            if room > 0 && !*counted && !self.0.contains_key(key) {
                *counted = true;
                room -= 1;
            }
        }
        Counted(Arc::new(counted))
    }

    /// The key of a route, if it is counted.
    pub(super) fn key(&self, id: &str, operators: bool) -> Option<&RouteKey> {
        let key = RouteKey { id: id.to_owned(), operators };
        self.0.get_key_value(&key).filter(|(_, counted)| **counted).map(|(key, _)| key)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{LimitUnit, RateLimit, Texts};
    use crate::registry::fixtures::route;

    fn routes(numbers: impl IntoIterator<Item = usize>) -> Desired {
        let operator_routes = numbers.into_iter().map(|n| (format!("r{n:05}"), route(80))).collect();
        Desired { operator_routes, ..Desired::default() }
    }

    const MOST: usize = 100;

    fn is_counted(counted: &Counted, n: usize) -> bool {
        counted.key(&format!("r{n:05}"), true).is_some()
    }

    #[test]
    fn the_first_routes_are_counted_and_stay_counted() {
        let first = Counted::default().renew(&routes(5000..5000 + MOST), MOST as u16);
        assert!(is_counted(&first, 5000) && is_counted(&first, 5000 + MOST - 1));
        let more = first.renew(&routes(0..5000 + MOST), MOST as u16);
        assert!(is_counted(&more, 5000) && !is_counted(&more, 0));
        let fewer = more.renew(&routes(0..5001), MOST as u16);
        assert!(
            is_counted(&fewer, 5000) && !is_counted(&fewer, 0),
            "routes stay uncounted even if there is room"
        );
        let again = fewer.renew(&routes(5000..5002), MOST as u16).renew(&routes([0, 5000]), MOST as u16);
        assert!(is_counted(&again, 0), "a route that was removed is chosen anew");
    }

    #[test]
    fn a_route_with_a_limit_is_always_counted() {
        let mut desired = routes(0..MOST + 1);
        let before = Counted::default().renew(&desired, MOST as u16);
        assert!(!is_counted(&before, MOST));
        let limit = RateLimit {
            target: LimitTarget::Route(format!("r{MOST:05}")),
            unit: LimitUnit::NewFlows,
            per_second: 1,
            per_minute: 0,
            per_hour: 0,
            burst: 0,
            enabled: true,
            metadata: Texts::new(),
        };
        desired.rate_limits.insert("few".into(), limit.into());
        assert!(is_counted(&before.renew(&desired, MOST as u16), MOST));
    }
}
