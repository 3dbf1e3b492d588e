//! Which routes serve which packets.
//!
//! Among the routes that match a packet, the higher priority wins, then the longer source prefix, then the
//! longer destination prefix, then an exact port over a wildcard port. The order is resolved before packets
//! come: each VIP's ports become services, and each service gets, for every source prefix that some route
//! names, the pool of instances that wins for clients whose longest matching prefix it is. Such clients match
//! exactly the routes whose prefix covers it, so a lookup of the longest prefix alone is exact, whatever the
//! priorities are. Routes of lower priority are the pool's fallback.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use crate::compile::rows::ServiceKey;
use crate::model::{Backend, Desired, L4, LimitTarget, Module, Route, RouteKey, Server};

/// An instance that serves a route on one VIP.
#[derive(Clone, Debug)]
pub(crate) struct Candidate<'a> {
    pub route_id: &'a str,
    pub owner: Owner,
    pub route: &'a Route,
    /// How many bits of the VIP the route's destination fixes.
    pub destination_bits: u8,
    pub backend: Arc<Backend>,
    pub module: &'a Module,
}

/// The owner of a route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Instance,
    Operator,
    /// A learned route has no owner, and every other route takes precedence over it.
    Learned,
}

impl Candidate<'_> {
    pub(crate) fn key(&self) -> RouteKey {
        RouteKey { id: self.route_id.to_owned(), operators: self.owner != Owner::Instance }
    }
}

/// The candidates of a pool: the winners of each priority, the highest first. Those of a lower one serve
/// while nobody of a higher one takes new flows.
pub(crate) type FallbackOrder<'a> = Vec<Vec<&'a Candidate<'a>>>;

/// A service and its pools, by source prefix.
pub(crate) struct Service<'a> {
    pub key: ServiceKey,
    pub pools: BTreeMap<Option<IpNet>, FallbackOrder<'a>>,
    /// Candidates that QUIC connection ids may name, also those without new flows, which may have older
    /// connections.
    pub named: BTreeMap<Server, &'a Candidate<'a>>,
    /// No module's or operator's route names the port: routes for every port cover it, or a learned one.
    pub every_port: bool,
}

/// The rows that the sources of these services take: one for each prefix of a service.
pub(crate) fn source_prefixes(services: &[Service]) -> usize {
    services.iter().map(|service| service.pools.keys().flatten().count()).sum()
}

impl Service<'_> {
    /// Whether the service has pools for source prefixes.
    pub(crate) fn is_by_source(&self) -> bool {
        self.pools.keys().any(Option::is_some)
    }
}

/// The services of all VIPs, in the order of their keys. A port with a rate limit is a service of its own.
pub(crate) fn services<'a>(
    by_vip: &'a BTreeMap<IpAddr, Vec<Candidate<'a>>>,
    desired: &Desired,
) -> Vec<Service<'a>> {
    let limited: BTreeSet<(IpAddr, u16, L4)> = super::limits::enabled(desired)
        .filter_map(|(_, limit)| match limit.target {
            LimitTarget::Service(vip, port, l4) => Some((vip, port, l4)),
            _ => None,
        })
        .collect();
    let mut services = Vec::new();
    for (vip, candidates) in by_vip {
        let mut by_port: BTreeMap<(Option<u16>, L4), Vec<&Candidate>> = BTreeMap::new();
        for candidate in candidates {
            by_port.entry((candidate.route.port, candidate.route.protocol.l4())).or_default().push(candidate);
        }
        for (_, port, l4) in limited.range((*vip, 0, L4::Tcp)..=(*vip, u16::MAX, L4::Udp)) {
            if by_port.contains_key(&(None, *l4)) {
                by_port.entry((Some(*port), *l4)).or_default();
            }
        }
        for ((port, l4), own) in &by_port {
            let for_every_port = by_port.get(&(None, *l4)).filter(|_| port.is_some());
            let candidates = own.iter().chain(for_every_port.into_iter().flatten()).copied();
            services.push(Service {
                key: ServiceKey { vip: *vip, port: *port, l4: *l4 },
                every_port: port.is_none() || own.iter().all(|candidate| candidate.owner == Owner::Learned),
                named: if *l4 == L4::Udp { named(candidates.clone()) } else { BTreeMap::new() },
                pools: pools(candidates),
            });
        }
    }
    services
}

/// The winners for every source prefix that some candidate names. They are among the candidates of that
/// prefix and of the prefixes that contain it.
fn pools<'a>(
    candidates: impl Iterator<Item = &'a Candidate<'a>>,
) -> BTreeMap<Option<IpNet>, FallbackOrder<'a>> {
    let mut by_source: BTreeMap<Option<IpNet>, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        by_source.entry(whole(candidate.route.source)).or_default().push(candidate);
    }
    let lengths: BTreeSet<u8> = by_source.keys().flatten().map(IpNet::prefix_len).collect();
    let covering = |prefix: &Option<IpNet>| -> Vec<&'a Candidate<'a>> {
        let around = prefix.iter().flat_map(|net| {
            let lengths = lengths.range(..=net.prefix_len());
            lengths.filter_map(|bits| IpNet::new(net.addr(), *bits).ok().map(|net| Some(net.trunc())))
        });
        around.chain([None]).filter_map(|source| by_source.get(&source)).flatten().copied().collect()
    };
    by_source.keys().map(|prefix| (*prefix, fallback_order(&covering(prefix)))).collect()
}

fn fallback_order<'a>(covering: &[&'a Candidate<'a>]) -> FallbackOrder<'a> {
    let mut by_priority: BTreeMap<_, Vec<&Candidate>> = BTreeMap::new();
    for candidate in covering {
        let priority = (candidate.owner != Owner::Learned, candidate.route.priority);
        by_priority.entry(Reverse(priority)).or_default().push(candidate);
    }
    by_priority.into_values().map(|of_one| winners(&of_one)).collect()
}

/// The best match among the candidates of each server id.
fn named<'a>(candidates: impl Iterator<Item = &'a Candidate<'a>>) -> BTreeMap<Server, &'a Candidate<'a>> {
    let mut by_server: BTreeMap<Server, &Candidate> = BTreeMap::new();
    for candidate in candidates {
        let Some(server) = candidate.module.quic else { continue };
        let best = by_server.entry(server).or_insert(candidate);
        if (rank(candidate), best.route_id) > (rank(best), candidate.route_id) {
            *best = candidate;
        }
    }
    by_server
}

/// The prefix of length 0 means any source.
fn whole(source: Option<IpNet>) -> Option<IpNet> {
    source.filter(|net| net.prefix_len() > 0).map(|net| net.trunc())
}

/// The order of candidates that match a packet: the greatest wins.
fn rank(candidate: &Candidate) -> impl Ord {
    let route = candidate.route;
    let source_bits = whole(route.source).map_or(0, |net| net.prefix_len());
    (
        candidate.owner != Owner::Learned,
        route.priority,
        source_bits,
        candidate.destination_bits,
        route.port.is_some(),
    )
}

/// The best matches among candidates for clients with the same longest matching prefix. An instance counts
/// once, by its smallest route id.
fn winners<'a>(covering: &[&'a Candidate<'a>]) -> Vec<&'a Candidate<'a>> {
    let best = covering.iter().map(|o| rank(o)).max();
    let mut by_instance: BTreeMap<&str, &Candidate> = BTreeMap::new();
    for candidate in covering.iter().copied().filter(|o| Some(rank(o)) == best) {
        by_instance
            .entry(&candidate.backend.instance_id)
            .and_modify(|first| {
                if candidate.route_id < first.route_id {
                    *first = candidate;
                }
            })
            .or_insert(candidate);
    }
    by_instance.into_values().collect()
}
