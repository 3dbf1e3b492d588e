//! Reads the kernel's counters and flow table twice a second.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;
use nix::net::if_::if_indextoname;
use nlb_common::abi::{self, BackendStats, LimitStats};
use nlb_common::flow::{IdleTimes, WAYS};
use nlb_common::verdict;
use tokio::sync::watch;
use tracing::warn;

use super::capacities::Capacities;
use super::loader::Datapath;
use super::maps::bpf::Readings;
use crate::compile::MapImage;
use crate::model::traffic::Counts;
use crate::model::traffic::LimitCounts;
use crate::model::traffic::Traffic;
use crate::model::{Backend, L4};
use crate::reconcile::Applied;

/// Reports about flows have to be true within a second.
const READ_INTERVAL: Duration = Duration::from_millis(500);

/// Reads the kernel's counters and publishes them, until the reconciler ends.
pub async fn run(
    mut collector: Collector,
    datapath: Arc<Datapath>,
    applied: watch::Receiver<Arc<Applied>>,
    traffic: watch::Sender<Arc<Traffic>>,
) {
    let mut ticks = tokio::time::interval(READ_INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Skip);
    while applied.has_changed().is_ok() {
        ticks.tick().await;
        let image = applied.borrow().image.clone();
        let is_current = || {
            let applied = applied.borrow();
            !applied.changing && Arc::ptr_eq(&applied.image, &image)
        };
        // A scan of a million flows takes some milliseconds, during which other tasks continue.
        match tokio::task::block_in_place(|| collector.collect(&image, datapath.now()?, is_current)) {
            Ok(found) => drop(traffic.send_replace(Arc::new(found))),
            Err(error) => warn!("cannot read the data path's counters: {error:#}"),
        }
    }
}

/// After this many entries the scan yields the CPU, so that applications on the same host do not wait for all
/// of it.
const ENTRIES_AT_A_TIME: usize = 1 << 13;

pub struct Collector {
    readings: Readings,
    idle: IdleTimes,
    /// The state words of entries that were found expired, by index; 0 for all others. The data path's clock
    /// wraps around after nine hours (at 250 and 1,000 Hz); an expired entry that is then still in the table
    /// would count as young.
    expired: Vec<u64>,
    backends: BTreeMap<u16, IdOwner>,
    departed: Vec<Departed>,
    /// The counts of each rate limit at the time it got its id, by id and generation: they belong to the id's
    /// former owners.
    limit_offsets: BTreeMap<u16, (u8, LimitStats)>,
    /// The names of interfaces that packets were lost to. An interface may be gone when it is read again.
    names: BTreeMap<u32, String>,
    capacities: Capacities,
}

/// A removed backend with its last counts, which include what it counted since the last reading.
struct Departed {
    backend: Arc<Backend>,
    counts: Counts,
    /// How many more times they are published.
    remaining: u8,
}

/// Long enough for whoever reads the counts once a second.
const PUBLISHED_AFTER_REMOVAL: u8 = 5;

/// The backend that has an id, or had it last.
struct IdOwner {
    backend: Arc<Backend>,
    generation: u8,
    /// The counts when the backend got the id: counters are never reset.
    offset: BackendStats,
    /// The counts when the backend lost the id, which are the offset of the next one.
    left_at: Option<BackendStats>,
    closed_flows: u64,
}

impl Collector {
    pub fn new(readings: Readings, idle: IdleTimes) -> Self {
        let expired = vec![0; readings.flows.all().len() * WAYS];
        let capacities = Capacities::new(readings.capacities.clone());
        Collector {
            readings,
            idle,
            expired,
            backends: BTreeMap::new(),
            departed: Vec::new(),
            limit_offsets: BTreeMap::new(),
            names: BTreeMap::new(),
            capacities,
        }
    }

    pub fn readings(&self) -> &Readings {
        &self.readings
    }

    /// The counts at this tick of the data path's clock. `is_current` says whether the maps are what the
    /// image says.
    pub fn collect(
        &mut self,
        image: &MapImage,
        now: u16,
        is_current: impl Fn() -> bool,
    ) -> anyhow::Result<Traffic> {
        let counters = self.readings.counters()?;
        let exits = counters.iter().enumerate();
        let exits = exits.filter_map(|(i, count)| Some((verdict::exit_name(i as u32)?, *count))).collect();
        let mut traffic = Traffic {
            exits,
            packets_seen: counters[verdict::SEEN_COUNTER as usize],
            unrecorded: counters[verdict::UNRECORDED_COUNTER as usize],
            full: counters[verdict::FULL_COUNTER as usize],
            unasked: counters[verdict::UPCALL_LOST_COUNTER as usize],
            ..Traffic::default()
        };
        let counted =
            image.backend_ids.iter().map(|(id, backend)| Ok((id, backend, self.readings.backend(id)?)));
        let counted = counted.collect::<anyhow::Result<Vec<_>>>()?;
        for (id, owner) in self.backends.iter_mut().filter(|(id, _)| image.backend_ids.key(**id).is_none()) {
            if owner.left_at.is_none() {
                let last = self.readings.backend(*id)?;
                owner.left_at = Some(last);
                self.departed.push(owner.depart(last));
            }
        }
        // Flows are counted after the counters are read: a flow that begins in between must not look as if it
        // had ended.
        let flows = self.count_flows(image, now, is_current);
        // Collected in key order, which is much cheaper than single insertions.
        traffic.backends = counted
            .into_iter()
            .map(|(id, backend, counted)| {
                let active = flows.by_backend.get(&id).copied().unwrap_or_default();
                let counts = self.counts(id, backend, image.backend_ids.generation(id), counted, active);
                (backend.clone(), counts)
            })
            .collect();
        for departed in &mut self.departed {
            departed.remaining -= 1;
            traffic.backends.entry(departed.backend.clone()).or_insert(departed.counts);
        }
        self.departed.retain(|departed| departed.remaining > 0);
        for (id, name) in image.limit_ids.iter() {
            let counts = self.limit_counts(id, image.limit_ids.generation(id))?;
            traffic.limits.insert(name.clone(), counts);
        }
        traffic.service_flows = flows.by_service;
        traffic.lost_redirects = self.lost_redirects()?;
        Ok(traffic)
    }

    /// What a backend counted since it got its id.
    fn counts(
        &mut self,
        id: u16,
        backend: &Arc<Backend>,
        generation: u8,
        now: BackendStats,
        active: (u64, u64),
    ) -> Counts {
        let newcomer =
            |offset| IdOwner { backend: backend.clone(), generation, offset, left_at: None, closed_flows: 0 };
        let first = if generation == 0 { BackendStats::default() } else { now };
        let owner = self.backends.entry(id).or_insert_with(|| newcomer(first));
        if owner.generation != generation {
            if owner.left_at.is_none() {
                self.departed.push(owner.depart(now));
            }
            *owner = newcomer(owner.left_at.unwrap_or(now));
        }
        let own = now - owner.offset;
        let (active_flows, active_tcp_flows) = active;
        owner.closed_flows = owner.closed_flows.max(own.new_flows.saturating_sub(active_flows));
        Counts {
            new_flows: own.new_flows,
            closed_flows: owner.closed_flows,
            active_flows,
            active_tcp_flows,
            packets: own.packets,
            bytes: own.bytes,
            reply_packets: own.reply_packets,
            reply_bytes: own.reply_bytes,
            resets: own.resets,
        }
    }

    fn lost_redirects(&mut self) -> anyhow::Result<BTreeMap<(String, String), u64>> {
        let mut lost = BTreeMap::new();
        for (key, packets) in self.readings.lost_redirects()? {
            let (ifindex, error) = abi::lost_redirect_of(key);
            let name = self.names.entry(ifindex).or_insert_with(|| {
                if_indextoname(ifindex)
                    .map_or_else(|_| ifindex.to_string(), |name| name.to_string_lossy().into_owned())
            });
            let error = format!("{:?}", Errno::from_raw(error));
            *lost.entry((name.clone(), error)).or_default() += packets;
        }
        Ok(lost)
    }

    /// What a rate limit counted since it got its id.
    fn limit_counts(&mut self, id: u16, generation: u8) -> anyhow::Result<LimitCounts> {
        let now = self.readings.limit(id)?;
        let fresh = if generation == 0 { LimitStats::default() } else { now };
        let (since, offset) = self.limit_offsets.entry(id).or_insert((generation, fresh));
        if *since != generation {
            (*since, *offset) = (generation, now);
        }
        Ok(LimitCounts { passed: now.passed - offset.passed, refused: now.refused - offset.refused })
    }

    fn count_flows(&mut self, image: &MapImage, now: u16, is_current: impl Fn() -> bool) -> Flows {
        let mut flows = Flows::default();
        let mut capacities = self.capacities.begin(&image.rows.capacities);
        let entries = self.readings.flows.all().iter().flat_map(|bucket| &bucket.entries);
        for (place, (entry, expired)) in entries.zip(&mut self.expired).enumerate() {
            if place % ENTRIES_AT_A_TIME == 0 {
                std::thread::yield_now();
            }
            let Some((key, state)) = entry.snapshot() else { continue };
            if !key.is_forward() || *expired == state.word() {
                continue;
            }
            let is_expired = state.is_expired(now, &self.idle);
            if is_expired {
                *expired = state.word();
            }
            let Some(row) = image.rows.backends.get(&state.backend()) else { continue };
            if row.generation != state.generation() {
                continue;
            }
            let is_present = row.has(abi::Backend::PRESENT);
            let is_active = is_present && !state.is_closed() && !is_expired;
            if row.capacity != 0 {
                let has_ended = !is_present || is_expired;
                let settled = capacities.settle(row.capacity, entry, state, is_active, has_ended);
                if is_expired {
                    *expired = settled.word();
                }
            }
            if !is_active {
                continue;
            }
            let l4 = if key.protocol() == L4::Tcp as u8 { L4::Tcp } else { L4::Udp };
            let (all, tcp) = flows.by_backend.entry(state.backend()).or_default();
            *all += 1;
            *tcp += (l4 == L4::Tcp) as u64;
            if let Some(vip) = image.address_ids.key(key.local()) {
                *flows.by_service.entry((*vip, key.local_port().get(), l4)).or_default() += 1;
            }
        }
        capacities.end(is_current());
        flows
    }
}

impl IdOwner {
    /// The backend with its counts at its end, when all of its flows have ended for it.
    fn depart(&self, last: BackendStats) -> Departed {
        let own = last - self.offset;
        let counts = Counts {
            new_flows: own.new_flows,
            closed_flows: own.new_flows,
            active_flows: 0,
            active_tcp_flows: 0,
            packets: own.packets,
            bytes: own.bytes,
            reply_packets: own.reply_packets,
            reply_bytes: own.reply_bytes,
            resets: own.resets,
        };
        Departed { backend: self.backend.clone(), counts, remaining: PUBLISHED_AFTER_REMOVAL }
    }
}

#[derive(Default)]
struct Flows {
    /// All flows, and those of TCP.
    by_backend: BTreeMap<u16, (u64, u64)>,
    by_service: BTreeMap<(IpAddr, u16, L4), u64>,
}
