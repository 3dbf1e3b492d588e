//! The data path against an independent model: sequences of packets and changes of the tables, generated from
//! a seed, go through the program and through the model. Verdict, bytes and counters have to be the same.
//!
//! docs/testing.md explains a reported difference.

mod edits;
mod fragments;
mod generate;
mod headers;
mod model;
mod quic;
mod regressions;
mod run;
mod step;
mod tc_ingress;

use std::env;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result, bail};

use generate::{change, fleet, frame};
use run::{Hook, Oracle};
use step::Step;

use crate::random::Random;

/// The number of sequences with one fleet. To change the fleet takes longer than many packets.
const SEQUENCES_A_FLEET: u32 = 25;

#[test]
fn generated_sequences_match_the_model() -> Result<()> {
    let random = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let mut oracle = Oracle::new(Hook::Xdp)?;
    for (seed, fleets) in [(1, 12), (2, 12), (random, 12)] {
        eprintln!("seed {seed}");
        for fleet in 0..fleets {
            batch(&mut oracle, seed, fleet)?;
        }
    }
    go_on_until(&mut oracle, Oracle::check_all_exits)
}

/// The program at TC ingress is the same, with fewer helpers.
#[test]
fn generated_sequences_at_tc_ingress_match_the_model() -> Result<()> {
    let random = SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64;
    let mut oracle = Oracle::new(Hook::TcIngress)?;
    for (seed, fleets) in [(1, 8), (random, 8)] {
        eprintln!("seed {seed}");
        for fleet in 0..fleets {
            batch(&mut oracle, seed, fleet)?;
        }
    }
    go_on_until(&mut oracle, |oracle| {
        oracle.met(&[
            "send forward",
            "send reply",
            "drop headroom",
            "drop no_backend",
            "drop loop",
            "drop fragment",
        ])
    })
}

/// Runs more sequences until the rarest exits were taken. The seed is fixed, so the result does not vary.
fn go_on_until(oracle: &mut Oracle, met: impl Fn(&Oracle) -> Result<()>) -> Result<()> {
    const FLEETS: std::ops::Range<u64> = 100..150;
    for fleet in FLEETS {
        if met(oracle).is_ok() {
            return Ok(());
        }
        batch(oracle, 1, fleet)?;
    }
    met(oracle)
}

#[test]
#[ignore = "runs for a given time: cargo xtask fuzz packets"]
fn generated_sequences_for_a_given_time() -> Result<()> {
    let number = |name: &str| -> Result<u64> {
        let value = env::var(name).with_context(|| format!("{name} is not set; see cargo xtask fuzz"))?;
        value.parse().with_context(|| format!("{name}={value} is not a number"))
    };
    let (seconds, seed) = (number("NLB_FUZZ_SECONDS")?, number("NLB_FUZZ_SEED")?);
    let until = Instant::now() + Duration::from_secs(seconds);
    eprintln!("seed {seed}, for {seconds} s");
    let mut oracle = Oracle::new(Hook::Xdp)?;
    let mut fleets = 0;
    while Instant::now() < until {
        batch(&mut oracle, seed, fleets)?;
        fleets += 1;
    }
    eprintln!(
        "{} sequences of {} packets in all match the model",
        fleets * u64::from(SEQUENCES_A_FLEET),
        oracle.packets()
    );
    Ok(())
}

/// Runs the sequences of one fleet. The error contains the shortest sequence that differs from the model.
fn batch(oracle: &mut Oracle, seed: u64, number: u64) -> Result<()> {
    let mut random = Random::new(Random::new(seed).word() ^ number.wrapping_mul(0x9e37_79b9));
    let fleet: Vec<Step> = fleet(&mut random).into_iter().map(Step::Change).collect();
    for _ in 0..SEQUENCES_A_FLEET {
        let mut steps = fleet.clone();
        oracle.start(&fleet)?;
        let changes = random.once_in(8);
        for _ in 0..8 + random.below(32) {
            let step = if changes && random.once_in(6) {
                Step::Change(change(&mut random))
            } else {
                frame(&mut random, oracle.model())
            };
            steps.push(step);
            if let Some(difference) = oracle.step(&steps[steps.len() - 1])? {
                let (steps, difference) = oracle.shortest(steps, difference)?;
                let lines: Vec<_> = steps.iter().map(Step::to_string).collect();
                bail!(
                    "seed {seed}: the last packet of this sequence differs from the model\n{}\n\n{difference}",
                    lines.join("\n")
                );
            }
        }
    }
    Ok(())
}
