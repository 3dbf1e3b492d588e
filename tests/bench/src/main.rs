//! What the NLB costs, measured. Started by `cargo xtask bench`, as root, and built with optimisation.
//!
//! Figures are for comparison within one run on one machine: nothing here passes or fails by a clock.

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

/// Without a part: packets, scale and end-to-end, one after the other
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
    /// One packet: the XDP program beside baselines
    Packets(packets::Args),
    /// Growth: memory for each flow, backend and route, and several CPUs at once
    Scale(scale::Args),
    /// The whole way: connections, requests, bytes, latency and small packets, beside other balancers
    EndToEnd(end_to_end::Args),
    /// The control plane: registrations, heartbeats, many routes, many services
    Control(control::Args),
    /// Draw how costs grow, from the results of `packets`
    Picture(picture::Args),
    /// A server behind the balancers of `end-to-end`, which starts it
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

/// Each in a process of its own: they move to CPUs and namespaces that others should not start in.
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
