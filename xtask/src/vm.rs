//! `cargo xtask vm`: runs a program under another kernel, in a virtual machine that lives as long as the program.
//!
//! The machine has no disk and no network: its root file system is an archive in memory with the kernel's modules, busybox,
//! the program, and what the program needs. Cargo can be told to run tests by it, which is how `cargo xtask verify` does.

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
    /// Use hardware virtualisation; by default all is emulated, which works everywhere
    #[arg(long)]
    kvm: bool,
    /// Another program for the machine, at the same path; several may be named
    #[arg(long = "with", value_name = "FILE")]
    others: Vec<PathBuf>,
    /// The program, and arguments for it
    #[arg(last = true, required = true, value_name = "PROGRAM")]
    command: Vec<String>,
}

pub fn run(args: &Args) -> Result<()> {
    prepare(args.kernel)?;
    let (program, arguments) = args.command.split_first().expect("clap wants at least one");
    let image = image::pack(args.kernel, &PathBuf::from(program), arguments, &args.others)?;
    match machine::run(args.kernel, &image, args.kvm)? {
        0 => Ok(()),
        status => bail!("{program} ended with status {status} on Linux {}", args.kernel.version),
    }
}

/// Fetches what machines with this kernel need, unless it is there.
pub fn prepare(kernel: &Kernel) -> Result<()> {
    setup::install_packages(Verb::Machine)?;
    kernel.fetch()
}
