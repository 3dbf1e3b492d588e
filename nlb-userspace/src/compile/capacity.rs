//! Whether a desired state fits the maps. The registry checks this before it accepts a state, so that a
//! request of one caller cannot block the changes of all others.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::candidates::Candidates;
use super::classifier;
use super::counted::Counted;
use super::pools::Pool;
use crate::model::settings::TableSizes;
use crate::model::{Backend, Desired};

/// A table that may be full, and the flag that makes it larger.
pub(super) const SOURCE_PREFIXES: (&str, &str) = ("source prefixes", "--max-source-prefixes");

/// Why a state could not be compiled. The maps stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {what}: at most {max} fit; raise {flag}")]
pub struct TooMany {
    pub what: &'static str,
    pub max: u32,
    pub flag: &'static str,
}

/// Each service has a row for each module that connection ids may name.
pub(super) const SERVERS: &str = "QUIC server ids, counted for each service";

/// Any instance may have an id by which its flows are counted once one of them has a limit: it keeps the id
/// without a limit, too.
const CAPACITIES: &str = "instances, of which some have max_connections";

/// Counts the ids that [`super::compile`] would allocate, for any health of the modules: changes of health
/// are not refused. Our source addresses towards modules are unknown
/// here; they take a few more of `limits.addresses`.
pub fn fits(desired: &Desired, limits: &TableSizes) -> Result<(), TooMany> {
    let candidates = Candidates::collect(desired, &Counted::default().renew(desired, limits.counted_routes));
    let services = classifier::services(&candidates.by_vip, desired);
    // Backends beyond the limit share an id here, and are refused below.
    let numbers: BTreeMap<&Backend, u16> = candidates
        .backends
        .keys()
        .map(Arc::as_ref)
        .zip((1..=u16::MAX).chain(std::iter::repeat(u16::MAX)))
        .collect();
    let orders = services.iter().flat_map(|service| service.pools.values());
    let pools = Pool::most(orders, |backend| numbers[backend]);
    let servers = services.iter().map(|service| service.named.len()).sum();
    let prefixes = classifier::source_prefixes(&services);
    for ((what, flag), count, max) in [
        (("backends", "--max-backends"), candidates.backends.len(), limits.backends.into()),
        (("services", "--max-services"), services.len(), limits.services.into()),
        (("pools", "--max-pools"), pools, limits.pools.into()),
        (("VIPs and source addresses", "--max-vips"), candidates.by_vip.len(), limits.addresses.into()),
        (
            ("rate limits", "--max-rate-limits"),
            super::limits::enabled(desired).count(),
            limits.rate_limits.into(),
        ),
        (SOURCE_PREFIXES, prefixes, limits.source_prefixes),
        ((SERVERS, "--max-backends"), servers, limits.backends.into()),
        ((CAPACITIES, "--max-backends"), counted_instances(desired), limits.backends.into()),
    ] {
        if count > max as usize {
            return Err(TooMany { what, max, flag });
        }
    }
    Ok(())
}

/// The instances whose flows may be counted.
fn counted_instances(desired: &Desired) -> usize {
    let any_limit = desired.modules.values().any(|module| module.max_connections > 0);
    if any_limit { desired.modules.len() } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::compile::{MapImage, compile};
    use crate::model::next_hop::Hops;
    use crate::model::{Protocol, Route, Routes, Server};
    use crate::registry::fixtures::{registration, route};

    const PLENTY: TableSizes = TableSizes {
        backends: 100,
        services: 100,
        pools: 100,
        addresses: 100,
        rate_limits: 100,
        source_prefixes: 100,
        counted_routes: 100,
    };

    /// Two modules with two services on two VIPs, and a third module for some clients of one service.
    fn desired() -> Desired {
        let mut desired = Desired {
            vips: ["192.0.2.1", "192.0.2.2"].map(|vip| vip.parse().unwrap()).into(),
            ..Desired::default()
        };
        for instance_id in ["alb-1", "alb-2"] {
            let mut module = registration(instance_id).module;
            module.routes.insert("tls".into(), route(443).into());
            desired.modules.insert(instance_id.into(), module.into());
        }
        let internal = Route { source: "10.0.0.0/8".parse().ok(), ..route(80) };
        desired.operator_routes.insert("internal".into(), internal.into());
        desired
    }

    /// One module behind two VIPs is one backend, with a server id for each service.
    #[test]
    fn connection_ids_are_counted_for_each_service() {
        let mut desired = desired();
        desired.modules.clear();
        let mut module = registration("quic-1").module;
        module.quic = Server::new(0, &[1]);
        module.routes = Routes::unit("quic".into(), Route { protocol: Protocol::Udp, ..route(443) }.into());
        desired.modules.insert("quic-1".into(), module.into());
        desired.operator_routes.clear();
        for (backends, refused) in [(1, true), (2, false)] {
            let limits = TableSizes { backends, ..PLENTY };
            let fits = fits(&desired, &limits).err();
            let compiled = compile(&desired, &Hops::new(), &MapImage::empty(limits)).err();
            assert_eq!(fits, compiled);
            assert_eq!(fits.is_some_and(|why| why.what == SERVERS), refused, "room for {backends}");
        }
    }

    /// Routes of one port with these priorities, all of one module with this limit of flows.
    fn chain(priorities: i32, max_connections: u32) -> Desired {
        let mut module = registration("alb-1").module;
        module.max_connections = max_connections;
        let routes =
            (0..priorities).map(|priority| (format!("r{priority}"), Route { priority, ..route(80) }));
        module.routes = routes.map(|(id, route)| (id, Arc::new(route))).collect();
        Desired { modules: [("alb-1".to_owned(), Arc::new(module))].into_iter().collect(), ..desired() }
    }

    #[test]
    fn fallbacks_are_counted_whatever_the_health_is() {
        let most = |desired: &Desired| {
            let room = |pools| fits(desired, &TableSizes { pools, ..PLENTY }).is_ok();
            (1..100).find(|pools| room(*pools)).unwrap()
        };
        let no_operators = |desired| Desired { operator_routes: Default::default(), ..desired };
        // On each of two VIPs, by backends of their own.
        for (priorities, limit, pools) in [(3, 0, 1), (3, 9, 3), (8, 9, 8), (9, 9, 8)] {
            assert_eq!(most(&no_operators(chain(priorities, limit))), pools, "{priorities}, {limit}");
        }
        let sick = |mut desired: Desired| {
            let module = Arc::make_mut(desired.modules.get_mut("alb-1").unwrap());
            module.health = crate::model::Health::Stopping;
            desired
        };
        assert_eq!(most(&sick(no_operators(chain(3, 9)))), 3, "it may recover");
    }

    #[test]
    fn instances_whose_flows_may_be_counted_are() {
        let mut desired = desired();
        for n in 0..100 {
            let mut idle = registration("idle").module;
            idle.routes.clear();
            desired.modules.insert(format!("idle-{n}"), idle.into());
        }
        desired.operator_routes.clear();
        assert_eq!(fits(&desired, &PLENTY), Ok(()));
        Arc::make_mut(desired.modules.get_mut("alb-1").unwrap()).max_connections = 1;
        assert_eq!(fits(&desired, &PLENTY).unwrap_err().what, CAPACITIES);
    }

    #[test]
    fn agrees_with_the_compiler() {
        let desired = desired();
        let refuses = |limits: &TableSizes| {
            let fits = fits(&desired, limits).err();
            let compiled = compile(&desired, &Hops::new(), &MapImage::empty(*limits)).err();
            assert_eq!(fits, compiled, "{limits:?}");
            fits.is_some()
        };
        assert!(!refuses(&PLENTY));
        type Narrow = fn(TableSizes, u16) -> TableSizes;
        let narrow: [Narrow; 5] = [
            |limits, backends| TableSizes { backends, ..limits },
            |limits, services| TableSizes { services, ..limits },
            |limits, pools| TableSizes { pools, ..limits },
            |limits, addresses| TableSizes { addresses, ..limits },
            |limits, prefixes| TableSizes { source_prefixes: prefixes.into(), ..limits },
        ];
        for narrow in narrow {
            let least = (1..=100).find(|room| !refuses(&narrow(PLENTY, *room)));
            assert!(least.is_some_and(|least| least > 1), "{least:?}");
        }
    }
}
