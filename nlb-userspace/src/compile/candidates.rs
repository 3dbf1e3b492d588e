//! Candidates: every route of modules and of the operator, with the VIPs that its destination stands for.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::classifier::{Candidate, Owner};
use super::counted::Counted;
use crate::model::next_hop::Hops;
use crate::model::snat::SnatAddresses;
use crate::model::{Backend, Desired, Destination, ForwardMode, Module, Route, RouteKey};

/// The candidates of a desired state.
pub(super) struct Candidates<'a> {
    pub by_vip: BTreeMap<IpAddr, Vec<Candidate<'a>>>,
    pub backends: BTreeMap<Arc<Backend>, &'a Module>,
    /// Why routes get no traffic from a module: `instance/route: reason`.
    pub unserved: Vec<String>,
}

impl<'a> Candidates<'a> {
    pub(super) fn collect(desired: &'a Desired, counted: &Counted) -> Self {
        let mut candidates = Candidates {
            by_vip: desired.all_vips().into_iter().map(|vip| (vip, Vec::new())).collect(),
            backends: BTreeMap::new(),
            unserved: Vec::new(),
        };
        for (instance_id, module) in &desired.modules {
            for served in module.served(instance_id, &desired.operator_routes) {
                let owner = if served.operators { Owner::Operator } else { Owner::Instance };
                candidates.add(instance_id, module, (served.id, served.route, owner), counted);
            }
            for (route_id, route) in &desired.learned_routes {
                // No configuration assigns a learned route to a module: only its answer does.
                let key = RouteKey { id: route_id.clone(), operators: true };
                if module.abilities.contains_key(&key) {
                    candidates.add(instance_id, module, (route_id, route, Owner::Learned), counted);
                }
            }
        }
        candidates
    }

    /// Adds the candidates of a route that the module serves.
    fn add(
        &mut self,
        instance_id: &str,
        module: &'a Module,
        (route_id, route, owner): (&'a str, &'a Route, Owner),
        counted: &Counted,
    ) {
        let key = counted.key(route_id, owner != Owner::Instance);
        let mut served = false;
        let mut refused = None;
        for (vip, candidates) in &mut self.by_vip {
            let Some(destination_bits) = destination_bits(route, *vip) else { continue };
            if route.source.is_some_and(|source| source.addr().is_ipv4() != vip.is_ipv4()) {
                continue;
            }
            match backend_for(instance_id, module, key, route, *vip) {
                Ok(backend) => {
                    served = true;
                    let backend = match self.backends.get_key_value(&backend) {
                        Some((known, _)) => known.clone(),
                        None => {
                            let backend = Arc::new(backend);
                            self.backends.insert(backend.clone(), module);
                            backend
                        }
                    };
                    candidates.push(Candidate { route_id, owner, route, destination_bits, backend, module });
                }
                Err(reason) => refused = Some((*vip, reason)),
            }
        }
        if !served {
            let why = match refused {
                Some((vip, reason)) => format!("{reason} for VIP {vip}"),
                None => "no VIP matches its destination and source".to_owned(),
            };
            self.unserved.push(format!("{instance_id}/{route_id}: {why}"));
        }
    }

    /// Our source address towards each NAT backend without a set one, which it replies to: the current one,
    /// else the last known.
    pub(super) fn nat_sources(
        &self,
        hops: &Hops,
        before: &BTreeMap<IpAddr, IpAddr>,
        set: &SnatAddresses,
    ) -> BTreeMap<IpAddr, IpAddr> {
        let has_none = |backend: &Backend| set.for_backend(backend.addr).next().is_none();
        let nat = self.backends.keys().filter(|b| b.mode == ForwardMode::Nat && has_none(b));
        let source = |addr| hops.get(&addr).map(|hop| hop.source).or_else(|| before.get(&addr).copied());
        nat.filter_map(|backend| Some((backend.addr, source(backend.addr)?))).collect()
    }
}

/// How many bits of this VIP the route's destination fixes; `None` if the VIP is not in the destination.
fn destination_bits(route: &Route, vip: IpAddr) -> Option<u8> {
    use Destination::*;
    match route.destination {
        EveryVip => Some(0),
        Address(addr) => (addr == vip).then_some(if vip.is_ipv4() { 32 } else { 128 }),
        Prefix(net) => net.contains(&vip).then_some(net.prefix_len()),
    }
}

/// The backend of a module for a route's packets to this VIP.
fn backend_for(
    instance_id: &str,
    module: &Module,
    key: Option<&RouteKey>,
    route: &Route,
    vip: IpAddr,
) -> Result<Backend, &'static str> {
    let (v4, v6) = (module.data.v4.map(IpAddr::from), module.data.v6.map(IpAddr::from));
    let (same, other) = if vip.is_ipv4() { (v4, v6) } else { (v6, v4) };
    let addr = match module.mode {
        // NAT does not translate between the families.
        ForwardMode::Nat => same,
        ForwardMode::DsrL2 | ForwardMode::DsrIpip | ForwardMode::Gue => same.or(other),
    };
    let addr = addr.ok_or("the module has no data address of the right family")?;
    let port = route.data_port(module).unwrap_or(0);
    Ok(Backend {
        instance_id: instance_id.to_owned(),
        route: key.cloned(),
        addr,
        port,
        mode: module.mode,
        snat: module.snat,
    })
}
