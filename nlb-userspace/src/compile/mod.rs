//! Compiles the desired state to the contents of the maps: pure and deterministic.
//!
//! `compile` takes the desired state, the next hops, and the image before, from which ids and Maglev tables
//! are kept. Equal input gives an equal image.

mod ability;
mod candidates;
mod capacity;
pub(crate) mod classifier;
mod counted;
mod footprint;
pub(crate) mod ids;
mod limits;
pub(crate) mod maglev;
mod pools;
mod room;
mod rows;
mod shares;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use nlb_common::abi;
use nlb_common::net::{Addr, Be16};

use crate::model::next_hop::Hops;
use crate::model::prefix::Addr128;
use crate::model::settings::TableSizes;
use crate::model::snat::SnatAddresses;
use crate::model::{Backend, Desired, Health, L4};
use candidates::Candidates;
use classifier::FallbackOrder;
use counted::Counted;
use ids::Ids;
use limits::Limited;
use maglev::Member;
use pools::Pool;
use rows::ServiceKey;
pub use rows::{Capacity, Rows};
use rows::{backend_row, is_transparent};

use capacity::SOURCE_PREFIXES;
pub use capacity::{TooMany, fits};
pub use footprint::Footprint;
pub use limits::longest_chain;
pub(crate) use shares::is_split;

/// The contents of all maps, row by row.
#[derive(Clone, Debug, PartialEq)]
pub struct MapImage {
    pub rows: Rows,
    /// The ids of backends in the rows.
    pub backend_ids: Ids<Arc<Backend>>,
    service_ids: Ids<ServiceKey>,
    /// Ids by content: services with the same backends in the same shares have one table, and a table never
    /// changes.
    pool_ids: Ids<Pool>,
    pub address_ids: Ids<IpAddr>,
    /// The ids of enabled limits.
    pub limit_ids: Ids<String>,
    /// The ids of instances whose flows are counted against a limit.
    capacity_ids: Ids<String>,
    /// The last known source address towards each NAT backend: replies to it are expected for as long as
    /// there are flows, even while the next hop is unknown.
    sources: BTreeMap<IpAddr, IpAddr>,
    counted: Counted,
    counted_routes: u16,
    source_prefixes: u32,
    snat_addresses: SnatAddresses,
    /// Why routes get no traffic from a module: `instance/route: reason`.
    pub unserved: Vec<String>,
}

/// A flow, as [`MapImage::choose`] takes it.
#[derive(Clone, Copy, Debug)]
pub struct FlowTuple {
    pub client: IpAddr,
    pub client_port: u16,
    pub vip: IpAddr,
    pub port: u16,
    pub l4: L4,
}

/// The contents of the maps for `desired`, with ids from `before`.
pub fn compile(desired: &Desired, hops: &Hops, before: &MapImage) -> Result<MapImage, TooMany> {
    let counted = before.counted.renew(desired, before.counted_routes);
    let candidates = Candidates::collect(desired, &counted);
    let too_many = |what, flag| move |max: u16| TooMany { what, max: max.into(), flag };

    let services = classifier::services(&candidates.by_vip, desired);
    let backend_ids = before
        .backend_ids
        .renew(candidates.backends.keys().cloned())
        .map_err(too_many("backends", "--max-backends"))?;
    let service_ids = before
        .service_ids
        .renew(services.iter().map(|s| s.key))
        .map_err(too_many("services", "--max-services"))?;
    let pools: Vec<BTreeMap<Option<IpNet>, Pool>> = services
        .iter()
        .map(|service| {
            let id = |backend: &Backend| backend_ids.get(backend).unwrap_or(0);
            let pool = |order: &FallbackOrder| Pool::new(order, desired, id);
            service.pools.iter().map(|(source, order)| (*source, pool(order))).collect()
        })
        .collect();
    let pool_ids = before
        .pool_ids
        .renew(pools.iter().flat_map(BTreeMap::values).flat_map(Pool::with_fallbacks).cloned())
        .map_err(too_many("pools", "--max-pools"))?;
    let sources = candidates.nat_sources(hops, &before.sources, &before.snat_addresses);
    let addresses: BTreeSet<IpAddr> = candidates
        .by_vip
        .keys()
        .chain(sources.values())
        .copied()
        .chain(before.snat_addresses.iter())
        .collect();
    let address_ids =
        before.address_ids.renew(addresses).map_err(too_many("VIPs and source addresses", "--max-vips"))?;
    let limit_ids = before
        .limit_ids
        .renew(limits::enabled(desired).map(|(id, _)| id.clone()))
        .map_err(too_many("rate limits", "--max-rate-limits"))?;
    if classifier::source_prefixes(&services) > before.source_prefixes as usize {
        let (what, flag) = SOURCE_PREFIXES;
        return Err(TooMany { what, max: before.source_prefixes, flag });
    }
    // An instance keeps its id without a limit, too: its flows count there.
    let capacities = desired
        .modules
        .iter()
        .filter(|(id, module)| module.max_connections > 0 || before.capacity_ids.get(*id).is_some())
        .map(|(id, _)| id.clone());
    let capacity_ids = before
        .capacity_ids
        .renew(capacities)
        .map_err(too_many("instances with a limit", "--max-backends"))?;
    let limited = Limited::new(desired, &limit_ids);

    let mut image = MapImage {
        rows: Rows::default(),
        backend_ids,
        service_ids,
        pool_ids,
        address_ids,
        limit_ids,
        capacity_ids,
        sources,
        counted,
        counted_routes: before.counted_routes,
        source_prefixes: before.source_prefixes,
        snat_addresses: before.snat_addresses.clone(),
        unserved: candidates.unserved.clone(),
    };
    image.add_pools(before);
    for (service, pools) in services.iter().zip(&pools) {
        image.add_service(service, pools, desired, &limited);
    }
    if image.rows.servers.len() > usize::from(image.backend_ids.max()) {
        return Err(too_many(capacity::SERVERS, "--max-backends")(image.backend_ids.max()));
    }
    image.add_capacities(desired);
    image.add_backends(desired, &candidates, &limited, hops);
    image.add_former_backends(before);
    image.add_addresses(desired, &candidates, &services);
    limited.add_rows(&mut image.rows);
    Ok(image)
}

impl MapImage {
    pub fn empty(limits: TableSizes) -> Self {
        MapImage {
            rows: Rows::default(),
            backend_ids: Ids::new(limits.backends),
            service_ids: Ids::new(limits.services),
            pool_ids: Ids::up_to(limits.pool_numbers(), limits.pools),
            address_ids: Ids::new(limits.addresses),
            limit_ids: Ids::new(limits.rate_limits),
            capacity_ids: Ids::new(limits.backends),
            sources: BTreeMap::new(),
            counted: Counted::default(),
            counted_routes: limits.counted_routes,
            source_prefixes: limits.source_prefixes,
            snat_addresses: SnatAddresses::default(),
            unserved: Vec::new(),
        }
    }

    /// An empty image with source addresses of SNAT. They have the first ids, which the programs know as
    /// constants.
    pub fn with_snat_addresses(mut self, addresses: &SnatAddresses) -> Self {
        for addr in addresses.iter() {
            let known = self.address_ids.iter().map(|(_, known)| *known);
            // If there is no room, compiling the first image says so.
            if let Ok(ids) = self.address_ids.renew(known.chain([addr])) {
                self.address_ids = ids;
            }
        }
        self.snat_addresses = addresses.clone();
        self
    }

    /// The backend in the Maglev slot of a new flow, which it goes to unless the backend's instance is full.
    pub fn choose(&self, flow: &FlowTuple) -> Option<&Backend> {
        let (pool, hash) = self.pool_and_hash(flow)?;
        self.backend_at(pool, nlb_common::maglev::slot(hash))
    }

    /// The first pool of a new flow, and the flow's hash.
    fn pool_and_hash(&self, flow: &FlowTuple) -> Option<(u16, u64)> {
        let address = self.rows.addresses.get(&flow.vip)?;
        let key = abi::ServiceEntry::key(address.id, Be16::new(flow.port), flow.l4);
        let any_port = match flow.l4 {
            L4::Tcp => address.any_port.tcp,
            L4::Udp => address.any_port.udp,
        };
        let service_id = *self.rows.service_ids.get(&key).unwrap_or(&any_port);
        let service = self.rows.services.get(&service_id)?;
        let pool = self.pool_by_source(service_id, flow.client.into()).unwrap_or(service.pool);
        let hash = nlb_common::hash::flow(
            flow.client.into(),
            flow.vip.into(),
            Be16::new(flow.client_port),
            Be16::new(flow.port),
            flow.l4 as u8,
        );
        Some((pool, hash))
    }

    /// The backend at a place of a pool's table.
    fn backend_at(&self, pool: u16, place: u32) -> Option<&Backend> {
        let id = *self.rows.pools.get(&pool)?.get(place as usize)?;
        self.backend_ids.key(id).map(Arc::as_ref)
    }

    /// Whether packets to this port have a service, which may be one for every port.
    pub fn serves(&self, vip: IpAddr, port: u16, l4: L4) -> bool {
        let of = |port| self.service_ids.get(&ServiceKey { vip, port, l4 }).is_some();
        of(Some(port)) || of(None)
    }

    /// The number of Maglev slots by instance, over all pools but those that are only fallbacks.
    pub fn slots(&self) -> BTreeMap<&str, u64> {
        let mut slots = BTreeMap::new();
        let of_services = self.rows.services.values().map(|service| service.pool);
        let first: BTreeSet<u16> = of_services.chain(self.rows.sources.values().copied()).collect();
        let pools = self.pool_ids.iter().filter(|(id, _)| first.contains(id));
        for (backend, share) in pools.flat_map(|(_, pool)| pool.members()) {
            *slots.entry(backend.instance_id.as_str()).or_default() += u64::from(share);
        }
        slots
    }

    fn pool_by_source(&self, service: u16, client: Addr) -> Option<u16> {
        let all = Addr128 { addr: [0; 16], bits: 0 };
        let rows = self.rows.sources.range((service, all)..).take_while(|((id, _), _)| *id == service);
        rows.filter(|((_, prefix), _)| prefix.covers(client))
            .max_by_key(|((_, prefix), _)| prefix.bits)
            .map(|(_, pool)| *pool)
    }

    /// Adds the Maglev tables of pools: new ones are built, the others taken from `before`.
    fn add_pools(&mut self, before: &MapImage) {
        let mut new: BTreeMap<Vec<Member>, Vec<(u16, &Pool)>> = BTreeMap::new();
        for (id, pool) in self.pool_ids.iter() {
            match before.rows.pools.get(&id) {
                Some(table) if before.pool_ids.key(id) == Some(pool) => {
                    self.rows.pools.insert(id, table.clone());
                }
                _ => new.entry(pool.shape()).or_default().push((id, pool)),
            }
        }
        for (shape, pools) in new {
            let layout = maglev::fill(&shape);
            for (id, pool) in pools {
                let fallback = pool.fallback().and_then(|fallback| self.pool_ids.get(fallback));
                self.rows.pools.insert(id, pool.table(&layout, fallback.unwrap_or(0)));
            }
        }
    }

    /// Adds a service and its pools by source prefix; `None` stands for every other source.
    fn add_service(
        &mut self,
        service: &classifier::Service,
        pools: &BTreeMap<Option<IpNet>, Pool>,
        desired: &Desired,
        limited: &Limited,
    ) {
        let Some(id) = self.service_ids.get(&service.key) else { return };
        let by_source = service.is_by_source();
        let mut row = abi::Service { limits: limited.service(&service.key), ..Default::default() };
        for (source, pool) in pools {
            let Some(pool_id) = self.pool_ids.get(pool) else { continue };
            match source {
                None => row.pool = pool_id,
                Some(net) => drop(self.rows.sources.insert((id, Addr128::from(*net)), pool_id)),
            }
        }
        if by_source {
            row.flags |= abi::Service::BY_SOURCE;
        }
        if service.every_port {
            row.flags |= abi::Service::EVERY_PORT;
        }
        if desired.reject {
            row.flags |= abi::Service::REJECT;
        }
        let named = service.named.iter();
        let named: Vec<_> = named
            .filter_map(|(server, candidate)| Some((server, self.backend_ids.get(&candidate.backend)?)))
            .collect();
        for (server, _) in &named {
            row.flags |= abi::Service::QUIC;
            row.quic = row.quic.with(server);
        }
        // Server ids of a configuration have one length. A row of another length is not read before that
        // length changes, which would be in the middle of a plan.
        for (server, backend) in named.into_iter().filter(|(server, _)| row.quic.matches(server)) {
            self.rows.servers.insert(abi::ServerKey::new(id, server), backend);
        }
        self.rows.services.insert(id, row);
    }

    fn add_capacities(&mut self, desired: &Desired) {
        for (id, instance_id) in self.capacity_ids.iter() {
            let limit = match desired.modules.get(instance_id).map_or(0, |module| module.max_connections) {
                0 => nlb_common::capacity::UNLIMITED,
                limit => limit,
            };
            let generation = self.capacity_ids.generation(id);
            self.rows.capacities.insert(id, Capacity { limit, generation });
        }
    }

    /// Adds what is left of removed backends of instances whose flows are counted: their flows are still to
    /// be taken off the count.
    fn add_former_backends(&mut self, before: &MapImage) {
        for (id, row) in before.rows.backends.iter().filter(|(_, row)| row.capacity != 0) {
            let instance = before.capacity_ids.key(row.capacity);
            let is_counted = instance.is_some() && instance == self.capacity_ids.key(row.capacity);
            if is_counted && self.backend_ids.key(*id).is_none() {
                let (generation, capacity) = (row.generation, row.capacity);
                self.rows.backends.insert(*id, abi::Backend { generation, capacity, ..Default::default() });
            }
        }
    }

    fn add_backends(&mut self, desired: &Desired, candidates: &Candidates, limited: &Limited, hops: &Hops) {
        let in_use: BTreeSet<u16> =
            self.pool_ids.iter().flat_map(|(_, pool)| pool.members_in_use()).collect();
        let rebalanced: BTreeSet<&Arc<Backend>> = candidates
            .by_vip
            .values()
            .flatten()
            .filter(|candidate| candidate.route.rebalances_udp())
            .map(|candidate| &candidate.backend)
            .collect();
        for (id, backend) in self.backend_ids.iter() {
            let Some(module) = candidates.backends.get(backend) else { continue };
            let leaving = match module.health {
                Health::Stopping => true,
                // An unhealthy backend drains, unless its pool fails open and uses it.
                Health::Unhealthy => !(desired.fail_open && in_use.contains(&id)),
                _ => false,
            };
            let hop = hops.get(&backend.addr);
            let source_id = hop.and_then(|h| self.address_ids.get(&h.source)).unwrap_or(0);
            let limits = backend.route.as_ref().map_or(abi::Limits::NONE, |route| limited.route(&route.id));
            let mut row =
                backend_row(backend, self.backend_ids.generation(id), leaving, hop, source_id, limits);
            let mut sources = self.snat_addresses.for_backend(backend.addr).peekable();
            let is_vip = |source: IpAddr| candidates.by_vip.contains_key(&source);
            if match sources.peek() {
                Some(_) => sources.any(is_vip),
                None => hop.is_some_and(|hop| is_vip(hop.source)),
            } {
                row.flags |= abi::Backend::SOURCE_IS_VIP;
            }
            if rebalanced.contains(backend) {
                row.flags |= abi::Backend::UDP_REBALANCE;
            }
            row.capacity = self.capacity_ids.get(&backend.instance_id).unwrap_or(0);
            self.rows.backends.insert(id, row);
        }
    }

    fn add_addresses(
        &mut self,
        desired: &Desired,
        candidates: &Candidates,
        services: &[classifier::Service],
    ) {
        let mut vip_flags = abi::Address::VIP;
        if desired.drop_closed_ports {
            vip_flags |= abi::Address::DROP_CLOSED;
        }
        if desired.learn_routes {
            vip_flags |= abi::Address::UPCALL;
        }
        let mut flags: BTreeMap<IpAddr, u32> = BTreeMap::new();
        let marks = candidates
            .by_vip
            .keys()
            .map(|vip| (*vip, vip_flags))
            .chain(self.sources.values().map(|source| (*source, abi::Address::SOURCE)))
            .chain(self.snat_addresses.iter().map(|source| (source, abi::Address::SOURCE)))
            .chain(
                candidates
                    .backends
                    .keys()
                    .filter(|b| is_transparent(b))
                    .map(|b| (b.addr, abi::Address::BACKEND)),
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

impl Default for MapImage {
    /// An image without room, which stands for maps that do not exist.
    fn default() -> Self {
        MapImage::empty(TableSizes {
            backends: 0,
            services: 0,
            pools: 0,
            addresses: 0,
            rate_limits: 0,
            source_prefixes: 0,
            counted_routes: 0,
        })
    }
}
