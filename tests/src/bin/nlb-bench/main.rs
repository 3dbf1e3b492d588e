//! What the NLB costs, measured. Started by `cargo xtask bench`, as root, and built with optimisation.
//!
//! Figures are for comparison within one run on one machine: nothing here passes or fails by a clock.

mod control;
mod end_to_end;
mod figures;
mod packets;

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
    /// The whole way: connections, requests, bytes, latency and small packets, beside other balancers
    EndToEnd(end_to_end::Args),
    /// One packet: the XDP program beside floors
    Packets(packets::Args),
    /// A server behind the balancers of `end-to-end`, which starts it
    #[command(hide = true)]
    Backend(end_to_end::backend::Args),
}

fn main() -> Result<()> {
    match Cli::parse().part {
        Part::Control(args) => control::run(&args),
        Part::EndToEnd(args) => end_to_end::run(&args),
        Part::Packets(args) => packets::run(&args),
        Part::Backend(args) => end_to_end::backend::run(&args),
    }
}
