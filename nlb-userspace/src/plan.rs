//! What separates the maps as they are from the maps as they should be: an ordered list of changes.
//!
//! Make before break: the addresses that replies will come from and to are known before any backend is used, backends
//! come before the tables that name them, tables before the services that use them, services before the VIPs that lead to
//! them; removals go the other way round. Stopping after any change leaves maps that work, if with a mixture of old and new.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nlb_common::abi::{Address, AnyPort};

use crate::compile::Rows;
use crate::maps::Change;

pub fn plan(current: &Rows, wanted: &Rows) -> Vec<Change> {
    let mut changes = Vec::new();
    let bridge = addresses_of_both(&current.addresses, &wanted.addresses);
    if current.addresses != bridge {
        changes.push(Change::ReplaceAddresses(bridge.clone()));
    }
    changes
        .extend(new_rows(&current.backends, &wanted.backends).map(|(id, row)| Change::SetBackend(*id, *row)));
    changes.extend(new_rows(&current.vips, &wanted.vips).map(|(id, addr)| Change::SetVip(*id, *addr)));
    changes.extend(
        new_rows(&current.pools, &wanted.pools).map(|(id, table)| Change::SetPool(*id, table.clone())),
    );
    let sources = new_rows(&current.sources, &wanted.sources);
    changes.extend(sources.map(|((service, prefix), pool)| Change::SetSource(*service, *prefix, *pool)));
    changes
        .extend(new_rows(&current.services, &wanted.services).map(|(id, row)| Change::SetService(*id, *row)));
    if current.service_ids != wanted.service_ids {
        changes.push(Change::ReplaceServiceIds(wanted.service_ids.clone()));
    }
    if bridge != wanted.addresses {
        changes.push(Change::ReplaceAddresses(wanted.addresses.clone()));
    }
    changes.extend(gone(&current.services, &wanted.services).map(|id| Change::ClearService(*id)));
    let sources = gone(&current.sources, &wanted.sources);
    changes.extend(sources.map(|(service, prefix)| Change::ClearSource(*service, *prefix)));
    changes.extend(gone(&current.pools, &wanted.pools).map(|id| Change::ClearPool(*id)));
    changes.extend(gone(&current.backends, &wanted.backends).map(|id| Change::ClearBackend(*id)));
    changes
}

/// The addresses that are known now, and those that replies will come from or to: all but the new VIPs, whose services are
/// not there yet.
fn addresses_of_both(
    current: &BTreeMap<IpAddr, Address>,
    wanted: &BTreeMap<IpAddr, Address>,
) -> BTreeMap<IpAddr, Address> {
    let mut both = current.clone();
    for (ip, row) in wanted {
        let replies = row.flags & (Address::SOURCE | Address::BACKEND);
        match both.get_mut(ip) {
            Some(known) => {
                known.flags |= replies;
                known.id = if known.id == 0 { row.id } else { known.id };
            }
            None if replies == 0 => {}
            None => {
                both.insert(*ip, Address { flags: replies, any_port: AnyPort::default(), ..*row });
            }
        }
    }
    both
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
