//! What separates the maps as they are from the maps as they should be: an ordered list of changes.
//!
//! Make before break, in three parts. First comes what is new and what leads new flows to it; then what stays and changes;
//! then what leads flows away from what is gone, and its removal. In each part, backends come before the tables that name
//! them, tables before the services that use them, services before the VIPs that lead to them, and removals go the other way
//! round. The addresses that replies come from and to are known from the first step to the last. Before all that go rows
//! which a failed attempt left behind, that no packet reads yet and that new rows would bring to life.
//!
//! So stopping after any change leaves maps that work: a new flow goes where it would have gone before, or where it will go
//! after.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nlb_common::abi::{Address, AnyPort, ServerKey, Service};

use super::change::Change;
use crate::compile::Rows;
use crate::model::prefix::Addr128;

pub fn plan(current: &Rows, wanted: &Rows) -> Vec<Change> {
    let mut changes = Vec::new();
    let addresses = |from, to: &Addresses| (from != to).then(|| Change::ReplaceAddresses(to.clone()));
    let replies = replies_of_both(&current.addresses, &wanted.addresses);
    let old_vips = with_replies(&current.addresses, &replies);
    let new_vips = with_replies(&wanted.addresses, &replies);
    let service_ids = |from, to: &ServiceIds| (from != to).then(|| Change::ReplaceServiceIds(to.clone()));
    let all_service_ids = all_of_both(&current.service_ids, &wanted.service_ids);

    let known = |id: &u16| current.services.contains_key(id);
    let stays = |id: &u16| known(id) && wanted.services.contains_key(id);
    let (old_services, new_services): (Vec<_>, Vec<_>) =
        new_rows(&current.services, &wanted.services).partition(|(id, _)| known(id));
    let (leave_sources, other_services): (Vec<_>, Vec<_>) =
        old_services.into_iter().partition(|(id, row)| by_source(&current.services[*id]) && !by_source(row));
    let mut set_sources: Vec<_> = new_rows(&current.sources, &wanted.sources).collect();
    set_sources.sort_by_key(|((_, prefix), _)| longest_first(prefix));
    let (old_sources, new_sources): (Vec<_>, Vec<_>) =
        set_sources.into_iter().partition(|((service, _), _)| known(service));
    let is_read = |id: &u16| current.services.get(id).is_some_and(by_source);
    let (read_sources, unread_sources): (Vec<&_>, Vec<&_>) =
        gone(&current.sources, &wanted.sources).partition(|(service, _)| is_read(service));
    let (mut sources_of_old, sources_of_gone): (Vec<&_>, Vec<&_>) =
        read_sources.into_iter().partition(|(service, _)| stays(service));
    let is_met = |key: &ServerKey| {
        current.services.get(&key.service()).is_some_and(|row| row.quic.reads(&key.server()))
    };
    let (met_servers, unmet_servers): (Vec<&_>, Vec<&_>) =
        gone(&current.servers, &wanted.servers).partition(|key| is_met(key));
    let (servers_of_old, servers_of_gone): (Vec<&_>, Vec<&_>) =
        met_servers.into_iter().partition(|key| stays(&key.service()));
    let (old_servers, new_servers): (Vec<_>, Vec<_>) =
        new_rows(&current.servers, &wanted.servers).partition(|(key, _)| known(&key.service()));
    sources_of_old.sort_by_key(|(_, prefix)| shortest_first(prefix));
    let mut limited_sources: Vec<_> = new_rows(&current.limited_sources, &wanted.limited_sources).collect();
    limited_sources.sort_by_key(|(prefix, _)| longest_first(prefix));
    let mut unlimited_sources: Vec<_> = gone(&current.limited_sources, &wanted.limited_sources).collect();
    unlimited_sources.sort_by_key(|prefix| shortest_first(prefix));
    let (old_pools, new_pools): (Vec<_>, Vec<_>) =
        new_rows(&current.pools, &wanted.pools).partition(|(id, _)| current.pools.contains_key(id));

    let set_pool = |(id, table): (&u16, &Arc<[u16]>)| Change::SetPool(*id, table.clone());
    let set_service = |(id, row): (&u16, &Service)| Change::SetService(*id, *row);
    let set_source =
        |((service, prefix), pool): (&(u16, Addr128), &u16)| Change::SetSource(*service, *prefix, *pool);
    let clear_source = |(service, prefix): &(u16, Addr128)| Change::ClearSource(*service, *prefix);

    let set_server = |(key, backend): (&ServerKey, &u16)| Change::SetServer(*key, *backend);
    let clear_server = |key: &ServerKey| Change::ClearServer(*key);

    // What an attempt that failed left behind, and no packet reads yet.
    changes.extend(unread_sources.into_iter().map(clear_source));
    changes.extend(unmet_servers.into_iter().map(clear_server));

    // Rate limits, before what they are for.
    for (id, row) in new_rows(&current.limits, &wanted.limits) {
        let known = current.limits.get(id);
        changes.push(Change::SetLimit(*id, *row));
        if known.is_none_or(|known| (known.windows, known.unit) != (row.windows, row.unit)) {
            changes.push(Change::RestartLimit(*id));
        }
    }
    changes.extend(
        limited_sources.into_iter().map(|(prefix, limits)| Change::SetLimitedSource(*prefix, *limits)),
    );
    if current.common_limits != wanted.common_limits {
        changes.push(Change::SetCommonLimits(wanted.common_limits));
    }

    // What is new, and the ports that go over to it.
    changes.extend(addresses(&current.addresses, &old_vips));
    changes
        .extend(new_rows(&current.backends, &wanted.backends).map(|(id, row)| Change::SetBackend(*id, *row)));
    changes.extend(new_rows(&current.vips, &wanted.vips).map(|(id, addr)| Change::SetVip(*id, *addr)));
    changes.extend(new_servers.into_iter().map(set_server));
    changes.extend(new_pools.into_iter().map(set_pool));
    changes.extend(new_sources.into_iter().map(set_source));
    changes.extend(new_services.into_iter().map(set_service));
    changes.extend(service_ids(&current.service_ids, &all_service_ids));

    // What stays: clients that go over to the pools of new prefixes, pools that change, clients that come from prefixes
    // which are gone.
    changes.extend(old_sources.into_iter().map(set_source));
    changes.extend(old_servers.into_iter().map(set_server));
    changes.extend(other_services.into_iter().map(set_service));
    changes.extend(old_pools.into_iter().map(set_pool));
    changes.extend(leave_sources.into_iter().map(set_service));
    changes.extend(sources_of_old.into_iter().map(clear_source));
    changes.extend(servers_of_old.into_iter().map(clear_server));

    // VIPs come and go, and with them their services for every port, which ports come over to whose own service is gone.
    changes.extend(addresses(&old_vips, &new_vips));
    changes.extend(service_ids(&all_service_ids, &wanted.service_ids));
    changes.extend(addresses(&new_vips, &wanted.addresses));
    changes.extend(gone(&current.services, &wanted.services).map(|id| Change::ClearService(*id)));
    changes.extend(sources_of_gone.into_iter().map(clear_source));
    changes.extend(servers_of_gone.into_iter().map(clear_server));
    changes.extend(gone(&current.pools, &wanted.pools).map(|id| Change::ClearPool(*id)));
    changes.extend(gone(&current.backends, &wanted.backends).map(|id| Change::ClearBackend(*id)));
    changes.extend(unlimited_sources.into_iter().map(|prefix| Change::ClearLimitedSource(*prefix)));
    changes.extend(gone(&current.limits, &wanted.limits).map(|id| Change::ClearLimit(*id)));
    changes
}

/// The order in which prefixes are set: a client never meets one between that which it will come under and that which it did.
fn longest_first(prefix: &Addr128) -> Reverse<u8> {
    Reverse(prefix.bits)
}

/// The order in which prefixes are cleared, for the same reason.
fn shortest_first(prefix: &Addr128) -> u8 {
    prefix.bits
}

fn by_source(service: &Service) -> bool {
    service.flags & Service::BY_SOURCE != 0
}

type Addresses = BTreeMap<IpAddr, Address>;
type ServiceIds = BTreeMap<u64, u16>;

/// The addresses that replies come from and to, as wanted where they differ.
fn replies_of_both(current: &Addresses, wanted: &Addresses) -> Addresses {
    let rows = current.iter().chain(wanted).map(|(ip, row)| {
        let flags = row.flags & (Address::SOURCE | Address::BACKEND);
        (*ip, Address { flags, any_port: AnyPort::default(), ..*row })
    });
    rows.filter(|(_, row)| row.flags != 0).collect()
}

/// These VIPs and those addresses.
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

/// The rows of either, as wanted where they differ.
fn all_of_both(current: &ServiceIds, wanted: &ServiceIds) -> ServiceIds {
    current.iter().chain(wanted).map(|(key, id)| (*key, *id)).collect()
}

/// Rows that are missing or different.
fn new_rows<'a, K: Ord, V: PartialEq>(
    current: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = (&'a K, &'a V)> {
    wanted.iter().filter(|(key, row)| current.get(key) != Some(row))
}

fn gone<'a, K: Ord, V>(
    current: &'a BTreeMap<K, V>,
    wanted: &'a BTreeMap<K, V>,
) -> impl Iterator<Item = &'a K> {
    current.keys().filter(|key| !wanted.contains_key(key))
}
