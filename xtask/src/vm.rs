//! `cargo xtask vm`: runs a program under another kernel, in a virtual machine that ends with the program.
//!
//! The machine has no disk and no network: its root file system is an archive in memory with the kernel's
//! modules, busybox, the program, and its libraries. `cargo xtask verify` has cargo run tests by this
//! command.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::needs::Verb;
use crate::setup;

mod image;
pub mod kernel;
mod machine;
mod packages;

use kernel::Kernel;

#[derive(clap::Args)]
pub struct Args {
    /// The kernel's version
    #[arg(value_parser = kernel::find)]
    kernel: &'static Kernel,
    /// Use hardware virtualisation; the default is emulation, which works everywhere
    #[arg(long)]
    kvm: bool,
    /// Another program for the machine, at the same path; repeatable
    #[arg(long = "with", value_name = "FILE")]
    others: Vec<PathBuf>,
    /// The program, and arguments for it
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    prepare(args.kernel)?;
    let (program, arguments) = args.command.split_first().expect("clap requires at least one");
    let image = image::pack(args.kernel, &PathBuf::from(program), arguments, &args.others)?;
    match machine::run(args.kernel, &image, args.kvm)? {
        0 => Ok(()),
        status => bail!("{program} ended with status {status} on Linux {}", args.kernel.version),
    }
}

/// Fetches the files that machines with this kernel need, if they are missing.
pub fn prepare(kernel: &Kernel) -> Result<()> {
    setup::install_packages(Verb::Machine)?;
    kernel.fetch()
}
