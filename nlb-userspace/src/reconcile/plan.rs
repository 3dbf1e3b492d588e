//! The plan: the ordered changes from the current contents of the maps to the wanted ones.
//!
//! Make before break, in three phases. Additions: new rows, and the changes that send new flows to them.
//! Updates: changes of rows that stay. Removals: the changes that send flows away from rows that are to go,
//! and their removal. In each phase, backends come before the tables that name them, tables before the
//! services that use them, services before the VIPs that refer to them, and removals in the reverse order.
//! The addresses that replies come from and go to are known throughout. Two steps precede the phases: the
//! removal of rows that a failed attempt left behind (no packet reads them yet, but new rows would make
//! packets read them), and rate limits and capacities, which new rows refer to.
//!
//! So the maps work after any change of the plan: a new flow goes where it would have gone before, or where
//! it will go after.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nlb_common::abi::{Address, AnyPort, Backend, Limits, ServerKey, Service};
use nlb_common::maglev::FALLBACK;

use super::change::Change;
use crate::compile::Rows;
use crate::model::prefix::Addr128;

/// The changes that lead from the current rows to the wanted ones, in the order in which they are to be
/// applied.
pub fn plan(current: &Rows, wanted: &Rows) -> Vec<Change> {
    let diff = Diff::between(current, wanted);
    let phases = [diff.leftovers(), diff.limits(), diff.additions(), diff.updates(), diff.removals()];
    phases.into_iter().flatten().collect()
}

/// How the rows of one table differ.
struct TableDiff<'a, K, V> {
    /// Rows that are missing or have another value, with the wanted value.
    set: Vec<(&'a K, &'a V)>,
    removed: Vec<&'a K>,
}

impl<'a, K: Ord, V: PartialEq> TableDiff<'a, K, V> {
    fn between(current: &'a BTreeMap<K, V>, wanted: &'a BTreeMap<K, V>) -> Self {
        TableDiff {
            set: wanted.iter().filter(|(key, row)| current.get(key) != Some(row)).collect(),
            removed: current.keys().filter(|key| !wanted.contains_key(key)).collect(),
        }
    }
}

/// How the rows of the tables differ whose order within a phase matters.
struct Diff<'a> {
    current: &'a Rows,
    wanted: &'a Rows,
    services: TableDiff<'a, u16, Service>,
    pools: TableDiff<'a, u16, Arc<[u16]>>,
    /// By service and prefix: set from the longest to the shortest prefix, removed the other way round.
    sources: TableDiff<'a, (u16, Addr128), u16>,
    servers: TableDiff<'a, ServerKey, u16>,
    /// The current VIPs, and the addresses of replies before and after.
    addresses_before: Addresses,
    /// The wanted VIPs, and the same addresses of replies.
    addresses_after: Addresses,
    /// The ports before and after.
    all_service_ids: ServiceIds,
}

impl<'a> Diff<'a> {
    fn between(current: &'a Rows, wanted: &'a Rows) -> Self {
        let replies = replies_of_both(&current.addresses, &wanted.addresses);
        let mut sources = TableDiff::between(&current.sources, &wanted.sources);
        sources.set.sort_by_key(|((_, prefix), _)| longest_first(prefix));
        sources.removed.sort_by_key(|(_, prefix)| shortest_first(prefix));
        let mut pools = TableDiff::between(&current.pools, &wanted.pools);
        pools.set.sort_by_key(|(_, table)| fallbacks(table, wanted));
        pools.removed.sort_by_key(|id| Reverse(fallbacks(&current.pools[*id], current)));
        Diff {
            current,
            wanted,
            services: TableDiff::between(&current.services, &wanted.services),
            pools,
            sources,
            servers: TableDiff::between(&current.servers, &wanted.servers),
            addresses_before: with_replies(&current.addresses, &replies),
            addresses_after: with_replies(&wanted.addresses, &replies),
            all_service_ids: all_of_both(&current.service_ids, &wanted.service_ids),
        }
    }

    /// Removes rows that a failed attempt left behind. No packet reads them yet, but new rows would make
    /// packets read them.
    fn leftovers(&self) -> Vec<Change> {
        let sources = self.sources.removed.iter().filter(|source| !self.is_read(source));
        let servers = self.servers.removed.iter().filter(|key| !self.is_matched(key));
        sources.map(clear_source).chain(servers.map(clear_server)).collect()
    }

    /// Sets rate limits and capacities, before the rows that refer to them.
    fn limits(&self) -> Vec<Change> {
        let mut changes = Vec::new();
        for (id, row) in TableDiff::between(&self.current.limits, &self.wanted.limits).set {
            let known = self.current.limits.get(id);
            changes.push(Change::SetLimit(*id, *row));
            if known.is_none_or(|known| (known.windows, known.unit) != (row.windows, row.unit)) {
                changes.push(Change::RestartLimit(*id));
            }
        }
        for (id, row) in TableDiff::between(&self.current.capacities, &self.wanted.capacities).set {
            let known = self.current.capacities.get(id);
            if known.is_none_or(|known| known.generation != row.generation) {
                changes.push(Change::RestartCapacity(*id));
            }
            changes.push(Change::SetCapacity(*id, *row));
        }
        let mut sources = self.limited_sources().set;
        sources.sort_by_key(|(prefix, _)| longest_first(prefix));
        changes
            .extend(sources.into_iter().map(|(prefix, limits)| Change::SetLimitedSource(*prefix, *limits)));
        if self.current.common_limits != self.wanted.common_limits {
            changes.push(Change::SetCommonLimits(self.wanted.common_limits));
        }
        changes
    }

    /// Adds new rows, and sends new flows to them.
    fn additions(&self) -> Vec<Change> {
        let Diff { current, wanted, .. } = self;
        let backends = TableDiff::between(&current.backends, &wanted.backends).set;
        let backends = backends.into_iter().filter(|(_, row)| row.has(Backend::PRESENT));
        let vips = TableDiff::between(&current.vips, &wanted.vips).set;
        let servers = self.servers.set.iter().filter(|(key, _)| !self.is_known(key.service()));
        let pools = self.pools.set.iter().filter(|(id, _)| !current.pools.contains_key(id));
        let sources = self.sources.set.iter().filter(|((service, _), _)| !self.is_known(*service));
        let services = self.services.set.iter().filter(|(id, _)| !self.is_known(**id));
        let mut changes = Vec::from_iter(replace_addresses(&current.addresses, &self.addresses_before));
        changes.extend(backends.map(|(id, row)| Change::SetBackend(*id, *row)));
        changes.extend(vips.into_iter().map(|(id, addr)| Change::SetVip(*id, *addr)));
        changes.extend(servers.map(set_server));
        changes.extend(pools.map(set_pool));
        changes.extend(sources.map(set_source));
        changes.extend(services.map(set_service));
        changes.extend(replace_service_ids(&current.service_ids, &self.all_service_ids));
        changes
    }

    /// Changes rows that stay. First clients get the pools of new source prefixes, then pools change, then
    /// prefixes are removed.
    fn updates(&self) -> Vec<Change> {
        let Diff { current, .. } = self;
        let sources = self.sources.set.iter().filter(|((service, _), _)| self.is_known(*service));
        let servers = self.servers.set.iter().filter(|(key, _)| self.is_known(key.service()));
        let pools = self.pools.set.iter().filter(|(id, _)| current.pools.contains_key(id));
        let services = self.services.set.iter().filter(|(id, _)| self.is_known(**id));
        // A service that stops distinguishing clients by source does so after its pool has its new contents.
        let (last, first): (Vec<&_>, Vec<&_>) =
            services.partition(|(id, row)| is_by_source(&current.services[*id]) && !is_by_source(row));
        let removed_sources = self.sources.removed.iter().filter(|source| self.is_read(source));
        let removed_servers = self.servers.removed.iter().filter(|key| self.is_matched(key));
        let mut changes = Vec::from_iter(sources.map(set_source));
        changes.extend(servers.map(set_server));
        changes.extend(first.into_iter().map(set_service));
        changes.extend(pools.map(set_pool));
        changes.extend(last.into_iter().map(set_service));
        changes.extend(removed_sources.filter(|(service, _)| self.stays(*service)).map(clear_source));
        changes.extend(removed_servers.filter(|key| self.stays(key.service())).map(clear_server));
        changes
    }

    /// Sends flows away from rows that are to go, and removes these rows. VIPs are added and removed here,
    /// with their services for every port: those serve the ports whose own service is removed.
    fn removals(&self) -> Vec<Change> {
        let Diff { current, wanted, .. } = self;
        let sources = self.sources.removed.iter().filter(|source| self.is_read(source));
        let servers = self.servers.removed.iter().filter(|key| self.is_matched(key));
        let backends = TableDiff::between(&current.backends, &wanted.backends);
        let former = backends.set.iter().filter(|(_, row)| !row.has(Backend::PRESENT));
        let mut limited_sources = self.limited_sources().removed;
        limited_sources.sort_by_key(|prefix| shortest_first(prefix));
        let limits = TableDiff::between(&current.limits, &wanted.limits).removed;
        let capacities = TableDiff::between(&current.capacities, &wanted.capacities).removed;
        let mut changes = Vec::from_iter(replace_addresses(&self.addresses_before, &self.addresses_after));
        changes.extend(replace_service_ids(&self.all_service_ids, &wanted.service_ids));
        changes.extend(replace_addresses(&self.addresses_after, &wanted.addresses));
        changes.extend(self.services.removed.iter().map(|id| Change::ClearService(**id)));
        changes.extend(sources.filter(|(service, _)| !self.stays(*service)).map(clear_source));
        changes.extend(servers.filter(|key| !self.stays(key.service())).map(clear_server));
        changes.extend(self.pools.removed.iter().map(|id| Change::ClearPool(**id)));
        changes.extend(former.map(|(id, row)| Change::SetBackend(**id, **row)));
        changes.extend(backends.removed.into_iter().map(|id| Change::ClearBackend(*id)));
        changes.extend(limited_sources.into_iter().map(|prefix| Change::ClearLimitedSource(*prefix)));
        changes.extend(limits.into_iter().map(|id| Change::ClearLimit(*id)));
        changes.extend(capacities.into_iter().map(|id| Change::ClearCapacity(*id)));
        changes
    }

    fn limited_sources(&self) -> TableDiff<'a, Addr128, Limits> {
        TableDiff::between(&self.current.limited_sources, &self.wanted.limited_sources)
    }

    fn is_known(&self, service: u16) -> bool {
        self.current.services.contains_key(&service)
    }

    fn stays(&self, service: u16) -> bool {
        self.is_known(service) && self.wanted.services.contains_key(&service)
    }

    /// Whether packets look a source up now.
    fn is_read(&self, (service, _): &(u16, Addr128)) -> bool {
        self.current.services.get(service).is_some_and(is_by_source)
    }

    /// Whether packets can name a server now.
    fn is_matched(&self, key: &ServerKey) -> bool {
        self.current.services.get(&key.service()).is_some_and(|row| row.quic.matches(&key.server()))
    }
}

fn replace_addresses(from: &Addresses, to: &Addresses) -> Option<Change> {
    (from != to).then(|| Change::ReplaceAddresses(to.clone()))
}

fn replace_service_ids(from: &ServiceIds, to: &ServiceIds) -> Option<Change> {
    (from != to).then(|| Change::ReplaceServiceIds(to.clone()))
}

fn set_pool((id, table): &(&u16, &Arc<[u16]>)) -> Change {
    Change::SetPool(**id, Arc::clone(table))
}

fn set_service((id, row): &(&u16, &Service)) -> Change {
    Change::SetService(**id, **row)
}

fn set_source(((service, prefix), pool): &(&(u16, Addr128), &u16)) -> Change {
    Change::SetSource(*service, *prefix, **pool)
}

fn clear_source((service, prefix): &&(u16, Addr128)) -> Change {
    Change::ClearSource(*service, *prefix)
}

fn set_server((key, backend): &(&ServerKey, &u16)) -> Change {
    Change::SetServer(**key, **backend)
}

fn clear_server(key: &&ServerKey) -> Change {
    Change::ClearServer(**key)
}

/// The number of pools that flows of this one fall back to, which are set before it and removed after it.
fn fallbacks(table: &[u16], rows: &Rows) -> usize {
    let fallback = |table: &[u16]| table.get(FALLBACK as usize).and_then(|id| rows.pools.get(id));
    std::iter::successors(fallback(table), |table| fallback(table)).count()
}

/// The order in which prefixes are set: no client falls into a third prefix between its former and its new
/// one.
fn longest_first(prefix: &Addr128) -> Reverse<u8> {
    Reverse(prefix.bits)
}

/// The order in which prefixes are cleared, for the same reason.
fn shortest_first(prefix: &Addr128) -> u8 {
    prefix.bits
}

fn is_by_source(service: &Service) -> bool {
    service.flags & Service::BY_SOURCE != 0
}

type Addresses = BTreeMap<IpAddr, Address>;
type ServiceIds = BTreeMap<u64, u16>;

/// The addresses that replies come from and go to, before and after, with the wanted value if both have one.
fn replies_of_both(current: &Addresses, wanted: &Addresses) -> Addresses {
    let rows = current.iter().chain(wanted).map(|(ip, row)| {
        let flags = row.flags & (Address::SOURCE | Address::BACKEND);
        (*ip, Address { flags, any_port: AnyPort::default(), ..*row })
    });
    rows.filter(|(_, row)| row.flags != 0).collect()
}

/// The VIPs of the first, and the other addresses of the second.
fn with_replies(vips: &Addresses, replies: &Addresses) -> Addresses {
    let mut both = vips.clone();
    for (ip, row) in replies {
        match both.get_mut(ip).filter(|known| known.flags & Address::VIP != 0) {
            Some(vip) => vip.flags |= row.flags,
            None => drop(both.insert(*ip, *row)),
        }
    }
    both
}

/// The rows of both, with the wanted value if both have one.
fn all_of_both(current: &ServiceIds, wanted: &ServiceIds) -> ServiceIds {
    current.iter().chain(wanted).map(|(key, id)| (*key, *id)).collect()
}
