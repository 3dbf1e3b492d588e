//! Changes of the maps, as data.
//!
//! A [`MapStore`] applies a change. There are two stores: the kernel's maps, and maps in memory, for tests,
//! which fail on demand. Both apply a change completely or not at all.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use nlb_common::abi;
use nlb_common::net::Addr;

use crate::compile::{Capacity, Rows};
use crate::model::prefix::Addr128;

/// One step from the current contents of the maps towards the wanted ones.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    SetBackend(u16, abi::Backend),
    ClearBackend(u16),
    /// VIP rows are never cleared: no packet looks up the id of an unused address, and the next VIP with this
    /// id overwrites the row.
    SetVip(u16, Addr),
    /// Swaps a pool's Maglev table as a whole.
    SetPool(u16, Arc<[u16]>),
    ClearPool(u16),
    SetSource(u16, Addr128, u16),
    ClearSource(u16, Addr128),
    SetServer(abi::ServerKey, u16),
    ClearServer(abi::ServerKey),
    SetService(u16, abi::Service),
    ClearService(u16),
    /// Swaps the table of services by VIP, port and protocol as a whole.
    ReplaceServiceIds(BTreeMap<u64, u16>),
    /// Swaps the table of addresses as a whole.
    ReplaceAddresses(BTreeMap<IpAddr, abi::Address>),
    SetLimit(u16, abi::Limit),
    /// Resets the state of a limit, which depends on its former rates.
    RestartLimit(u16),
    ClearLimit(u16),
    SetCapacity(u16, Capacity),
    /// Starts the count of an instance's flows at 0: the id is another instance's now.
    RestartCapacity(u16),
    ClearCapacity(u16),
    SetLimitedSource(Addr128, abi::Limits),
    ClearLimitedSource(Addr128),
    SetCommonLimits(abi::CommonLimits),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("{map}: the kernel refused the change: {reason}")]
    Kernel { map: &'static str, reason: String },
    #[error("{map}: {entries} entries do not fit the table; remove some VIPs or services")]
    Full { map: &'static str, entries: usize },
}

pub trait MapStore: Send {
    fn apply(&mut self, change: &Change) -> Result<(), MapError>;
}

impl Change {
    /// Applies the change to rows as the maps would.
    pub fn apply_to(&self, rows: &mut Rows) {
        match self {
            Change::SetBackend(id, row) => drop(rows.backends.insert(*id, *row)),
            Change::ClearBackend(id) => drop(rows.backends.remove(id)),
            Change::SetVip(id, addr) => drop(rows.vips.insert(*id, *addr)),
            Change::SetPool(id, table) => drop(rows.pools.insert(*id, table.clone())),
            Change::ClearPool(id) => drop(rows.pools.remove(id)),
            Change::SetSource(service, prefix, pool) => drop(rows.sources.insert((*service, *prefix), *pool)),
            Change::ClearSource(service, prefix) => drop(rows.sources.remove(&(*service, *prefix))),
            Change::SetServer(key, backend) => drop(rows.servers.insert(*key, *backend)),
            Change::ClearServer(key) => drop(rows.servers.remove(key)),
            Change::SetService(id, row) => drop(rows.services.insert(*id, *row)),
            Change::ClearService(id) => drop(rows.services.remove(id)),
            Change::ReplaceServiceIds(ids) => rows.service_ids = ids.clone(),
            Change::ReplaceAddresses(addresses) => rows.addresses = addresses.clone(),
            Change::SetLimit(id, row) => drop(rows.limits.insert(*id, *row)),
            Change::RestartLimit(_) => {}
            Change::ClearLimit(id) => drop(rows.limits.remove(id)),
            Change::SetCapacity(id, row) => drop(rows.capacities.insert(*id, *row)),
            Change::RestartCapacity(_) => {}
            Change::ClearCapacity(id) => drop(rows.capacities.remove(id)),
            Change::SetLimitedSource(prefix, limits) => drop(rows.limited_sources.insert(*prefix, *limits)),
            Change::ClearLimitedSource(prefix) => drop(rows.limited_sources.remove(prefix)),
            Change::SetCommonLimits(limits) => rows.common_limits = *limits,
        }
    }
}
