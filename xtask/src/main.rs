//! `cargo xtask`: the tasks of this repository, one command each.
//!
//! This crate has few dependencies, because it is compiled first on a fresh machine.

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};
use needs::Verb;

mod apt;
mod bench;
mod bpf_toolchain;
mod command;
mod deny;
mod fuzz;
mod hooks;
mod image;
mod needs;
mod proto;
mod run;
mod setup;
mod test;
mod tidy;
mod tools;
mod verify;
mod vm;
mod workspace;

/// Project tasks of the MarchProxy NLB
#[derive(Parser)]
#[command(bin_name = "cargo xtask", disable_version_flag = true)]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what `cargo xtask test` needs: a BPF compiler, bpf-linker, and the programs that tests start.
    /// Every other verb installs what it needs itself
    Setup,
    /// Set up, then build the daemon, the XDP programs in it, and the examples
    Build {
        /// Optimise
        #[arg(long)]
        release: bool,
    },
    /// Set up, build, and show connections being balanced between network namespaces
    #[command(
        override_usage = "cargo xtask run [--duration <TIME>]\n       cargo xtask run -- serve --iface eth0 ..."
    )]
    Run(run::Args),
    /// Set up, build with optimisation, and measure: packets, growth, and end to end beside other
    /// balancers
    Bench(bench::Args),
    /// Set up, then check and test everything; stops at the first failure
    Test(test::Args),
    /// Set up, then search for packets that the XDP program and its model treat differently: `cargo xtask
    /// fuzz packets`
    Fuzz(fuzz::Args),
    /// Set up, then load the XDP programs on kernels and run packets through them: the running kernel, or
    /// others in virtual machines
    Verify(verify::Args),
    /// Run a program in a virtual machine with another kernel
    Vm(vm::Args),
    /// Set up, then build container images of the daemon and the echo example: marchproxy/nlb,
    /// marchproxy/echo
    Image,
    /// The gRPC contract: check it, or generate clients in another language
    #[command(subcommand)]
    Proto(proto::Task),
    /// Check the repository lints: invariants that a program can check
    Tidy,
    /// Check licences, duplicate versions and sources of crates, by cargo-deny and deny.toml
    Deny,
    /// Look for known vulnerabilities of crates, by cargo-deny; needs a network
    Advisories,
    /// Install a git hook that runs `cargo xtask tidy` and `cargo fmt --all --check` before each commit
    Hooks,
}

fn main() -> ExitCode {
    let result = match Cli::parse().task {
        Task::Setup => setup::setup(),
        Task::Build { release } => build(release),
        Task::Run(args) => run::run(&args),
        Task::Bench(args) => bench::bench(&args),
        Task::Test(args) => test::test(&args),
        Task::Fuzz(args) => fuzz::fuzz(&args),
        Task::Verify(args) => verify::verify(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Image => image::image(),
        Task::Proto(task) => proto::run(&task),
        Task::Tidy => tidy::tidy(),
        Task::Deny => deny::deny(),
        Task::Advisories => deny::advisories(),
        Task::Hooks => hooks::hooks(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("\nxtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn build(release: bool) -> Result<()> {
    setup::install_for(Verb::Build)?;
    let mut cargo = workspace::cargo("build");
    cargo.args(["--bins", "--examples"]);
    if release {
        cargo.arg("--release");
    }
    command::run(&mut cargo)
}
