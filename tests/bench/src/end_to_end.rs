//! End-to-end measurements, from clients' sockets to backends' sockets: the NLB beside HAProxy, nginx, the
//! kernel's DNAT and its forwarding, in the same run and under the same load; and small packets beside
//! programs that do the minimum of work.
//!
//! The speed of a machine changes from minute to minute, so contenders take turns in several passes. Each
//! figure is the median of all passes.

pub mod backend;
mod baselines;
mod busy;
mod client;
mod contenders;
mod frames;
mod proxies;
mod results;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::figures::percentile;
use crate::results::Files;
use busy::{Busy, own_time};
use contenders::{Contender, Kind};
use results::{Measure, Row, Samples};

/// The section of the results.
const PART: &str = "end_to_end";

#[derive(clap::Args)]
pub struct Args {
    /// The number of passes, in each of which every contender is measured
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// The duration of each load in each pass, in seconds
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// The number of requests in each pass whose latency is measured
    #[arg(long, default_value_t = 20_000)]
    requests: u32,
    /// The number of small packets in each pass
    #[arg(long, default_value_t = 2_000_000)]
    packets: u32,
    #[command(flatten)]
    files: Files,
}

/// Puts a load on a contender, and records the results.
type Load<'a> = dyn Fn(&Contender, &mut Samples) -> Result<()> + 'a;

pub fn run(args: &Args) -> Result<()> {
    let before = args.files.before::<Row>(PART)?;
    warn_of_other_load()?;
    let contenders = Kind::ALL.map(|kind| Contender::start(kind).with_context(|| kind.name()));
    let contenders = contenders.into_iter().collect::<Result<Vec<_>>>()?;
    let length = Duration::from_secs_f64(args.seconds);
    let loads: [&Load; 4] = [
        &|contender, samples| connections(contender, length, samples),
        &|contender, samples| requests(contender, length, samples),
        &|contender, samples| downloads(contender, length, samples),
        &|contender, samples| latencies(contender, args.requests, samples),
    ];
    let mut samples = Samples::default();
    take_turns(args.passes, &loads, contenders.iter().filter(|one| one.kind.connects()), &mut samples)?;
    // Last, because the program that counts and drops frames changes how the link works while it is attached.
    let frames: [&Load; 1] = [&|contender, samples| packets(contender, args.packets, samples)];
    take_turns(args.passes, &frames, contenders.iter().filter(|one| one.kind.passes_frames()), &mut samples)?;
    samples.compare_with_none();
    let rows = samples.rows();
    args.files.write(PART, &rows)?;
    results::print(&rows, before.as_deref());
    Ok(())
}

/// Puts each load on each contender, pass by pass. The results of the first pass are discarded: it resolves
/// neighbours, fills caches and lets windows grow.
fn take_turns<'a>(
    passes: usize,
    loads: &[&Load],
    contenders: impl Iterator<Item = &'a Contender> + Clone,
    samples: &mut Samples,
) -> Result<()> {
    for pass in 0..=passes {
        for load in loads {
            for contender in contenders.clone() {
                let discarded = &mut Samples::default();
                load(contender, if pass == 0 { discarded } else { samples })
                    .with_context(|| format!("{}, pass {pass}", contender.kind.name()))?;
            }
        }
    }
    Ok(())
}

fn connections(contender: &Contender, length: Duration, samples: &mut Samples) -> Result<()> {
    let work = work(contender, |targets| client::connections(targets, length))?;
    let micros = |time: Duration| time.as_secs_f64() * 1e6 / work.done;
    samples.record(Measure::Connections, contender.kind, work.done / work.time.as_secs_f64());
    samples.record(Measure::CpuPerConnection, contender.kind, micros(work.busy));
    if let Some(own) = work.own {
        samples.record(Measure::CpuPerConnectionOwn, contender.kind, micros(own));
    }
    Ok(())
}

fn requests(contender: &Contender, length: Duration, samples: &mut Samples) -> Result<()> {
    let work = work(contender, |targets| client::requests(targets, length))?;
    samples.record(Measure::Requests, contender.kind, work.done / work.time.as_secs_f64());
    Ok(())
}

fn downloads(contender: &Contender, length: Duration, samples: &mut Samples) -> Result<()> {
    let work = work(contender, |targets| client::bytes(targets, length))?;
    let gigabits = work.done * 8.0 / 1e9;
    samples.record(Measure::Bits, contender.kind, gigabits / work.time.as_secs_f64());
    samples.record(Measure::CpuPerGigabit, contender.kind, work.busy.as_secs_f64() * 1e3 / gigabits);
    Ok(())
}

fn latencies(contender: &Contender, requests: u32, samples: &mut Samples) -> Result<()> {
    let mut all = contender.as_client(|targets| client::latencies(targets, requests))?;
    for (measure, share) in [(Measure::P50, 0.5), (Measure::P99, 0.99), (Measure::P999, 0.999)] {
        samples.record(measure, contender.kind, percentile(&mut all, share).as_secs_f64() * 1e6);
    }
    Ok(())
}

fn packets(contender: &Contender, count: u32, samples: &mut Samples) -> Result<()> {
    let rate = frames::per_second(contender, count)?;
    samples.record(Measure::Packets, contender.kind, rate / 1e3);
    samples.record(Measure::CpuPerPacket, contender.kind, 1e9 / rate);
    Ok(())
}

/// The work that was done, and its cost.
struct Work {
    done: f64,
    time: Duration,
    /// The CPU time of the whole machine.
    busy: Duration,
    /// The CPU time of the proxy's processes.
    own: Option<Duration>,
}

fn work(contender: &Contender, load: impl FnOnce(&[SocketAddr]) -> Result<u64> + Send) -> Result<Work> {
    let own = || contender.proxy.as_ref().map(own_time).transpose();
    let (before, busy, start) = (own()?, Busy::since_now()?, Instant::now());
    let done = contender.as_client(load)? as f64;
    let (time, busy, after) = (start.elapsed(), busy.time()?, own()?);
    Ok(Work { done, time, busy, own: after.zip(before).map(|(after, before)| after.saturating_sub(before)) })
}

/// CPU time is that of the whole machine, so other work would be counted too.
fn warn_of_other_load() -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(1);
    let busy = Busy::since_now()?;
    std::thread::sleep(WATCHED);
    let share = busy.time()?.as_secs_f64() / WATCHED.as_secs_f64();
    if share > 0.05 {
        println!("Other work keeps {share:.2} CPUs busy: CPU times are too high, and rates too low.");
    }
    Ok(())
}
