//! `cargo xtask bench`: what the NLB costs, measured on this machine. Figures, not a test: nothing fails by a clock.

use anyhow::Result;

use crate::{command, setup, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// What to measure, and its options: `control --help` lists them
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, required = true, value_name = "PART")]
    part: Vec<String>,
}

pub fn bench(args: &Args) -> Result<()> {
    setup::setup()?;
    if args.part[0] == "end-to-end" {
        setup::balancers()?;
    }
    command::run(
        workspace::cargo("build")
            .args(["--quiet", "--release", "--package", "nlb", "--package", "nlb-tests"])
            .args(["--bin", "nlb", "--bin", "nlb-bench"]),
    )?;
    command::run(command::as_root(workspace::release_dir()?.join("nlb-bench"))?.args(&args.part))
}
