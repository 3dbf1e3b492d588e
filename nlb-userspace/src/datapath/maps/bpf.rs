//! [`MapStore`] on the kernel's maps.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::sync::Arc;

use std::ops::Add;

use anyhow::{Context, anyhow};
use aya::Ebpf;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray, PerCpuHashMap, RingBuf};
use nlb_common::abi::{
    self, Address, Backend, BackendStats, CommonLimits, FragmentEntry, FragmentKey, LIMIT_WINDOWS, Limit,
    LimitStats, RedirectFilter, ServerKey, Service,
};
use nlb_common::capacity::{Capacity, UNLIMITED};
use nlb_common::flow::Bucket;
use nlb_common::maglev;
use nlb_common::net::{Addr, Be16};
use nlb_common::prefix::{self, Lengths, Scope, Table};
use nlb_common::verdict::COUNTERS;

use super::grace::{GracePeriods, Kernel};
use super::layout;
use super::memory::{Atomics, Elements, Shared, Words};
use super::prefixes::{Prefixes, TABLES, Tables};
use super::slabs::Slabs;
use super::swap::{SlotPool, VersionedTable};
use crate::datapath::maps::access::refused;
use crate::datapath::maps::access::take;
use crate::reconcile::change::{Change, MapError, MapStore};

/// The maps that the reconciler writes.
pub struct BpfMaps {
    backends: Array<MapData, Backend>,
    vips: Array<MapData, AddrRow>,
    pools: SlotPool,
    grace_periods: GracePeriods<Slabs<maglev::Line>>,
    prefixes: Prefixes<PrefixTables>,
    servers: HashMap<MapData, ServerKey, u32>,
    services: Array<MapData, Service>,
    service_ids: VersionedTable<abi::ServiceBucket>,
    addresses: VersionedTable<abi::AddressBucket>,
    /// The words that select the current copies of `addresses` and `services`.
    current: Words,
    limits: Array<MapData, Limit>,
    limit_clocks: Array<MapData, [u64; LIMIT_WINDOWS]>,
    common_limits: Array<MapData, CommonLimits>,
    capacities: Arc<Shared<Capacity>>,
    flows: Arc<Shared<Bucket>>,
}

/// An address as a map value: `Addr` belongs to a crate that does not depend on aya.
type AddrRow = [u64; 2];

impl BpfMaps {
    /// Takes the maps out of a loaded object.
    pub fn take(
        bpf: &mut Ebpf,
        flows: Arc<Shared<Bucket>>,
        capacities: Arc<Shared<Capacity>>,
    ) -> anyhow::Result<Self> {
        let maglev_tables = slabs(bpf, "MAGLEV_TABLES", abi::SLAB_TABLES * maglev::LINES)?;
        let mut grace_periods =
            GracePeriods::new(maglev_tables).context("starting the thread of grace periods")?;
        let pools = array(bpf, "POOLS")?;
        let words = pools.info()?.max_entries();
        let pool_words = Words::new(pools.fd().as_fd(), words)?;
        let current = array(bpf, "CURRENT_TABLES")?;
        let lengths = array(bpf, "PREFIX_LENGTHS")?;
        let prefix_slabs = slabs(bpf, "PREFIXES", prefix::SLAB_BUCKETS)?;
        let most_slabs = prefix_slabs.len() / TABLES;
        let prefix_tables = PrefixTables {
            slabs: prefix_slabs,
            lengths: Words::new(lengths.fd().as_fd(), lengths.info()?.max_entries())?,
            current: Words::new(current.fd().as_fd(), abi::CURRENT_WORDS)?,
        };
        Ok(BpfMaps {
            backends: take(bpf, "BACKENDS")?.try_into()?,
            vips: take(bpf, "VIPS")?.try_into()?,
            pools: SlotPool::new(words - 1, pool_words, &mut grace_periods)?,
            grace_periods,
            prefixes: Prefixes::new(prefix_tables, most_slabs as u16)?,
            servers: take(bpf, "QUIC_SERVERS")?.try_into()?,
            services: take(bpf, "SERVICES")?.try_into()?,
            service_ids: VersionedTable::new(
                Elements::new(
                    array(bpf, "SERVICE_IDS")?.fd().as_fd(),
                    abi::TABLE_COPIES * abi::SERVICE_BUCKETS,
                )?,
                abi::SERVICE_BUCKETS,
            ),
            addresses: VersionedTable::new(
                Elements::new(
                    array(bpf, "ADDRESSES")?.fd().as_fd(),
                    abi::TABLE_COPIES * abi::ADDRESS_BUCKETS,
                )?,
                abi::ADDRESS_BUCKETS,
            ),
            current: Words::new(current.fd().as_fd(), abi::CURRENT_WORDS)?,
            limits: take(bpf, "RATE_LIMITS")?.try_into()?,
            limit_clocks: take(bpf, "LIMIT_STATE")?.try_into()?,
            common_limits: take(bpf, "COMMON_LIMITS")?.try_into()?,
            capacities,
            flows,
        })
    }

    /// Sets a backend's row. If its instance has had no limit before, the flows that it has count before the
    /// limit holds, so that it is neither exceeded nor cuts them.
    fn set_backend(&mut self, id: u16, row: &Backend) -> Result<(), MapError> {
        let index = u32::from(id);
        let before = self.backends.get(&index, 0).map_err(refused("BACKENDS"))?;
        let count = &self.capacities.all()[usize::from(row.capacity)];
        let has_flows = before.has(Backend::PRESENT) && before.generation == row.generation;
        if row.capacity == 0 || before.capacity == row.capacity || !has_flows {
            return self.backends.set(index, row, 0).map_err(refused("BACKENDS"));
        }
        let limit = count.limit();
        count.set_limit(UNLIMITED);
        let set = self.backends.set(index, row, 0).map_err(refused("BACKENDS"));
        if set.is_ok() {
            for entry in self.flows.all().iter().flat_map(|bucket| &bucket.entries) {
                let Some((key, state)) = entry.snapshot() else { continue };
                let is_own =
                    key.is_forward() && state.backend() == id && state.generation() == row.generation;
                if is_own && !state.is_counted() && !state.is_closed() && count.add_existing() {
                    // One that changes meanwhile has a packet, which counts it.
                    let _ = count.mark(entry, state);
                }
            }
        }
        count.set_limit(limit);
        set
    }

    fn set_pool(&mut self, id: u16, table: &[u16]) -> Result<(), MapError> {
        let mut lines = vec![maglev::Line::default(); maglev::LINES as usize];
        for (line, slots) in lines.iter_mut().zip(table.chunks(maglev::SLOTS_PER_LINE as usize)) {
            line[..slots.len()].copy_from_slice(slots);
        }
        self.pools.set(id, &lines, &mut self.grace_periods)
    }

    fn replace_addresses<'a>(
        &mut self,
        rows: impl Iterator<Item = &'a Address> + Clone,
    ) -> Result<(), MapError> {
        let full = || MapError::Full { map: "ADDRESSES", entries: rows.clone().count() };
        let table = layout::addresses(rows.clone()).ok_or_else(full)?;
        let store = |first| self.current.store(abi::CURRENT_ADDRESSES, first);
        self.addresses.write(&table, &mut self.grace_periods, store)
    }

    fn replace_service_ids(&mut self, rows: &BTreeMap<u64, u16>) -> Result<(), MapError> {
        let table = layout::services(rows.iter().map(|(key, id)| (*key, *id)))
            .ok_or(MapError::Full { map: "SERVICE_IDS", entries: rows.len() })?;
        let store = |first| self.current.store(abi::CURRENT_SERVICES, first);
        self.service_ids.write(&table, &mut self.grace_periods, store)
    }
}

/// The slabs of Maglev tables.
impl Kernel for Slabs<maglev::Line> {
    type Slab = Elements<maglev::Line>;
    type Error = MapError;

    fn grace(&mut self) -> Result<(), MapError> {
        Slabs::grace(self)
    }

    fn add_slab(&mut self, number: u32) -> Result<Elements<maglev::Line>, MapError> {
        self.add(number, Elements::new)
    }
}

/// The slabs of prefix tables.
struct PrefixTables {
    slabs: Slabs<prefix::Bucket>,
    lengths: Words,
    current: Words,
}

impl Tables for PrefixTables {
    fn make(&mut self, table: Table) -> Result<Vec<Shared<prefix::Bucket>>, MapError> {
        table.numbers().map(|number| self.slabs.add(number, Shared::new)).collect()
    }

    fn switch_to(&mut self, to: Table, from: Option<Table>) {
        self.current.store(abi::CURRENT_PREFIXES, to.word());
        let Some(from) = from else { return };
        // A slab that cannot be returned now is returned when its number is used again.
        let _ =
            self.slabs.grace().and_then(|()| from.numbers().try_for_each(|n| self.slabs.release_number(n)));
    }

    fn set_lengths(&mut self, scope: Scope, lengths: Lengths) {
        self.lengths.store(scope.into(), lengths.word());
    }
}

fn slabs<T>(bpf: &mut Ebpf, name: &'static str, elements: u32) -> anyhow::Result<Slabs<T>> {
    Ok(Slabs::new(take(bpf, name)?.try_into()?, name, elements))
}

/// The flow table.
pub fn flows(bpf: &mut Ebpf) -> anyhow::Result<Arc<Shared<Bucket>>> {
    shared(bpf, "FLOWS")
}

/// The counts of instances' flows and their limits, by capacity id.
pub fn capacities(bpf: &mut Ebpf) -> anyhow::Result<Arc<Shared<Capacity>>> {
    shared(bpf, "CAPACITIES")
}

fn shared<T: Atomics>(bpf: &mut Ebpf, name: &'static str) -> anyhow::Result<Arc<Shared<T>>> {
    let map = array(bpf, name)?;
    let shared = Shared::new(map.fd().as_fd(), map.info()?.max_entries());
    Ok(Arc::new(shared.with_context(|| format!("mapping {name} into memory"))?))
}

/// An array that is read and written through shared memory.
pub(super) fn array(bpf: &mut Ebpf, name: &'static str) -> anyhow::Result<MapData> {
    match take(bpf, name)? {
        Map::Array(map) => Ok(map),
        _ => Err(anyhow!("{name} is not an array")),
    }
}

impl MapStore for BpfMaps {
    fn apply(&mut self, change: &Change) -> Result<(), MapError> {
        match change {
            Change::SetBackend(id, row) => self.set_backend(*id, row),
            Change::ClearBackend(id) => {
                self.backends.set(*id as u32, Backend::default(), 0).map_err(refused("BACKENDS"))
            }
            Change::SetVip(id, Addr { hi, lo }) => {
                self.vips.set(*id as u32, [*hi, *lo], 0).map_err(refused("VIPS"))
            }
            Change::SetPool(id, table) => self.set_pool(*id, table),
            Change::ClearPool(id) => {
                self.pools.clear(*id);
                Ok(())
            }
            Change::SetSource(service, prefix, pool) => {
                self.prefixes.set(*service, *prefix, u32::from(*pool))
            }
            Change::ClearSource(service, prefix) => {
                self.prefixes.clear(*service, *prefix);
                Ok(())
            }
            Change::SetServer(key, backend) => {
                self.servers.insert(key, *backend as u32, 0).map_err(refused("QUIC_SERVERS"))
            }
            Change::ClearServer(key) => self.servers.remove(key).map_err(refused("QUIC_SERVERS")),
            Change::SetService(id, row) => self.services.set(*id as u32, row, 0).map_err(refused("SERVICES")),
            Change::ClearService(id) => {
                self.services.set(*id as u32, Service::default(), 0).map_err(refused("SERVICES"))
            }
            Change::ReplaceServiceIds(rows) => self.replace_service_ids(rows),
            Change::ReplaceAddresses(rows) => self.replace_addresses(rows.values()),
            Change::SetLimit(id, row) => self.limits.set(*id as u32, row, 0).map_err(refused("RATE_LIMITS")),
            Change::RestartLimit(id) => {
                self.limit_clocks.set(*id as u32, [0; LIMIT_WINDOWS], 0).map_err(refused("LIMIT_STATE"))
            }
            Change::ClearLimit(id) => {
                self.limits.set(*id as u32, Limit::default(), 0).map_err(refused("RATE_LIMITS"))
            }
            Change::SetCapacity(id, row) => {
                self.capacities.all()[usize::from(*id)].set_limit(row.limit);
                Ok(())
            }
            Change::RestartCapacity(id) => {
                self.capacities.all()[usize::from(*id)].restart();
                Ok(())
            }
            // No backend refers to it any more.
            Change::ClearCapacity(_) => Ok(()),
            // The word is never `NONE`, because no limit is the head of both chains.
            Change::SetLimitedSource(prefix, limits) => {
                self.prefixes.set(prefix::LIMITED, *prefix, limits.word())
            }
            Change::ClearLimitedSource(prefix) => {
                self.prefixes.clear(prefix::LIMITED, *prefix);
                Ok(())
            }
            Change::SetCommonLimits(limits) => {
                self.common_limits.set(0, limits, 0).map_err(refused("COMMON_LIMITS"))
            }
        }
    }
}

/// The maps that user space only reads.
pub struct Readings {
    pub exits: PerCpuArray<MapData, u64>,
    pub backends: PerCpuArray<MapData, BackendStats>,
    pub limits: PerCpuArray<MapData, LimitStats>,
    lost_redirects: PerCpuHashMap<MapData, u64, u64>,
    pub flows: Arc<Shared<Bucket>>,
    pub capacities: Arc<Shared<Capacity>>,
}

impl Readings {
    pub fn take(
        bpf: &mut Ebpf,
        flows: Arc<Shared<Bucket>>,
        capacities: Arc<Shared<Capacity>>,
    ) -> anyhow::Result<Self> {
        Ok(Readings {
            exits: take(bpf, "VERDICT_STATS")?.try_into()?,
            backends: take(bpf, "BACKEND_STATS")?.try_into()?,
            limits: take(bpf, "LIMIT_STATS")?.try_into()?,
            lost_redirects: take(bpf, "LOST_REDIRECTS")?.try_into()?,
            flows,
            capacities,
        })
    }

    /// The counters, summed over the CPUs.
    pub fn counters(&self) -> anyhow::Result<Vec<u64>> {
        (0..COUNTERS).map(|index| Ok(self.exits.get(&index, 0)?.iter().sum())).collect()
    }

    /// Packets that were lost with a redirect, by [`abi::lost_redirect`].
    pub fn lost_redirects(&self) -> anyhow::Result<Vec<(u64, u64)>> {
        let rows = self.lost_redirects.iter().map(|row| row.map(|(key, cpus)| (key, cpus.iter().sum())));
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// A backend's counts, summed over the CPUs.
    pub fn backend(&self, id: u16) -> anyhow::Result<BackendStats> {
        let per_cpu = self.backends.get(&(id as u32), 0)?;
        Ok(per_cpu.iter().copied().fold(BackendStats::default(), Add::add))
    }

    /// A rate limit's counts, summed over the CPUs.
    pub fn limit(&self, id: u16) -> anyhow::Result<LimitStats> {
        let per_cpu = self.limits.get(&(id as u32), 0)?;
        Ok(per_cpu.iter().fold(LimitStats::default(), |sum, cpu| LimitStats {
            passed: sum.passed + cpu.passed,
            refused: sum.refused + cpu.refused,
        }))
    }
}

/// The FIB generation: how often the kernel's routes and neighbours have changed.
pub struct FibGeneration(Words);

impl FibGeneration {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(FibGeneration(Words::new(array(bpf, "FIB_GENERATION")?.fd().as_fd(), 1)?))
    }

    /// Invalidates the programs' next-hop cache, so that they repeat their FIB look-ups.
    pub fn count(&self) {
        self.0.increment(0);
    }
}

/// The ring buffer of punted frames.
pub fn punted(bpf: &mut Ebpf) -> anyhow::Result<RingBuf<MapData>> {
    Ok(take(bpf, "PUNTED")?.try_into()?)
}

/// Where the fragments of packets go.
pub struct FragmentPaths(HashMap<MapData, FragmentKey, FragmentEntry>);

impl FragmentPaths {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(FragmentPaths(take(bpf, "FRAGMENTS")?.try_into()?))
    }

    /// Ends the wait for a packet's first fragment, unless the program has stored where that one goes.
    pub fn end_detour(&mut self, key: &FragmentKey) {
        if self.0.get(key, 0).is_ok_and(|entry| entry.path == FragmentEntry::PUNTED) {
            let _ = self.0.remove(key);
        }
    }
}

/// What routes for every port leave to this host.
pub struct HostTraffic {
    addresses: HashMap<MapData, AddrRow, u32>,
    ports: Array<MapData, u64>,
    known: BTreeSet<IpAddr>,
}

impl HostTraffic {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(HostTraffic {
            addresses: take(bpf, "HOST_ADDRESSES")?.try_into()?,
            ports: take(bpf, "PROTECTED_PORTS")?.try_into()?,
            known: BTreeSet::new(),
        })
    }

    /// Protects these ports of the host's addresses.
    pub fn protect(&mut self, ports: impl Iterator<Item = u16>) -> anyhow::Result<()> {
        let mut words = BTreeMap::<u32, u64>::new();
        for (word, bit) in ports.map(|port| abi::port_bit(Be16::new(port))) {
            *words.entry(word).or_default() |= bit;
        }
        words
            .into_iter()
            .try_for_each(|(word, bits)| self.ports.set(word, bits, 0))
            .context("PROTECTED_PORTS")
    }

    /// Replaces the host's addresses.
    pub fn set_addresses(&mut self, addresses: BTreeSet<IpAddr>) -> anyhow::Result<()> {
        let row = |ip: &IpAddr| {
            let Addr { hi, lo } = Addr::from(*ip);
            [hi, lo]
        };
        for new in addresses.difference(&self.known) {
            self.addresses.insert(row(new), 1, 0).context("HOST_ADDRESSES")?;
        }
        for gone in self.known.difference(&addresses) {
            // It is in the map, unless an insertion failed before.
            let _ = self.addresses.remove(&row(gone));
        }
        self.known = addresses;
        Ok(())
    }
}

/// Says which failed redirects are counted, before their programs are attached.
pub(crate) fn set_redirect_filter(bpf: &mut Ebpf, filter: RedirectFilter) -> anyhow::Result<()> {
    // Taken maps are closed when they are dropped, and the programs have yet to be loaded.
    let map = bpf.map_mut("REDIRECTS_OF").context("the eBPF object has no map REDIRECTS_OF")?;
    Array::try_from(map)?.set(0, filter, 0).context("REDIRECTS_OF")
}

/// The tunnel sources that `nlb decap` trusts.
pub fn peers(bpf: &mut Ebpf) -> anyhow::Result<LpmTrie<MapData, [u8; 16], u32>> {
    Ok(take(bpf, "DECAP_PEERS")?.try_into()?)
}

/// The links that lead to this host itself or to its containers, and VLANs that end there, by
/// [`abi::local_link`].
pub struct LocalLinks(HashMap<MapData, u64, u32>);

impl LocalLinks {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(LocalLinks(take(bpf, "LOCAL_LINKS")?.try_into()?))
    }

    pub fn insert(&mut self, link: u64) -> anyhow::Result<()> {
        self.0.insert(link, 1, 0).context("LOCAL_LINKS")
    }

    /// Removes a link that may not be in the map.
    pub fn remove(&mut self, link: u64) {
        let _ = self.0.remove(&link);
    }
}
