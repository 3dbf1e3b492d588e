//! An upper bound of the room that a desired state takes in the maps, updated by what changes, so that the
//! cost does not grow with the state.
//!
//! [`super::fits`] counts exactly, and goes through the whole state. It is needed only if this bound does not
//! fit.

use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use ipnet::IpNet;
use nlb_common::maglev::POOLS;

use crate::model::settings::TableSizes;
use crate::model::{Desired, Destination, L4, Module, Route};

/// Clones share equal parts.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Footprint {
    /// The number of routes of modules, counted once for each module.
    module_routes: usize,
    /// The number of modules that connection ids name.
    named: usize,
    /// The number of backends of the modules' own routes.
    own_backends: usize,
    /// Ports and protocols that routes match: each is at most one service for each VIP of its routes. `pools`
    /// adds the source: each entry is at most one pool for each VIP.
    services: Distinct<(Option<u16>, L4)>,
    pools: Distinct<(Option<u16>, L4, Option<IpNet>)>,
    /// The modules with a limit of flows, whose pools may have fallbacks.
    limited: usize,
    /// The priorities of routes, learned ones apart. A pool and its fallbacks are of different priorities.
    priorities: Counts<(bool, i32)>,
    /// Pools of services for every port, which all other services of the VIP have, too.
    for_every_port: Distinct<(L4, Option<IpNet>)>,
    /// Answers of modules about the operator's and learned routes: a module serves a learned route only by
    /// its answer.
    answers: usize,
    /// The ports of modules that the operator's routes forward to.
    operator_ports: Counts<(Option<u16>, Option<u16>)>,
    named_vips: Counts<IpAddr>,
}

impl Footprint {
    /// Updates the footprint of `before` to that of `after`.
    pub fn follow(&mut self, before: &Desired, after: &Desired) {
        each(&before.modules, &after.modules, |module, step| self.count_module(module, step));
        each(&before.operator_routes, &after.operator_routes, |route, step| {
            self.count_operators(route, step)
        });
        each(&before.learned_routes, &after.learned_routes, |route, step| {
            self.count_route(route, true, step);
        });
    }

    /// The number of routes of modules, counted once for each module.
    pub fn module_routes(&self) -> usize {
        self.module_routes
    }

    /// Whether the state with this footprint certainly fits.
    pub fn fits(&self, desired: &Desired, limits: &TableSizes) -> bool {
        let rate_limits = desired.rate_limits.len();
        let vips = desired.vips.len() + self.named_vips.len();
        // A port with a rate limit is a service.
        let services = self.services.over(vips) + rate_limits;
        let first_pools = self.pools.over(vips) + services * self.for_every_port.len();
        let chain = if self.limited > 0 { self.priorities.len().min(POOLS as usize) } else { 1 };
        let counted_instances = if self.limited > 0 { desired.modules.len() } else { 0 };
        // Routes that are counted have backends of their own; the others share backends by port.
        let counted = usize::from(limits.counted_routes) + rate_limits;
        let ports = counted.min(desired.operator_routes.len()) + self.operator_ports.len();
        let learned = if desired.learned_routes.is_empty() { 0 } else { 2 * self.answers };
        let backends = self.own_backends + 2 * desired.modules.len() * ports + learned;
        [
            (backends, limits.backends.into()),
            (self.named * services, limits.backends.into()),
            (services, limits.services.into()),
            (chain * first_pools, limits.pools.into()),
            // At most one source prefix for each pool that is no fallback.
            (first_pools, limits.source_prefixes),
            (counted_instances, limits.backends.into()),
            (vips, limits.addresses.into()),
            (rate_limits, limits.rate_limits.into()),
        ]
        .into_iter()
        .all(|(count, max)| count <= max as usize)
    }

    fn count_module(&mut self, module: &Module, step: Step) {
        let families = usize::from(module.data.v4.is_some()) + usize::from(module.data.v6.is_some());
        step.by(&mut self.module_routes, module.routes.len());
        step.by(&mut self.named, usize::from(module.quic.is_some()));
        step.by(&mut self.limited, usize::from(module.max_connections > 0));
        step.by(&mut self.own_backends, families * module.routes.len());
        step.by(&mut self.answers, module.abilities.keys().filter(|key| key.operators).count());
        module.routes.values().for_each(|route| self.count_route(route, false, step));
    }

    fn count_operators(&mut self, route: &Route, step: Step) {
        self.operator_ports.count((route.port, route.listen_port), step);
        self.count_route(route, false, step);
    }

    fn count_route(&mut self, route: &Route, learned: bool, step: Step) {
        let l4 = route.protocol.l4();
        self.services.count(route.destination, (route.port, l4), step);
        self.pools.count(route.destination, (route.port, l4, route.source), step);
        self.priorities.count((learned, route.priority), step);
        if route.port.is_none() {
            self.for_every_port.count(route.destination, (l4, route.source), step);
        }
        if let Destination::Address(vip) = route.destination {
            self.named_vips.count(vip, step);
        }
    }
}

/// Calls `count` for what was removed and what was added; a change is both.
fn each<T: PartialEq>(
    before: &OrdMap<String, Arc<T>>,
    after: &OrdMap<String, Arc<T>>,
    mut count: impl FnMut(&T, Step),
) {
    for change in before.diff(after) {
        match change {
            DiffItem::Add(_, new) => count(new, Step::In),
            DiffItem::Remove(_, old) => count(old, Step::Out),
            DiffItem::Update { old: (_, old), new: (_, new) } => {
                count(old, Step::Out);
                count(new, Step::In);
            }
        }
    }
}

#[derive(Clone, Copy, Debug)]
enum Step {
    In,
    Out,
}

impl Step {
    fn by(self, total: &mut usize, count: usize) {
        match self {
            Step::In => *total += count,
            Step::Out => *total -= count,
        }
    }
}

/// The number of occurrences of each key.
#[derive(Clone, Debug, PartialEq)]
struct Counts<K: Ord + Clone>(OrdMap<K, usize>);

impl<K: Ord + Clone> Counts<K> {
    fn len(&self) -> usize {
        self.0.len()
    }

    fn count(&mut self, key: K, step: Step) {
        let times = self.0.get(&key).copied().unwrap_or(0);
        match step {
            Step::In => drop(self.0.insert(key, times + 1)),
            Step::Out if times > 1 => drop(self.0.insert(key, times - 1)),
            Step::Out => drop(self.0.remove(&key)),
        }
    }
}

impl<K: Ord + Clone> Default for Counts<K> {
    fn default() -> Self {
        Counts(OrdMap::new())
    }
}

/// Keys of one VIP, which the route names, and keys of all VIPs.
#[derive(Clone, Debug, PartialEq)]
struct Distinct<K: Ord + Clone> {
    of_one: Counts<(IpAddr, K)>,
    of_many: Counts<(Destination, K)>,
}

impl<K: Ord + Clone> Distinct<K> {
    fn count(&mut self, destination: Destination, key: K, step: Step) {
        match destination {
            Destination::Address(vip) => self.of_one.count((vip, key), step),
            many => self.of_many.count((many, key), step),
        }
    }

    fn len(&self) -> usize {
        self.of_one.len() + self.of_many.len()
    }

    /// The greatest number of keys with this many VIPs.
    fn over(&self, vips: usize) -> usize {
        self.of_one.len() + self.of_many.len() * vips
    }
}

impl<K: Ord + Clone> Default for Distinct<K> {
    fn default() -> Self {
        Distinct { of_one: Counts::default(), of_many: Counts::default() }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;
    use crate::compile::{MapImage, compile, fits};
    use crate::model::next_hop::Hops;
    use crate::model::{Ability, Health, Protocol, RouteKey, Server, Targets};
    use crate::registry::fixtures::{registration, route};

    fn any_route() -> impl Strategy<Value = Route> {
        let destination = prop_oneof![
            Just(Destination::EveryVip),
            (1_u8..4).prop_map(|n| Destination::Address([192, 0, 2, n].into())),
            Just(Destination::Prefix("192.0.2.0/30".parse().unwrap())),
        ];
        let source = prop_oneof![Just(None), (1_u8..3).prop_map(|n| format!("10.{n}.0.0/16").parse().ok())];
        let port = prop_oneof![Just(None), (80_u16..83).prop_map(Some)];
        let targets = prop_oneof![
            Just(Targets::Implied),
            Just(Targets::Instances(BTreeSet::from(["m1".to_owned()]).into()))
        ];
        (destination, source, port, any::<bool>(), 0..9, targets).prop_map(
            |(destination, source, port, udp, priority, targets)| Route {
                priority,
                destination,
                source,
                port,
                protocol: if udp { Protocol::Udp } else { Protocol::Tcp },
                targets,
                ..route(80)
            },
        )
    }

    fn routes(most: usize) -> impl Strategy<Value = Vec<(String, Route)>> {
        prop::collection::vec((0..most, any_route()), 0..most)
            .prop_map(|routes| routes.into_iter().map(|(n, route)| (format!("r{n}"), route)).collect())
    }

    fn any_state() -> impl Strategy<Value = Desired> {
        let limit = prop_oneof![4 => Just(0), 1 => Just(7_u32)];
        let module =
            (routes(3), any::<bool>(), any::<bool>(), limit).prop_map(|(routes, six, able, limit)| {
                let mut module = registration("m").module;
                module.max_connections = limit;
                let learned = RouteKey { id: "r1".to_owned(), operators: true };
                module.abilities = able.then(|| (learned, Ability::default())).into_iter().collect();
                module.quic = six.then_some(Server { config: 0, len: 8, id: 0 });
                module.data.v6 = six.then(|| "2001:db8::a".parse().unwrap());
                module.routes = routes.into_iter().collect();
                module
            });
        let module = (0..3_u64, module).prop_map(|(n, mut module)| {
            module.quic = module.quic.map(|server| Server { id: n, ..server });
            (n, module)
        });
        let modules = prop::collection::vec(module, 0..4);
        (modules, routes(4), routes(3)).prop_map(|(modules, operators, learned)| Desired {
            vips: ["192.0.2.1", "192.0.2.2", "2001:db8::1"].map(|vip| vip.parse().unwrap()).into(),
            modules: modules.into_iter().map(|(n, module)| (format!("m{n}"), module)).collect(),
            operator_routes: operators.into_iter().collect(),
            learned_routes: learned.into_iter().collect(),
            ..Desired::default()
        })
    }

    /// The state with these states of health, which repeat.
    fn with_health(desired: &Desired, health: &[Health]) -> Desired {
        let modules = desired.modules.iter().zip(health.iter().cycle());
        let modules = modules.map(|((id, module), health)| {
            (id.clone(), Arc::new(Module { health: *health, ..Module::clone(module) }))
        });
        Desired { modules: modules.collect(), ..desired.clone() }
    }

    /// Changes of health are not refused.
    fn fits_for_any_health(desired: &Desired, limits: &TableSizes) {
        for health in [
            &[Health::Healthy][..],
            &[Health::Unhealthy, Health::Healthy],
            &[Health::Healthy, Health::Unhealthy],
            &[Health::Healthy, Health::Degraded, Health::Stopping],
            &[Health::Unhealthy],
        ] {
            let desired = with_health(desired, health);
            let compiled = compile(&desired, &Hops::new(), &MapImage::empty(*limits));
            assert_eq!(compiled.map(|_| ()), Ok(()), "{health:?}");
        }
    }

    proptest! {
        #[test]
        fn accepted_tables_fit_after_any_earlier_state(
            history in prop::collection::vec(any_state(), 1..4),
            rooms in prop::array::uniform5(1_u16..40),
        ) {
            let [backends, services, pools, addresses, prefixes] = rooms;
            let source_prefixes = prefixes.into();
            let limits = TableSizes {
                backends,
                services,
                pools,
                addresses,
                rate_limits: 1,
                source_prefixes,
                counted_routes: 2,
            };
            let mut footprint = Footprint::default();
            let mut before = Desired::default();
            for state in history {
                footprint.follow(&before, &state);
                if footprint.fits(&state, &limits) {
                    prop_assert_eq!(fits(&state, &limits), Ok(()));
                }
                if fits(&state, &limits).is_ok() {
                    fits_for_any_health(&state, &limits);
                }
                before = state;
            }
            footprint.follow(&before, &Desired::default());
            prop_assert_eq!(footprint, Footprint::default());
        }
    }
}
