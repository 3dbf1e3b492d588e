//! Measures the cost of the NLB. `cargo xtask bench` builds this program with optimisation and runs it as
//! root.
//!
//! Figures are for comparison within one run on one machine. No result depends on a clock.

mod baselines;
mod control;
mod end_to_end;
mod figures;
mod packets;
mod picture;
mod results;
mod scale;

use std::env;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use clap::{CommandFactory, Parser, Subcommand};
use results::Files;

/// Measure the cost of the NLB; without a part: packets, scale and end-to-end, one after the other
#[derive(Parser)]
#[command(name = "nlb-bench", args_conflicts_with_subcommands = true, verbatim_doc_comment)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    files: Files,
}

#[derive(Subcommand)]
enum Part {
    /// Measure one packet: the XDP program beside baselines
    Packets(packets::Args),
    /// Measure growth: memory for each flow, backend and route, and several CPUs at once
    Scale(scale::Args),
    /// Measure end to end: connections, requests, bytes, latency and small packets, beside other balancers
    EndToEnd(end_to_end::Args),
    /// Measure the control plane: registrations, heartbeats, many routes, many services
    Control(control::Args),
    /// Draw the costs by flows and by routes, from the results of `packets`
    Picture(picture::Args),
    /// Serve as a backend of `end-to-end`, which starts it
    #[command(hide = true)]
    Backend(end_to_end::backend::Args),
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    match cli.part {
        None => all(&cli.files),
        Some(Part::Packets(args)) => packets::run(&args),
        Some(Part::Scale(args)) => scale::run(&args),
        Some(Part::EndToEnd(args)) => end_to_end::run(&args),
        Some(Part::Control(args)) => control::run(&args),
        Some(Part::Picture(args)) => picture::run(&args),
        Some(Part::Backend(args)) => end_to_end::backend::run(&args),
    }
}

/// Runs each part in a process of its own, because parts bind their threads to CPUs and namespaces.
fn all(files: &Files) -> Result<()> {
    let program = env::current_exe().context("finding the path of this program")?;
    for part in ["packets", "scale", "end-to-end"] {
        let about = Cli::command().find_subcommand(part).and_then(|part| part.get_about().cloned());
        println!("\n== {part}. {}\n", about.unwrap_or_default());
        let status = Command::new(&program).arg(part).args(files.options()).status()?;
        ensure!(status.success(), "{part} failed: {status}");
    }
    Ok(())
}
