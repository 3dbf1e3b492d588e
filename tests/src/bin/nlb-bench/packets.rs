//! What a packet costs: the balancer beside programs that do the least that there is to do.
//!
//! Every figure is the best of several passes, and in each pass the floor is measured just before the balancer: machines
//! change their speed from minute to minute, so only what was measured together is compared.

mod cases;
mod driver;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use serde::{Deserialize, Serialize};

use cases::{CASES, Case, filled};
use driver::{BURSTS, Client, Driver};
use nlb_common::abi::LOOPBACK;
use nlb_tests::cpu;
use nlb_tests::rig::families;

#[derive(clap::Args)]
pub struct Args {
    /// Times that each case is measured
    #[arg(long, default_value_t = 9)]
    passes: usize,
    /// Packets each time
    #[arg(long, default_value_t = 300_000)]
    packets: u32,
    /// Only cases whose name contains this
    #[arg(long)]
    only: Option<String>,
    /// Where the figures are written
    #[arg(long, default_value = "bench/results.json")]
    results: PathBuf,
    /// Figures of an earlier run, to show what has changed beyond noise
    #[arg(long)]
    compare: Option<PathBuf>,
}

/// Figures of one case, in nanoseconds and as multiples of the floor `ipip` measured beside it.
#[derive(Clone, Serialize, Deserialize)]
struct Figure {
    case: String,
    nanoseconds: f64,
    ratio: f64,
    lowest_ratio: f64,
    highest_ratio: f64,
}

pub fn run(args: &Args) -> Result<()> {
    let cpus = cpu::available()?;
    cpu::stay_on(*cpus.last().context("no CPU to run on")?)?;
    let before = args.compare.as_ref().map(read).transpose()?;
    println!("{:<44} {:>7} {:>7} {:>13} {:>6} {:>9}", "case", "ns", "x ipip", "spread", "goal", "Katran");
    let mut figures = Vec::new();
    for name in ["mac_swap", "look_up", "ipip"] {
        let mut floor = floor()?;
        let measured = floor.floor(name)?;
        let samples = (0..args.passes).map(|_| sample(&mut floor, None, &measured, args.packets));
        figures.push(summary(&format!("floor: {name}"), samples.collect::<Result<Vec<_>>>()?));
        print(figures.last().expect("just pushed"), None, before.as_deref());
    }
    let wanted = |case: &&Case| args.only.as_deref().is_none_or(|part| case.name.contains(part));
    for case in CASES.iter().filter(wanted) {
        figures.push(measure(case, args).with_context(|| case.name)?);
        print(figures.last().expect("just pushed"), Some(case), before.as_deref());
    }
    if let Some(dir) = args.results.parent() {
        fs::create_dir_all(dir)?;
    }
    fs::write(&args.results, serde_json::to_string_pretty(&figures)? + "\n")
        .with_context(|| format!("writing {}", args.results.display()))
}

fn measure(case: &Case, args: &Args) -> Result<Figure> {
    let mut scene = case.set_up()?;
    let mut floor = floor()?;
    let mut driver = Driver::new(&scene.frame, scene.client, case.flows, scene.ifindex)?;
    let balancer = scene.rig.balancer()?.fd()?.try_clone()?;
    // Each burst meets every flow, as traffic would: between bursts, others use the caches.
    let packets = if case.fresh { args.packets } else { args.packets.max(BURSTS * case.flows) };
    // Brings the flows on record.
    let (_, action) = driver.time(&balancer, packets)?;
    ensure!(action == case.action, "the program answered {action}, not {}", case.action);
    let mut samples = Vec::new();
    for _ in 0..args.passes {
        if case.fresh {
            scene.rig.forget_flows();
        }
        samples.push(sample(&mut floor, Some(&mut driver), &balancer, packets)?);
    }
    Ok(summary(case.name, samples))
}

/// A driver for the floors, with a known flow's packet.
fn floor() -> Result<Driver> {
    let [v4, _] = families();
    Driver::new(&filled(v4.ack()).bytes(), Client::V4, 1, LOOPBACK)
}

/// What one pass measured, in nanoseconds a packet, the drivers' own cost among it.
#[derive(Clone, Copy)]
struct Sample {
    floor_idle: f64,
    ipip: f64,
    idle: f64,
    measured: f64,
}

/// A program in front of its own driver, or the floors', and the floor `ipip` right before.
fn sample(
    floor: &mut Driver,
    own: Option<&mut Driver>,
    measured: &aya::programs::ProgramFd,
    packets: u32,
) -> Result<Sample> {
    let (nothing, ipip) = (floor.floor("nothing")?, floor.floor("ipip")?);
    let (floor_idle, _) = floor.time(&nothing, packets)?;
    let (ipip, _) = floor.time(&ipip, packets)?;
    let driver = own.unwrap_or(floor);
    let nothing = driver.floor("nothing")?;
    let (idle, _) = driver.time(&nothing, packets)?;
    let (measured, _) = driver.time(measured, packets)?;
    Ok(Sample { floor_idle, ipip, idle, measured })
}

fn summary(case: &str, samples: Vec<Sample>) -> Figure {
    let (nanoseconds, ratio) = best(&samples);
    let parts = samples.len().div_ceil(3).max(1);
    let ratios: Vec<f64> = samples.chunks(parts).map(|part| best(part).1).collect();
    Figure {
        case: case.to_owned(),
        nanoseconds,
        ratio,
        lowest_ratio: ratios.iter().copied().fold(ratio, f64::min),
        highest_ratio: ratios.iter().copied().fold(ratio, f64::max),
    }
}

/// Nanoseconds of the program, and as a multiple of the floor's, by the best pass of each: what disturbs one makes it slower.
fn best(samples: &[Sample]) -> (f64, f64) {
    let least = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(f64::INFINITY, f64::min);
    let measured = least(|sample| sample.measured) - least(|sample| sample.idle);
    let floor = least(|sample| sample.ipip) - least(|sample| sample.floor_idle);
    // Whole nanoseconds are what the kernel tells; a floor of none is a disturbed one.
    (measured, measured / floor.max(1.0))
}

fn print(figure: &Figure, case: Option<&Case>, before: Option<&[Figure]>) {
    let goal = case.and_then(|case| case.goal);
    let (most, peer) = goal.map_or(Default::default(), |goal| (format!("{:.1}", goal.most), goal.peer));
    let mark = if goal.is_some_and(|goal| figure.ratio > goal.most) { " over" } else { "" };
    println!(
        "{:<44} {:>7.1} {:>7.2} {:>6.2}-{:<6.2} {most:>6} {peer:>9}{mark}{}",
        figure.case,
        figure.nanoseconds,
        figure.ratio,
        figure.lowest_ratio,
        figure.highest_ratio,
        before.map_or_else(String::new, |before| changed(figure, before))
    );
}

/// How the ratio has changed since an earlier run, if the spreads do not meet.
fn changed(now: &Figure, before: &[Figure]) -> String {
    let Some(then) = before.iter().find(|then| then.case == now.case) else { return "  new".to_owned() };
    if now.lowest_ratio <= then.highest_ratio && then.lowest_ratio <= now.highest_ratio {
        return String::new();
    }
    format!("  {:+.0} %", 100.0 * (now.ratio / then.ratio - 1.0))
}

fn read(file: &PathBuf) -> Result<Vec<Figure>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no file of results", file.display()))
}
