//! `cargo xtask fuzz`: generated input for any length of time, where `cargo xtask test` takes a few thousand
//! inputs.

use std::fs;
use std::process::Command;
use std::time::SystemTime;

use anyhow::{Context, Result};

use crate::needs::Verb;
use crate::{command, setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Bytes derived from inputs that reached new code, through the packet logic on this host (libFuzzer)
    Parsers {
        /// How many seconds to run
        #[arg(long, default_value_t = 60)]
        seconds: u64,
    },
    /// Sequences of packets and table changes, through the XDP program and through an independent model of it
    Packets {
        /// How many seconds to run
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// The seed, as a failed run printed it [random]
        #[arg(long)]
        seed: Option<u64>,
    },
}

pub fn fuzz(args: &Args) -> Result<()> {
    match args.part {
        Part::Parsers { seconds } => {
            setup::install_for(Verb::FuzzParsers)?;
            parsers(&format!("-max_total_time={seconds}"))
        }
        Part::Packets { seconds, seed } => {
            setup::install_for(Verb::FuzzPackets)?;
            packets(seconds, seed)
        }
    }
}

/// As many inputs as fit in the time of `cargo xtask test`.
pub fn parsers_for_a_while() -> Result<()> {
    parsers("-runs=1000000")
}

/// Instruments code so that libFuzzer sees which edges an input reached, and which values were compared.
const COVERAGE: &str = "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares -Cdebug-assertions -Coverflow-checks -Ccodegen-units=1";

/// Fuzzes the parsers. The inputs that it found stay in target/fuzz/corpus for the next run.
fn parsers(until: &str) -> Result<()> {
    let fuzz = workspace::root().join("target/fuzz");
    let host = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut cargo = workspace::cargo("build");
    cargo.args(["--release", "--package", "nlb-fuzz", "--target", &host, "--target-dir"]).arg(&fuzz);
    command::run(cargo.env("RUSTFLAGS", COVERAGE))?;

    let corpus = fuzz.join("corpus");
    fs::create_dir_all(&corpus)?;
    let mut fuzzer = Command::new(fuzz.join(host).join("release/fuzz-parsers"));
    fuzzer.arg(&corpus).args([
        until,
        "-max_len=300",
        "-use_value_profile=1",
        "-verbosity=0",
        "-print_final_stats=1",
    ]);
    fuzzer.arg(format!("-artifact_prefix={}/", fuzz.display()));
    command::run(&mut fuzzer).context(
        "an input failed; its file is named above. Run the program on that file alone to reproduce the failure",
    )
}

/// Fuzzes the XDP program in the kernel.
fn packets(seconds: u64, seed: Option<u64>) -> Result<()> {
    let seed = match seed {
        Some(seed) => seed,
        None => SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64,
    };
    let mut cargo = workspace::cargo("test");
    cargo.args(["--quiet", "--package", "nlb-tests", "--test", "packets"]);
    let settings = [format!("NLB_FUZZ_SECONDS={seconds}"), format!("NLB_FUZZ_SEED={seed}")];
    command::run_tests_as_root(
        &mut cargo,
        &settings,
        &["--ignored", "--nocapture", "oracle::generated_sequences_for_a_given_time"],
    )
}
