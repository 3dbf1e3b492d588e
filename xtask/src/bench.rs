//! `cargo xtask bench`: measures the cost of the NLB on this machine. It reports figures and asserts nothing.

use anyhow::Result;

use crate::needs::Verb;
use crate::{command, setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// The part to measure, and its options: `packets --help` lists them. The default is all parts but
    /// `control`; `--compare FILE` shows what has changed since the run that wrote this file
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "PART")]
    part: Vec<String>,
}

pub fn bench(args: &Args) -> Result<()> {
    let all = args.part.first().is_none_or(|first| first.starts_with('-'));
    let other_balancers = all || args.part[0] == "end-to-end";
    setup::install_for(if other_balancers { Verb::BenchEndToEnd } else { Verb::Bench })?;
    command::run(
        workspace::cargo("build")
            .args(["--quiet", "--release", "--package", "nlb", "--package", "nlb-bench"])
            .args(["--bin", "nlb", "--bin", "nlb-bench"]),
    )?;
    command::run(command::as_root(workspace::release_dir()?.join("nlb-bench"))?.args(&args.part))
}
