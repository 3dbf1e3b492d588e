//! `cargo xtask run`: the demo, or with `--` the daemon itself.

use std::os::unix::process::CommandExt;

use anyhow::{Context, Result};

use crate::needs::Verb;
use crate::{command, setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// End after this time (such as 10s or 2m), successfully if no request failed
    #[arg(long, value_name = "TIME")]
    duration: Option<String>,
    /// Arguments for `nlb`, which is started here instead of the demo
    #[arg(last = true, value_name = "NLB ARGUMENTS")]
    nlb: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    let mut program = if args.nlb.is_empty() { demo(args)? } else { daemon(args)? };
    // The program replaces this process, so that Ctrl-C and kill reach it directly.
    let error = program.exec();
    Err(error).context("starting the program that was built")
}

fn demo(args: &Args) -> Result<std::process::Command> {
    setup::install_for(Verb::Run)?;
    command::run(
        workspace::cargo("build")
            .args(["--quiet", "--package", "nlb", "--package", "nlb-module", "--package", "nlb-demo"])
            .args(["--bin", "nlb", "--bin", "nlb-demo", "--example", "echo"]),
    )?;
    let mut demo = command::as_root(workspace::debug_dir()?.join("nlb-demo"))?;
    if let Some(duration) = &args.duration {
        demo.args(["--duration", duration]);
    }
    Ok(demo)
}

fn daemon(args: &Args) -> Result<std::process::Command> {
    setup::install_for(Verb::Build)?;
    command::run(workspace::cargo("build").args(["--quiet", "--package", "nlb", "--bin", "nlb"]))?;
    let mut nlb = command::as_root(workspace::debug_dir()?.join("nlb"))?;
    nlb.args(&args.nlb);
    Ok(nlb)
}
