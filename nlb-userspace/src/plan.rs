//! What separates the maps as they are from the maps as they should be: an ordered list of changes.
//!
//! Make before break: backends come before the tables that name them, tables before the services that use them, services
//! before the addresses that lead to them; removals go the other way round. Stopping after any change leaves maps that
//! work, if with a mixture of old and new.

use std::collections::BTreeMap;

use crate::compile::Rows;
use crate::maps::Change;

pub fn plan(current: &Rows, wanted: &Rows) -> Vec<Change> {
    let mut changes = Vec::new();
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
    if current.addresses != wanted.addresses {
        changes.push(Change::ReplaceAddresses(wanted.addresses.clone()));
    }
    changes.extend(gone(&current.services, &wanted.services).map(|id| Change::ClearService(*id)));
    let sources = gone(&current.sources, &wanted.sources);
    changes.extend(sources.map(|(service, prefix)| Change::ClearSource(*service, *prefix)));
    changes.extend(gone(&current.pools, &wanted.pools).map(|id| Change::ClearPool(*id)));
    changes.extend(gone(&current.backends, &wanted.backends).map(|id| Change::ClearBackend(*id)));
    changes
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
