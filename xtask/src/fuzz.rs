//! `cargo xtask fuzz`: generated input for as long as one likes, where `cargo xtask test` takes a few thousand pieces of it.

use std::time::SystemTime;

use anyhow::Result;

use crate::{command, setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    part: Part,
}

#[derive(clap::Subcommand)]
enum Part {
    /// Sequences of packets and table changes, through the XDP program and through an independent model of it
    Packets {
        /// How long to go on
        #[arg(long, default_value_t = 60)]
        seconds: u64,
        /// Where to start, as it was printed by a run that failed; random if it is not given
        #[arg(long)]
        seed: Option<u64>,
    },
}

pub fn fuzz(args: &Args) -> Result<()> {
    let Part::Packets { seconds, seed } = args.part;
    let seed = match seed {
        Some(seed) => seed,
        None => SystemTime::UNIX_EPOCH.elapsed()?.as_nanos() as u64,
    };
    setup::setup()?;
    let mut cargo = workspace::cargo("test");
    cargo.args(["--quiet", "--package", "nlb-tests", "--test", "packets"]);
    let settings = [format!("NLB_FUZZ_SECONDS={seconds}"), format!("NLB_FUZZ_SEED={seed}")];
    command::run_tests_as_root(
        &mut cargo,
        &settings,
        &["--ignored", "--nocapture", "oracle::for_as_long_as_told"],
    )
}
