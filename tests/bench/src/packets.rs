//! Measures the cost of a packet: the balancer beside programs that do the minimum of work.
//!
//! Every figure is the best of several passes, and each pass measures the baseline just before the balancer.
//! The speed of a machine changes from minute to minute, so only figures of one pass are compared.

mod cases;
mod driver;
mod testbed;

use anyhow::{Context, Result, ensure};
use aya::programs::ProgramFd;
use serde::{Deserialize, Serialize};

use cases::{CASES, NEW_FLOW};
pub use cases::{Case, KNOWN_AMONG_1M, KNOWN_AMONG_16M, KNOWN_AMONG_64K, MANY_ROUTES, TEN_ROUTES};
use driver::Flows;
pub use driver::{Bursts, Driver};
use nlb_common::abi::LOOPBACK;
use nlb_testkit::cpu;
use nlb_testkit::rig::{XDP_TX, families};
pub use testbed::Traffic;
use testbed::filled;

use crate::results::{self, Files};

#[derive(clap::Args)]
pub struct Args {
    /// The number of passes, in each of which a case is measured
    #[arg(long, default_value_t = 9)]
    passes: usize,
    /// The number of packets in each pass
    #[arg(long, default_value_t = 300_000)]
    packets: u32,
    /// Measure only cases whose name contains this
    #[arg(long)]
    only: Option<String>,
    #[command(flatten)]
    files: Files,
}

/// Figures of one case, in nanoseconds and as multiples of the baseline `ipip` measured beside it.
#[derive(Clone, Serialize, Deserialize)]
pub struct Figure {
    pub case: String,
    pub nanoseconds: f64,
    ratio: f64,
    lowest_ratio: f64,
    highest_ratio: f64,
}

/// A program that does the minimum of work for a number of flows, in as much memory as a flow table of that
/// size takes. Each burst has a packet of every flow, or has new flows if they are `fresh`.
pub struct Baseline {
    pub name: &'static str,
    program: &'static str,
    flows: u32,
    room: u32,
    fresh: bool,
}

impl Baseline {
    const fn of_one(name: &'static str, program: &'static str) -> Baseline {
        Baseline { name, program, flows: 1, room: 1, fresh: false }
    }

    const fn among(name: &'static str, case: &Case) -> Baseline {
        let &Case { flows, room, fresh, .. } = case;
        let program = if fresh { "ipip_of_new_flow" } else { "ipip_of_flow" };
        Baseline { name, program, flows, room, fresh }
    }

    /// The number of cache lines: an entry of the flow table is half a line.
    fn lines(&self) -> u32 {
        self.room.div_ceil(2)
    }
}

pub const READ_AMONG_64K: Baseline =
    Baseline::among("baseline: ipip, a line read among 64k flows'", &KNOWN_AMONG_64K);
pub const READ_AMONG_1M: Baseline =
    Baseline::among("baseline: ipip, a line read among 1M flows'", &KNOWN_AMONG_1M);
pub const READ_AMONG_16M: Baseline =
    Baseline::among("baseline: ipip, a line read among 16M flows'", &KNOWN_AMONG_16M);

const BASELINES: &[Baseline] = &[
    Baseline::of_one("baseline: mac_swap", "mac_swap"),
    Baseline::of_one("baseline: look_up", "look_up"),
    Baseline::of_one("baseline: ipip", "ipip"),
    READ_AMONG_64K,
    READ_AMONG_1M,
    READ_AMONG_16M,
    Baseline::among("baseline: ipip, a line written for a new flow", &NEW_FLOW),
];

pub fn run(args: &Args) -> Result<()> {
    let cpus = cpu::available()?;
    cpu::stay_on(*cpus.last().context("no CPU to run on")?)?;
    let before = args.files.before::<Figure>("packets")?;
    println!("{:<46} {:>7} {:>7} {:>13} {:>6} {:>9}", "case", "ns", "x ipip", "spread", "goal", "Katran");
    let mut figures: Vec<Figure> = Vec::new();
    let wanted = |name: &str| args.only.as_deref().is_none_or(|part| name.contains(part));
    for baseline in BASELINES.iter().filter(|baseline| baseline.flows == 1 || wanted(baseline.name)) {
        figures.push(measure_baseline(baseline, args).with_context(|| baseline.name)?);
        print(&figures, None, before.as_deref());
    }
    for case in CASES.iter().filter(|case| wanted(case.name)) {
        figures.push(measure(case, args).with_context(|| case.name)?);
        print(&figures, Some(case), before.as_deref());
    }
    args.files.write("packets", &figures)
}

fn measure_baseline(baseline: &Baseline, args: &Args) -> Result<Figure> {
    let mut ipip = ipip()?;
    let [v4, _] = families();
    let frame = filled(v4.ack()).bytes();
    let mut own = Driver::new(&frame, Flows::V4, baseline.flows, LOOPBACK, baseline.lines())?;
    let measured = own.baseline(baseline.program)?;
    let bursts = bursts(args, baseline.flows, baseline.fresh);
    let (_, action) = own.time(&measured, bursts)?;
    ensure!(action == XDP_TX, "the program answered {action}, not {XDP_TX}");
    let passes = 0..passes(args, baseline.flows);
    let samples = passes.map(|_| sample(&mut ipip, &mut own, &measured, args.packets, bursts));
    Ok(summary(baseline.name, &samples.collect::<Result<Vec<_>>>()?))
}

fn measure(case: &Case, args: &Args) -> Result<Figure> {
    let mut testbed = case.set_up()?;
    let mut ipip = ipip()?;
    let mut driver = testbed.traffic.driver()?;
    let balancer = testbed.rig.balancer()?.fd()?.try_clone()?;
    let bursts = bursts(args, case.flows, case.fresh);
    // Records the flows.
    let (_, action) = driver.time(&balancer, bursts)?;
    ensure!(action == case.action, "the program answered {action}, not {}", case.action);
    let mut samples = Vec::new();
    for _ in 0..passes(args, case.flows) {
        if case.fresh {
            testbed.rig.forget_flows();
        }
        samples.push(sample(&mut ipip, &mut driver, &balancer, args.packets, bursts)?);
    }
    Ok(summary(case.name, &samples))
}

/// Bursts of every flow, or of new flows each.
fn bursts(args: &Args, flows: u32, fresh: bool) -> Bursts {
    Bursts::of(args.packets, if fresh { 1 } else { flows })
}

/// The number of passes, which is smaller where each takes long.
fn passes(args: &Args, flows: u32) -> usize {
    if flows > 1 << 20 { args.passes.div_ceil(3) } else { args.passes }
}

/// A driver for the baseline `ipip`, with a packet of a known flow.
fn ipip() -> Result<Driver> {
    let [v4, _] = families();
    Driver::new(&filled(v4.ack()).bytes(), Flows::V4, 1, LOOPBACK, 1)
}

/// The results of one pass in nanoseconds a packet, the drivers' own cost included.
#[derive(Clone, Copy)]
struct Sample {
    baseline_idle: f64,
    ipip: f64,
    idle: f64,
    measured: f64,
}

/// Measures a program behind its own driver, and the baseline `ipip` just before it.
fn sample(
    baseline: &mut Driver,
    driver: &mut Driver,
    measured: &ProgramFd,
    packets: u32,
    bursts: Bursts,
) -> Result<Sample> {
    let (nothing, ipip) = (baseline.baseline("nothing")?, baseline.baseline("ipip")?);
    let of_one = Bursts::of(packets, 1);
    let (baseline_idle, _) = baseline.time(&nothing, of_one)?;
    let (ipip, _) = baseline.time(&ipip, of_one)?;
    let nothing = driver.baseline("nothing")?;
    let (idle, _) = driver.time(&nothing, bursts)?;
    let (measured, _) = driver.time(measured, bursts)?;
    Ok(Sample { baseline_idle, ipip, idle, measured })
}

fn summary(case: &str, samples: &[Sample]) -> Figure {
    let (nanoseconds, ratio) = best(samples);
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

/// The program's nanoseconds, and their ratio to the baseline's, from the best pass of each: a disturbance
/// only makes a pass slower.
fn best(samples: &[Sample]) -> (f64, f64) {
    let least = |of: fn(&Sample) -> f64| samples.iter().map(of).fold(f64::INFINITY, f64::min);
    let measured = least(|sample| sample.measured) - least(|sample| sample.idle);
    let baseline = least(|sample| sample.ipip) - least(|sample| sample.baseline_idle);
    // The kernel reports whole nanoseconds, so a disturbed baseline may be 0.
    (measured, measured / baseline.max(1.0))
}

/// Prints the last figure.
fn print(figures: &[Figure], case: Option<&Case>, before: Option<&[Figure]>) {
    let (figure, others) = figures.split_last().expect("one was just made");
    let goal = case.and_then(|case| case.goal);
    let most = goal.and_then(|goal| {
        // The bound is a multiple of another case's cost, if this run measured that case.
        let basis = goal.of.map(|of| others.iter().find(|other| other.case == of));
        Some(goal.most * basis.map_or(Some(1.0), |basis| Some(basis?.ratio))?)
    });
    let katran = goal.map_or("", |goal| goal.katran);
    let mark = if most.is_some_and(|most| figure.ratio > most) { " over" } else { "" };
    println!(
        "{:<46} {:>7.1} {:>7.2} {:>6.2}-{:<6.2} {:>6} {katran:>9}{mark}{}",
        figure.case,
        figure.nanoseconds,
        figure.ratio,
        figure.lowest_ratio,
        figure.highest_ratio,
        most.map_or_else(String::new, |most| format!("{most:.1}")),
        before.map_or_else(String::new, |before| changed(figure, before))
    );
}

/// The change of the ratio since an earlier run, if the spreads do not overlap.
fn changed(now: &Figure, before: &[Figure]) -> String {
    let Some(then) = before.iter().find(|then| then.case == now.case) else { return "  new".to_owned() };
    let range = |figure: &Figure| figure.lowest_ratio..=figure.highest_ratio;
    results::change((now.ratio, range(now)), (then.ratio, range(then)))
}
