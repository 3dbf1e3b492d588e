//! Which routes serve which packets.
//!
//! Among routes that match a packet, the higher priority wins, then the longer source prefix, then the longer destination
//! prefix, then an exact over a wildcard port. Here that order is resolved ahead of packets: each VIP's ports become
//! services, and each service gets, for every source prefix that some route names, the pool of instances that wins for
//! clients whose longest matching prefix it is. Such clients match just the routes whose prefix covers it, so looking
//! up the longest prefix alone is exact, whatever the priorities are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

use crate::model::{Backend, Desired, L4, LimitTarget, Module, Route};

/// An instance that serves a route on one VIP.
#[derive(Clone, Debug)]
pub struct Offer<'a> {
    pub route_id: &'a str,
    pub route: &'a Route,
    /// How exactly the route names the VIP.
    pub destination_bits: u8,
    pub backend: Backend,
    pub module: &'a Module,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServiceKey {
    pub vip: IpAddr,
    /// `None` is every port that has no service of its own.
    pub port: Option<u16>,
    pub l4: L4,
}

/// A service and its pools, by source prefix.
pub struct Service<'a> {
    pub key: ServiceKey,
    pub pools: BTreeMap<Option<IpNet>, Vec<&'a Offer<'a>>>,
}

/// The services of all VIPs, in the order of their keys. A port with a rate limit of its own is a service of its own.
pub fn services<'a>(by_vip: &'a BTreeMap<IpAddr, Vec<Offer<'a>>>, desired: &Desired) -> Vec<Service<'a>> {
    let limited: BTreeSet<(IpAddr, u16, L4)> = super::limits::enabled(desired)
        .filter_map(|(_, limit)| match limit.target {
            LimitTarget::Service(vip, port, l4) => Some((vip, port, l4)),
            _ => None,
        })
        .collect();
    let mut services = Vec::new();
    for (vip, offers) in by_vip {
        let mut ports: BTreeSet<(Option<u16>, L4)> =
            offers.iter().map(|o| (o.route.port, o.route.protocol.l4())).collect();
        let of_vip = limited.range((*vip, 0, L4::Tcp)..=(*vip, u16::MAX, L4::Udp));
        let of_wildcards = of_vip.filter(|(_, _, l4)| ports.contains(&(None, *l4)));
        ports.extend(of_wildcards.map(|(_, port, l4)| (Some(*port), *l4)).collect::<Vec<_>>());
        for (port, l4) in ports {
            let candidates: Vec<&Offer> = offers
                .iter()
                .filter(|o| o.route.protocol.l4() == l4 && (o.route.port == port || o.route.port.is_none()))
                .collect();
            services.push(Service { key: ServiceKey { vip: *vip, port, l4 }, pools: pools(&candidates) });
        }
    }
    services
}

fn pools<'a>(candidates: &[&'a Offer<'a>]) -> BTreeMap<Option<IpNet>, Vec<&'a Offer<'a>>> {
    let prefixes: BTreeSet<Option<IpNet>> = candidates.iter().map(|o| whole(o.route.source)).collect();
    prefixes.into_iter().map(|prefix| (prefix, winners(candidates, prefix))).collect()
}

/// The prefix of length 0 is any source.
fn whole(source: Option<IpNet>) -> Option<IpNet> {
    source.filter(|net| net.prefix_len() > 0).map(|net| net.trunc())
}

/// The offers that win for clients whose longest matching prefix is `prefix`: those of the best match. An instance counts
/// once, by its smallest route id.
fn winners<'a>(candidates: &[&'a Offer<'a>], prefix: Option<IpNet>) -> Vec<&'a Offer<'a>> {
    let covers = |o: &&&Offer| match (whole(o.route.source), prefix) {
        (None, _) => true,
        (Some(source), Some(prefix)) => source.contains(&prefix),
        (Some(_), None) => false,
    };
    let rank = |o: &Offer| {
        let source_bits = whole(o.route.source).map_or(0, |net| net.prefix_len());
        (o.route.priority, source_bits, o.destination_bits, o.route.port.is_some())
    };
    let covering: Vec<&&Offer> = candidates.iter().filter(covers).collect();
    let best = covering.iter().map(|o| rank(o)).max();
    let mut by_instance: BTreeMap<&str, &Offer> = BTreeMap::new();
    for offer in covering.into_iter().filter(|o| Some(rank(o)) == best) {
        by_instance
            .entry(&offer.backend.instance_id)
            .and_modify(|first| {
                if offer.route_id < first.route_id {
                    *first = offer;
                }
            })
            .or_insert(offer);
    }
    by_instance.into_values().collect()
}
