//! What the NLB costs, measured. Started by `cargo xtask bench`, as root, and built with optimisation.
//!
//! Figures are for comparison within one run on one machine: nothing here passes or fails by a clock.

mod control;
mod figures;
mod packets;
mod picture;
mod results;
mod scale;

use anyhow::Result;
use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "nlb-bench")]
struct Cli {
    #[command(subcommand)]
    part: Part,
}

#[derive(Subcommand)]
enum Part {
    /// The control plane: registrations, heartbeats, many routes, many services
    Control(control::Args),
    /// One packet: the XDP program beside floors
    Packets(packets::Args),
    /// Draw how costs grow, from the results of `packets`
    Picture(picture::Args),
    /// Growth: memory for each flow, backend and route, and several CPUs at once
    Scale(scale::Args),
}

fn main() -> Result<()> {
    match Cli::parse().part {
        Part::Control(args) => control::run(&args),
        Part::Packets(args) => packets::run(&args),
        Part::Picture(args) => picture::run(&args),
        Part::Scale(args) => scale::run(&args),
    }
}
