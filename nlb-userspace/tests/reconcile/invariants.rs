//! What must hold of the maps at any moment, for the packets that look them up.

use std::collections::BTreeSet;
use std::iter::successors;
use std::net::IpAddr;

use nlb::compile::Rows;
use nlb::model::{L4, Server};
use nlb::reconcile::change::Change;
use nlb_common::abi::{Address, Backend, ServerKey, Service, ServiceEntry};
use nlb_common::maglev::{FALLBACK, FIRST_MEMBER, SLOTS};
use nlb_common::net::{Addr, Be16};

/// Faults of these rows for packets: ids that lead nowhere.
pub fn broken(rows: &Rows) -> Vec<String> {
    let mut broken = Vec::new();
    let mut expect = |holds: bool, what: String| {
        if !holds {
            broken.push(what);
        }
    };
    let any_ports = rows.addresses.values().flat_map(|a| [a.any_port.tcp, a.any_port.udp]);
    for id in rows.service_ids.values().copied().chain(any_ports.filter(|id| *id != 0)) {
        expect(rows.services.contains_key(&id), format!("service {id} is looked up and does not exist"));
    }
    for (id, service) in &rows.services {
        let pool = service.pool;
        expect(pool == 0 || rows.pools.contains_key(&pool), format!("service {id} has no pool {pool}"));
        let by_source = rows.sources.keys().any(|(service, _)| service == id);
        expect(service.flags & Service::BY_SOURCE == 0 || by_source, format!("service {id} has no sources"));
    }
    for ((service, _), pool) in &rows.sources {
        expect(rows.pools.contains_key(pool), format!("a source of service {service} has no pool {pool}"));
    }
    for (key, id) in &rows.servers {
        let present = rows.backends.get(id).is_some_and(|backend| backend.has(Backend::PRESENT));
        expect(present, format!("{key:?} names backend {id}, which does not exist"));
    }
    for (ip, address) in &rows.addresses {
        let is_vip = address.flags & Address::VIP != 0;
        let listed = rows.vips.get(&address.id) == Some(&Addr::from(*ip));
        expect(!is_vip || listed, format!("VIP {ip} is not the VIP of its id {}", address.id));
    }
    let in_use = pools_in_use(rows);
    for (pool, table) in &rows.pools {
        expect(
            fallback(table).is_none_or(|id| rows.pools.contains_key(&id)),
            format!("pool {pool} falls back to a pool that does not exist"),
        );
        let members = table.iter().skip(FIRST_MEMBER as usize);
        let named = table.iter().take(SLOTS as usize).chain(members).collect::<BTreeSet<_>>();
        for id in named.into_iter().filter(|id| **id != 0) {
            match rows.backends.get(id).filter(|backend| backend.has(Backend::PRESENT)) {
                None => expect(false, format!("pool {pool} names backend {id}, which does not exist")),
                Some(backend) => expect(
                    !in_use.contains(pool) || replies_are_known(rows, backend),
                    format!("backend {id} gets new flows, and its replies are not recognized"),
                ),
            }
        }
    }
    broken
}

/// The rows without VIP rows of unused ids, which stay until the ids are used again.
pub fn looked_up(mut rows: Rows) -> Rows {
    let vips = rows.addresses.values().filter(|address| address.flags & Address::VIP != 0);
    let numbers: BTreeSet<u16> = vips.map(|vip| vip.id).collect();
    rows.vips.retain(|id, _| numbers.contains(id));
    rows
}

/// The pools that some packet to a VIP uses.
fn pools_in_use(rows: &Rows) -> BTreeSet<u16> {
    let vips = || rows.addresses.values().filter(|address| address.flags & Address::VIP != 0);
    let numbers: BTreeSet<u16> = vips().map(|vip| vip.id).collect();
    let own = rows.service_ids.iter().filter(|(key, _)| numbers.contains(&(**key as u16))).map(|(_, id)| *id);
    let services: BTreeSet<u16> =
        vips().flat_map(|vip| [vip.any_port.tcp, vip.any_port.udp]).chain(own).collect();
    let defaults = services.iter().filter_map(|id| rows.services.get(id)).map(|service| service.pool);
    let reads_sources =
        |id: &u16| rows.services.get(id).is_some_and(|service| service.flags & Service::BY_SOURCE != 0);
    let by_source = rows
        .sources
        .iter()
        .filter(|((id, _), _)| services.contains(id) && reads_sources(id))
        .map(|(_, pool)| *pool);
    let first = defaults.chain(by_source);
    let next = |pool: &u16| rows.pools.get(pool).and_then(|table| fallback(table));
    first.flat_map(|pool| successors(Some(pool), next)).collect()
}

/// The pool that follows when all members of a pool with this table are full.
fn fallback(table: &[u16]) -> Option<u16> {
    table.get(FALLBACK as usize).copied().filter(|pool| *pool != 0)
}

/// Whether packets from a NAT backend are recognized as replies.
fn replies_are_known(rows: &Rows, backend: &Backend) -> bool {
    if backend.mode != Backend::NAT || !backend.has(Backend::RESOLVED) {
        return true;
    }
    let has = |addr: Addr, flag: u32| {
        rows.addresses.get(&IpAddr::from(addr)).is_some_and(|address| address.flags & flag != 0)
    };
    has(backend.source, Address::SOURCE)
        && (backend.has(Backend::SNAT_ALWAYS) || has(backend.addr, Address::BACKEND))
}

/// Backends whose replies are looked up by another id of our address than they are recorded by. After a fault
/// that is possible until the next attempt: an address that was released and allocated again meanwhile has a
/// new id, and the old one is still in the maps.
pub fn misnumbered(rows: &Rows) -> Vec<u16> {
    let by_number = |backend: &Backend| {
        let source = rows.addresses.get(&IpAddr::from(backend.source));
        source.is_none_or(|source| source.id == backend.source_id)
    };
    let resolved = rows.backends.iter().filter(|(_, backend)| backend.has(Backend::RESOLVED));
    let nat = resolved.filter(|(_, backend)| backend.mode == Backend::NAT);
    nat.filter(|(_, backend)| !by_number(backend)).map(|(id, _)| *id).collect()
}

/// A change in a word, without the 65,537 slots of a table.
pub fn name(change: &Change) -> String {
    match change {
        Change::SetPool(id, _) => format!("SetPool({id})"),
        other => format!("{other:?}"),
    }
}

/// The outcome of a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Passed to the kernel: no such VIP, or no service on that port.
    Passed,
    NoBackend,
    To(IpAddr, u16, u8),
}

/// A flow as it is classified.
#[derive(Clone, Copy, Debug)]
pub struct Flow {
    pub client: IpAddr,
    pub vip: IpAddr,
    pub port: u16,
    pub l4: L4,
    /// The slot, in place of the flow's hash.
    pub slot: usize,
}

/// The outcome of a new flow with these rows.
pub fn outcome(rows: &Rows, flow: &Flow) -> Outcome {
    let Some((id, service)) = service(rows, flow) else { return Outcome::Passed };
    let by_source = service.flags & Service::BY_SOURCE != 0;
    let covering = rows
        .sources
        .iter()
        .filter(|((of, prefix), _)| by_source && *of == id && prefix.covers(flow.client.into()));
    let longest = covering.max_by_key(|((_, prefix), _)| prefix.bits);
    let pool = longest.map_or(service.pool, |(_, pool)| *pool);
    let backend = rows.pools.get(&pool).map_or(0, |table| table[flow.slot]);
    present(rows, backend).map_or(Outcome::NoBackend, to)
}

/// The outcome of a packet with a connection id that names this server; `None` if it is that of packets
/// without one.
pub fn named(rows: &Rows, flow: &Flow, server: &Server) -> Option<Outcome> {
    let (id, service) = service(rows, flow)?;
    if service.flags & Service::QUIC == 0 || service.quic.of(server.config) != u32::from(server.len) {
        return None;
    }
    let backend = rows.servers.get(&ServerKey::new(id, server))?;
    present(rows, *backend).map(to)
}

fn service<'a>(rows: &'a Rows, flow: &Flow) -> Option<(u16, &'a Service)> {
    let vip = rows.addresses.get(&flow.vip).filter(|address| address.flags & Address::VIP != 0)?;
    let own = rows.service_ids.get(&ServiceEntry::key(vip.id, Be16::new(flow.port), flow.l4));
    let any_port = match flow.l4 {
        L4::Tcp => vip.any_port.tcp,
        L4::Udp => vip.any_port.udp,
    };
    let id = own.copied().unwrap_or(any_port);
    Some((id, rows.services.get(&id)?))
}

fn present(rows: &Rows, backend: u16) -> Option<&Backend> {
    rows.backends.get(&backend).filter(|backend| backend.has(Backend::PRESENT))
}

fn to(backend: &Backend) -> Outcome {
    Outcome::To(backend.addr.into(), backend.port.get(), backend.mode)
}
