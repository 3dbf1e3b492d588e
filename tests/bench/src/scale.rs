//! Measures growth: the kernel memory of each flow, backend, service and route, and the cost of a packet when
//! several CPUs forward at once.
//!
//! For a packet of a known flow, CPUs write nothing that they share but the flow's own time stamp, once a
//! tick (half a second). One CPU should therefore not slow another, even if both forward packets of the same
//! flows.

use std::collections::BTreeMap;
use std::fs;
use std::ops::RangeInclusive;
use std::sync::Barrier;
use std::thread;

use anyhow::{Context, Result};
use aya::programs::ProgramFd;
use nlb::datapath::loader::LoadConfig;
use nlb::model::ForwardMode;
use nlb::model::settings::TableSizes;
use nlb_common::abi::SLAB_TABLES;
use nlb_common::flow::Entry;
use nlb_common::maglev;
use nlb_common::prefix;
use nlb_testkit::cpu;
use nlb_testkit::rig::{self, Rig};
use serde::{Deserialize, Serialize};

use crate::packets::{Bursts, Case, Driver, KNOWN_AMONG_64K, MANY_ROUTES, TEN_ROUTES, Traffic};
use crate::results::{Files, change};

#[derive(clap::Args)]
pub struct Args {
    /// The number of bursts on each CPU, each of 64k flows
    #[arg(long, default_value_t = 200)]
    bursts: usize,
    #[command(flatten)]
    files: Files,
}

#[derive(Serialize, Deserialize)]
struct Figure {
    case: String,
    value: f64,
    unit: String,
}

impl Figure {
    fn new(case: String, value: f64, unit: &str) -> Figure {
        Figure { case, value, unit: unit.to_owned() }
    }

    /// The range of a single figure, whose noise is unknown and taken to be a tenth.
    fn range(&self) -> (f64, RangeInclusive<f64>) {
        (self.value, 0.95 * self.value..=1.05 * self.value)
    }
}

pub fn run(args: &Args) -> Result<()> {
    let before = args.files.before::<Figure>("scale")?.unwrap_or_default();
    let mut figures = memory()?;
    figures.extend(cores(args.bursts)?);
    for figure in &figures {
        let then = before.iter().find(|then| then.case == figure.case);
        let changed = then.map_or_else(String::new, |then| change(figure.range(), then.range()));
        println!("{:<58} {:>8.1} {}{changed}", figure.case, figure.value, figure.unit);
    }
    args.files.write("scale", &figures)
}

fn memory() -> Result<Vec<Figure>> {
    const MORE: u16 = 1 << 14;
    let each = |what: &str, bytes: f64| Figure::new(format!("memory: {what}"), bytes, "bytes");
    let sized = |load_config: &LoadConfig| memory_of(|| Rig::sized(ForwardMode::DsrIpip, load_config));
    let load_config = rig::load_config();
    let before = sized(&load_config)?;
    let more = |limits| {
        let bytes = sized(&LoadConfig { limits, ..load_config.clone() })? - before;
        anyhow::Ok(bytes / f64::from(MORE))
    };
    let limits = load_config.limits;
    let a_route = (slabs_of(&MANY_ROUTES)? - slabs_of(&TEN_ROUTES)?) / (100_000.0 - 10.0);
    Ok(vec![
        // The flow table is memory-mapped and its descriptor closed, so it is not among the maps that are
        // added up.
        each("room for one more flow", size_of::<Entry>() as f64),
        each("room for one more backend", more(TableSizes { backends: limits.backends + MORE, ..limits })?),
        each("room for one more service", more(TableSizes { services: limits.services + MORE, ..limits })?),
        each(
            "room for one more rate limit",
            more(TableSizes { rate_limits: limits.rate_limits + MORE, ..limits })?,
        ),
        each("a route by source prefix, in a table that doubles as it grows", a_route),
    ])
}

/// The memory of all maps in bytes, as the kernel counts it.
fn memory_of<T>(set_up: impl FnOnce() -> Result<T>) -> Result<f64> {
    let before = maps()?;
    let _there = set_up()?;
    let added = maps()?.into_iter().filter(|(id, _)| !before.contains_key(id));
    Ok(added.map(|(_, bytes)| bytes as f64).sum())
}

/// The maps of this process: their ids and bytes. Slabs of Maglev tables are left out, because they come and
/// go independently.
fn maps() -> Result<BTreeMap<u64, u64>> {
    let mut maps = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fdinfo")? {
        // Some maps are closed meanwhile.
        let Ok(text) = fs::read_to_string(entry?.path()) else { continue };
        let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.trim().parse().ok());
        if field("max_entries:") == Some(u64::from(SLAB_TABLES * maglev::LINES)) {
            continue;
        }
        if let (Some(id), Some(bytes)) = (field("map_id:"), field("memlock:")) {
            maps.insert(id, bytes);
        }
    }
    Ok(maps)
}

/// The bytes of the slabs that hold the source prefixes of a case. Their descriptors are closed too, so they
/// are found by their memory mappings.
fn slabs_of(case: &Case) -> Result<f64> {
    const SLAB: u64 = prefix::SLAB_BUCKETS as u64 * size_of::<prefix::Bucket>() as u64;
    let _there = case.set_up()?;
    let maps = fs::read_to_string("/proc/self/maps")?;
    let length = |line: &str| {
        let (start, end) = line.split_once(' ')?.0.split_once('-')?;
        let address = |text| u64::from_str_radix(text, 16).ok();
        address(end)?.checked_sub(address(start)?)
    };
    let slabs = maps.lines().filter(|line| line.contains("bpf-map") && length(line) == Some(SLAB));
    Ok((slabs.count() as u64 * SLAB) as f64)
}

fn cores(bursts: usize) -> Result<Vec<Figure>> {
    let mut testbed = KNOWN_AMONG_64K.set_up()?;
    let balancer = testbed.rig.balancer()?.fd()?.try_clone()?;
    let cpus = cpu::available()?;
    let mut figures = Vec::new();
    let mut alone = 0.0;
    for number in 1..=cpus.len() {
        let each = at_once(&testbed.traffic, &balancer, &cpus[..number], bursts)?;
        if number == 1 {
            alone = each;
        }
        let case = |what: &str| format!("known flow among 64k, on {number} of {} CPUs: {what}", cpus.len());
        figures.push(Figure::new(case("a packet on each"), each, "ns"));
        let together = number as f64 * alone / each;
        figures.push(Figure::new(case("packets a second"), together, "x one CPU's"));
    }
    Ok(figures)
}

/// The cost of a packet while several CPUs forward the same flows: the median of all bursts.
fn at_once(traffic: &Traffic, balancer: &ProgramFd, cpus: &[usize], bursts: usize) -> Result<f64> {
    let burst = Bursts { number: 1, runs: KNOWN_AMONG_64K.flows };
    let prepare = |cpu| {
        cpu::stay_on(cpu)?;
        let mut driver = traffic.driver()?;
        let nothing = driver.baseline("nothing")?;
        let (idle, _) = driver.time(&nothing, Bursts { number: 20, ..burst })?;
        // Brings the flows on record.
        driver.time(balancer, burst)?;
        anyhow::Ok((driver, idle))
    };
    let start = Barrier::new(cpus.len());
    let measure = |cpu| {
        let prepared = prepare(cpu);
        start.wait();
        let (mut driver, idle): (Driver, f64) = prepared?;
        (0..bursts).map(|_| Ok(driver.time(balancer, burst)?.0 - idle)).collect::<Result<Vec<_>>>()
    };
    let taken = thread::scope(|scope| {
        let workers: Vec<_> = cpus.iter().map(|cpu| scope.spawn(|| measure(*cpu))).collect();
        workers.into_iter().map(|worker| worker.join().expect("no panic")).collect::<Result<Vec<_>>>()
    });
    let mut taken = taken?.concat();
    taken.sort_by(f64::total_cmp);
    taken.get(taken.len() / 2).copied().context("no burst was asked for")
}
