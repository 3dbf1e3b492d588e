//! Desired state to the contents of the maps: pure and deterministic.
//!
//! `compile` takes what is desired, what is known of the network around, and the image before (for the numbers that
//! things have in the maps, and for Maglev tables that need not be built again). Equal input gives an equal image.

mod capacity;
pub mod classifier;
pub mod ids;
pub mod maglev;
mod pools;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nlb_common::abi;
use nlb_common::net::{Addr, Be16};

use crate::model::{Backend, Desired, ForwardMode, Health, L4, Module, Route, Snat};
use classifier::{Offer, ServiceKey};
use ids::Ids;
use pools::Pool;

pub use capacity::fits;

/// What the kernel's routes and neighbours say of the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub hop: abi::NextHop,
    /// Our address on that way.
    pub source: IpAddr,
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// The prefix length of the link that the address is on; the full length if it is behind a gateway.
    pub link_prefix: u8,
}

/// The ways that are known. An address without a MAC yet is absent.
pub type Hops = BTreeMap<IpAddr, Hop>;

/// How many of each there can be: the lengths of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    pub backends: u16,
    pub services: u16,
    pub pools: u16,
    pub addresses: u16,
}

/// Everything that the maps should hold, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct MapImage {
    pub rows: Rows,
    /// What the ids in the rows stand for.
    pub backend_ids: Ids<Backend>,
    service_ids: Ids<ServiceKey>,
    pool_ids: Ids<PoolKey>,
    pub address_ids: Ids<IpAddr>,
    /// Our address towards each NAT backend, the last that was known: replies to it are expected for as long as there are
    /// flows, even while the way there is unknown.
    sources: BTreeMap<IpAddr, IpAddr>,
    /// What the pools' tables were built from.
    pools: BTreeMap<u16, Pool>,
    /// Why some route of some module gets no traffic: `instance/route: reason`.
    pub unserved: Vec<String>,
}

/// A pool serves the clients of a service that one source prefix covers; `None` covers all.
type PoolKey = (ServiceKey, Option<IpNet>);

/// The rows of the maps.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    pub backends: BTreeMap<u16, abi::Backend>,
    pub vips: BTreeMap<u16, Addr>,
    pub pools: BTreeMap<u16, Arc<[u16]>>,
    /// Service id and source prefix (in v4-mapped bits) to pool.
    pub sources: BTreeMap<(u16, Addr128), u16>,
    pub services: BTreeMap<u16, abi::Service>,
    pub service_ids: BTreeMap<u64, u16>,
    pub addresses: BTreeMap<IpAddr, abi::Address>,
}

/// A prefix in v4-mapped bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr128 {
    pub addr: [u8; 16],
    pub bits: u8,
}

impl From<Option<IpNet>> for Addr128 {
    fn from(net: Option<IpNet>) -> Self {
        match net {
            None => Addr128 { addr: [0; 16], bits: 0 },
            Some(IpNet::V4(net)) => {
                Addr128 { addr: net.network().to_ipv6_mapped().octets(), bits: 96 + net.prefix_len() }
            }
            Some(IpNet::V6(net)) => Addr128 { addr: net.network().octets(), bits: net.prefix_len() },
        }
    }
}

/// A flow to be steered, as [`MapImage::choose`] asks for it.
#[derive(Clone, Copy, Debug)]
pub struct FlowTuple {
    pub client: IpAddr,
    pub client_port: u16,
    pub vip: IpAddr,
    pub port: u16,
    pub l4: L4,
}

/// Why no image could be made. The maps stay as they are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many {what}: at most {max} fit; raise {flag}")]
pub struct TooMany {
    pub what: &'static str,
    pub max: u16,
    pub flag: &'static str,
}

/// The contents of the maps for `desired`, with the numbers of `before`.
pub fn compile(desired: &Desired, hops: &Hops, before: &MapImage) -> Result<MapImage, TooMany> {
    let offers = Offers::collect(desired);
    let too_many = |what, flag| move |max| TooMany { what, max, flag };

    let services = classifier::services(&offers.by_vip);
    let backend_ids = before
        .backend_ids
        .renew(offers.backends.keys().cloned())
        .map_err(too_many("backends", "--max-backends"))?;
    let service_ids = before
        .service_ids
        .renew(services.iter().map(|s| s.key))
        .map_err(too_many("services", "--max-services"))?;
    let pool_keys = services.iter().flat_map(|s| s.pools.keys().map(|source| (s.key, *source)));
    let pool_ids = before.pool_ids.renew(pool_keys).map_err(too_many("pools", "--max-pools"))?;
    let sources = offers.nat_sources(hops, &before.sources);
    let addresses: BTreeSet<IpAddr> = offers.by_vip.keys().chain(sources.values()).copied().collect();
    let address_ids =
        before.address_ids.renew(addresses).map_err(too_many("VIPs and source addresses", "--max-vips"))?;

    let mut image = MapImage {
        rows: Rows::default(),
        backend_ids,
        service_ids,
        pool_ids,
        address_ids,
        sources,
        pools: BTreeMap::new(),
        unserved: offers.unserved.clone(),
    };
    for service in &services {
        image.add_service(service, desired, before);
    }
    image.add_backends(desired, &offers, hops);
    image.add_addresses(desired, &offers, &services);
    Ok(image)
}

/// Who offers to serve what.
struct Offers<'a> {
    by_vip: BTreeMap<IpAddr, Vec<Offer<'a>>>,
    backends: BTreeMap<Backend, &'a Module>,
    unserved: Vec<String>,
}

impl<'a> Offers<'a> {
    fn collect(desired: &'a Desired) -> Self {
        let mut offers = Offers {
            by_vip: desired.all_vips().into_iter().map(|vip| (vip, Vec::new())).collect(),
            backends: BTreeMap::new(),
            unserved: Vec::new(),
        };
        for (instance_id, module) in &desired.modules {
            for (route_id, route) in &module.routes {
                offers.add(instance_id, module, route_id, route);
            }
            for (route_id, route) in &desired.operator_routes {
                if route.targets.include(route.protocol, instance_id, module.module_type) {
                    offers.add(instance_id, module, route_id, route);
                }
            }
        }
        offers
    }

    fn add(&mut self, instance_id: &str, module: &'a Module, route_id: &'a str, route: &'a Route) {
        let mut served = false;
        let mut refused = None;
        for (vip, offers) in &mut self.by_vip {
            let Some(destination_bits) = destination_bits(route, *vip) else { continue };
            if route.source.is_some_and(|source| source.addr().is_ipv4() != vip.is_ipv4()) {
                continue;
            }
            match backend_for(instance_id, module, route, *vip) {
                Ok(backend) => {
                    served = true;
                    self.backends.insert(backend.clone(), module);
                    offers.push(Offer { route_id, route, destination_bits, backend, module });
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

    /// Our own address towards each NAT backend, which it answers to: as it is now, or else as it was.
    fn nat_sources(&self, hops: &Hops, before: &BTreeMap<IpAddr, IpAddr>) -> BTreeMap<IpAddr, IpAddr> {
        let nat = self.backends.keys().filter(|b| b.mode == ForwardMode::Nat);
        let source = |addr| hops.get(&addr).map(|hop| hop.source).or_else(|| before.get(&addr).copied());
        nat.filter_map(|backend| Some((backend.addr, source(backend.addr)?))).collect()
    }
}

/// How exactly a route's destination names this VIP, in bits; `None` if it does not.
fn destination_bits(route: &Route, vip: IpAddr) -> Option<u8> {
    use crate::model::Destination::*;
    match route.destination {
        EveryVip => Some(0),
        Address(addr) => (addr == vip).then_some(if vip.is_ipv4() { 32 } else { 128 }),
        Prefix(net) => net.contains(&vip).then_some(net.prefix_len()),
    }
}

/// Where a module takes a route's packets to this VIP.
fn backend_for(
    instance_id: &str,
    module: &Module,
    route: &Route,
    vip: IpAddr,
) -> Result<Backend, &'static str> {
    let (v4, v6) = (module.data.v4.map(IpAddr::from), module.data.v6.map(IpAddr::from));
    let (same, other) = if vip.is_ipv4() { (v4, v6) } else { (v6, v4) };
    let addr = match module.mode {
        // NAT does not translate between the families.
        ForwardMode::Nat => same,
        ForwardMode::DsrL2 | ForwardMode::DsrIpip => same.or(other),
    };
    let addr = addr.ok_or("the module has no data address of the right family")?;
    let port = match module.mode {
        ForwardMode::Nat => route.listen_port.or(module.listen_port).or(route.port).unwrap_or(0),
        // DSR leaves the port alone.
        ForwardMode::DsrL2 | ForwardMode::DsrIpip => route.port.unwrap_or(0),
    };
    Ok(Backend { instance_id: instance_id.to_owned(), addr, port, mode: module.mode, snat: module.snat })
}

impl MapImage {
    pub fn empty(limits: Limits) -> Self {
        MapImage {
            rows: Rows::default(),
            backend_ids: Ids::new(limits.backends),
            service_ids: Ids::new(limits.services),
            pool_ids: Ids::new(limits.pools),
            address_ids: Ids::new(limits.addresses),
            sources: BTreeMap::new(),
            pools: BTreeMap::new(),
            unserved: Vec::new(),
        }
    }

    /// The backend that the data path would send a new flow to.
    pub fn choose(&self, flow: &FlowTuple) -> Option<&Backend> {
        let address = self.rows.addresses.get(&flow.vip)?;
        let key = abi::ServiceEntry::key(address.id, Be16::new(flow.port), flow.l4);
        let any_port = match flow.l4 {
            L4::Tcp => address.any_port.tcp,
            L4::Udp => address.any_port.udp,
        };
        let service_id = *self.rows.service_ids.get(&key).unwrap_or(&any_port);
        let service = self.rows.services.get(&service_id)?;
        let pool = if service.flags & abi::Service::BY_SOURCE != 0 {
            self.pool_by_source(service_id, flow.client.into())
        } else {
            service.pool
        };
        let hash = nlb_common::hash::flow(
            flow.client.into(),
            flow.vip.into(),
            Be16::new(flow.client_port),
            Be16::new(flow.port),
            flow.l4 as u8,
        );
        let id = self.rows.pools.get(&pool)?[nlb_common::maglev::slot(hash) as usize];
        self.backend_ids.key(id)
    }

    fn pool_by_source(&self, service: u16, client: Addr) -> u16 {
        let all = Addr128 { addr: [0; 16], bits: 0 };
        let rows = self.rows.sources.range((service, all)..).take_while(|((id, _), _)| *id == service);
        rows.filter(|((_, prefix), _)| Addr::v6(prefix.addr).shares_prefix(client, prefix.bits))
            .max_by_key(|((_, prefix), _)| prefix.bits)
            .map_or(0, |(_, pool)| *pool)
    }

    fn add_service(&mut self, service: &classifier::Service, desired: &Desired, before: &MapImage) {
        let Some(id) = self.service_ids.get(&service.key) else { return };
        let by_source = service.pools.keys().any(Option::is_some);
        let mut row = abi::Service::default();
        for (source, winners) in &service.pools {
            let Some(pool_id) = self.pool_ids.get(&(service.key, *source)) else { continue };
            let pool = Pool::new(winners, desired, |backend| self.backend_ids.get(backend).unwrap_or(0));
            let table = match before.pools.get(&pool_id) {
                Some(old) if *old == pool => before.rows.pools[&pool_id].clone(),
                _ => pool.table(),
            };
            self.rows.pools.insert(pool_id, table);
            self.pools.insert(pool_id, pool);
            if source.is_none() {
                row.pool = pool_id;
            }
            if by_source {
                self.rows.sources.insert((id, Addr128::from(*source)), pool_id);
            }
        }
        if by_source {
            row.flags |= abi::Service::BY_SOURCE;
        }
        if desired.reject {
            row.flags |= abi::Service::REJECT;
        }
        self.rows.services.insert(id, row);
    }

    fn add_backends(&mut self, desired: &Desired, offers: &Offers, hops: &Hops) {
        let in_use: BTreeSet<u16> = self.pools.values().flat_map(Pool::members_in_use).collect();
        for (id, backend) in self.backend_ids.iter() {
            let Some(module) = offers.backends.get(backend) else { continue };
            let leaving = match module.health {
                Health::Stopping => true,
                // Unless its pool fails open, in which case it is all there is.
                Health::Unhealthy => !(desired.fail_open && in_use.contains(&id)),
                _ => false,
            };
            let hop = hops.get(&backend.addr);
            let source_id = hop.and_then(|h| self.address_ids.get(&h.source)).unwrap_or(0);
            let row = backend_row(backend, self.backend_ids.generation(id), leaving, hop, source_id);
            self.rows.backends.insert(id, row);
        }
    }

    fn add_addresses(&mut self, desired: &Desired, offers: &Offers, services: &[classifier::Service]) {
        let vip_flags = if desired.drop_closed_ports {
            abi::Address::VIP | abi::Address::DROP_CLOSED
        } else {
            abi::Address::VIP
        };
        let mut flags: BTreeMap<IpAddr, u32> = BTreeMap::new();
        let marks = offers
            .by_vip
            .iter()
            .filter(|(_, offers)| !offers.is_empty())
            .map(|(vip, _)| (*vip, vip_flags))
            .chain(self.sources.values().map(|source| (*source, abi::Address::SOURCE)))
            .chain(
                offers.backends.keys().filter(|b| is_transparent(b)).map(|b| (b.addr, abi::Address::BACKEND)),
            );
        for (addr, flag) in marks {
            *flags.entry(addr).or_default() |= flag;
        }
        for (ip, flags) in flags {
            let id = self.address_ids.get(&ip).unwrap_or(0);
            let addr = Addr::from(ip);
            if flags & abi::Address::VIP != 0 {
                self.rows.vips.insert(id, addr);
            }
            self.rows.addresses.insert(ip, abi::Address { addr, flags, id, ..Default::default() });
        }
        for service in services {
            let Some(id) = self.service_ids.get(&service.key) else { continue };
            let Some(vip) = self.rows.addresses.get_mut(&service.key.vip) else { continue };
            match (service.key.port, service.key.l4) {
                (Some(port), l4) => {
                    self.rows.service_ids.insert(abi::ServiceEntry::key(vip.id, Be16::new(port), l4), id);
                }
                (None, L4::Tcp) => vip.any_port.tcp = id,
                (None, L4::Udp) => vip.any_port.udp = id,
            }
        }
    }
}

/// Whether a backend may answer clients by their own addresses.
fn is_transparent(backend: &Backend) -> bool {
    backend.mode == ForwardMode::Nat && backend.snat != Snat::Always
}

fn backend_row(
    backend: &Backend,
    generation: u8,
    leaving: bool,
    hop: Option<&Hop>,
    source_id: u16,
) -> abi::Backend {
    let mut flags = abi::Backend::PRESENT;
    if leaving {
        flags |= abi::Backend::DRAINING;
    }
    if hop.is_some() {
        flags |= abi::Backend::RESOLVED;
    }
    flags |= match backend.snat {
        Snat::Always => abi::Backend::SNAT_ALWAYS,
        Snat::OnLink => abi::Backend::SNAT_ON_LINK,
        Snat::Never => 0,
    };
    let mode = match backend.mode {
        ForwardMode::Nat => abi::Backend::NAT,
        ForwardMode::DsrL2 => abi::Backend::DSR_L2,
        ForwardMode::DsrIpip => abi::Backend::DSR_IPIP,
    };
    let mapped = if backend.addr.is_ipv4() { 96 } else { 0 };
    abi::Backend {
        addr: backend.addr.into(),
        source: hop.map_or(Addr::UNSPECIFIED, |h| h.source.into()),
        hop: hop.map_or_else(Default::default, |h| h.hop),
        port: Be16::new(backend.port),
        generation,
        mode,
        flags,
        link_prefix: mapped + hop.map_or(backend_bits(backend), |h| h.link_prefix),
        source_id,
        mtu: hop.map_or(0, |h| h.mtu),
        _pad: [0; 6],
    }
}

fn backend_bits(backend: &Backend) -> u8 {
    if backend.addr.is_ipv4() { 32 } else { 128 }
}

impl Default for MapImage {
    /// An image with room for nothing, which stands for maps that are not there.
    fn default() -> Self {
        MapImage::empty(Limits { backends: 0, services: 0, pools: 0, addresses: 0 })
    }
}
