//! The whole way, from clients' sockets to backends': the NLB beside HAProxy, nginx, the kernel's DNAT and
//! its mere forwarding, in the same run and at the same work; and small packets beside programs that do the
//! least there is to do.
//!
//! Machines change their speed from minute to minute, so contenders take turns, in several passes: each
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

/// Its section of the results.
const PART: &str = "end_to_end";

#[derive(clap::Args)]
pub struct Args {
    /// Times that each contender is measured
    #[arg(long, default_value_t = 5)]
    passes: usize,
    /// How long each load lasts, each time
    #[arg(long, default_value_t = 1.0)]
    seconds: f64,
    /// Requests whose latency is measured, each time
    #[arg(long, default_value_t = 20_000)]
    requests: u32,
    /// Small packets, each time
    #[arg(long, default_value_t = 2_000_000)]
    packets: u32,
    #[command(flatten)]
    files: Files,
}

/// Has a contender bear a load, and records what came of it.
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
    // Last, because the program that takes frames off changes how the link works while it is attached.
    let frames: [&Load; 1] = [&|contender, samples| packets(contender, args.packets, samples)];
    take_turns(args.passes, &frames, contenders.iter().filter(|one| one.kind.passes_frames()), &mut samples)?;
    samples.compare_with_none();
    let rows = samples.rows();
    args.files.write(PART, &rows)?;
    results::print(&rows, before.as_deref());
    Ok(())
}

/// Has each contender bear each load, pass by pass. What the first pass says is forgotten: it is for
/// neighbours to be found, caches to be filled and windows to grow.
fn take_turns<'a>(
    passes: usize,
    loads: &[&Load],
    contenders: impl Iterator<Item = &'a Contender> + Clone,
    samples: &mut Samples,
) -> Result<()> {
    for pass in 0..=passes {
        for load in loads {
            for contender in contenders.clone() {
                let forgotten = &mut Samples::default();
                load(contender, if pass == 0 { forgotten } else { samples })
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

/// What was done, and what that took.
struct Work {
    done: f64,
    time: Duration,
    /// Of all CPUs.
    busy: Duration,
    /// Of the proxy's processes.
    own: Option<Duration>,
}

fn work(contender: &Contender, load: impl FnOnce(&[SocketAddr]) -> Result<u64> + Send) -> Result<Work> {
    let own = || contender.proxy.as_ref().map(own_time).transpose();
    let (before, busy, start) = (own()?, Busy::since_now()?, Instant::now());
    let done = contender.as_client(load)? as f64;
    let (time, busy, after) = (start.elapsed(), busy.time()?, own()?);
    Ok(Work { done, time, busy, own: after.zip(before).map(|(after, before)| after.saturating_sub(before)) })
}

/// All CPUs are counted, so whatever else they do is counted, too.
fn warn_of_other_load() -> Result<()> {
    const WATCHED: Duration = Duration::from_secs(1);
    let busy = Busy::since_now()?;
    std::thread::sleep(WATCHED);
    let share = busy.time()?.as_secs_f64() / WATCHED.as_secs_f64();
    if share > 0.05 {
        println!("Something else keeps {share:.2} CPUs busy: CPU times are too high, and rates too low.");
    }
    Ok(())
}
