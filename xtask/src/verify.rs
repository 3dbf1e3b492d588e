//! `cargo xtask verify`: checks on one kernel after the other that it accepts the programs, and that packets
//! are treated as specified.

use std::env;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::needs::Verb;
use crate::vm::kernel::{self, Kernel};
use crate::{command, setup, vm, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// A kernel to boot in a virtual machine, instead of the running one; repeatable
    #[arg(long, value_name = "VERSION", value_parser = kernel::find)]
    kernel: Vec<&'static Kernel>,
    /// The running kernel and all others
    #[arg(long, conflicts_with = "kernel")]
    all: bool,
    /// Only this step: programs, packets, tunnels, peer or interfaces
    #[arg(long, value_name = "STEP", value_parser = ["programs", "packets", "tunnels", "peer", "interfaces"])]
    step: Option<String>,
    /// Use hardware virtualisation for other kernels; the default is emulation, which works everywhere
    #[arg(long)]
    kvm: bool,
}

/// A step of the verification.
struct Step {
    name: &'static str,
    /// The test binary, and arguments for it.
    test: &'static str,
    arguments: &'static [&'static str],
    /// Whether the tests start the daemon.
    daemon: bool,
}

impl Step {
    const fn new(name: &'static str, test: &'static str, arguments: &'static [&'static str]) -> Step {
        Step { name, test, arguments, daemon: false }
    }
}

const PROGRAMS: Step = Step::new("programs", "verifier", &["--nocapture"]);
const PACKETS: Step = Step::new("packets", "packets", &[]);
/// For distributions' kernels, which have tunnels and a balancer of their own.
const TUNNELS: Step = Step::new("tunnels", "packets", &["--ignored", "tunnels::"]);
const PEER: Step =
    Step { daemon: true, ..Step::new("peer", "traffic", &["--ignored", "--nocapture", "peer::"]) };
/// With devices that only distributions' kernels have.
const INTERFACES: Step =
    Step { daemon: true, ..Step::new("interfaces", "traffic", &["--ignored", "stacked::"]) };

pub fn verify(args: &Args) -> Result<()> {
    setup::install_for(Verb::Verify)?;
    let others: Vec<_> = if args.all { kernel::ALL.iter().collect() } else { args.kernel.clone() };
    let mut places = Vec::new();
    if args.all || others.is_empty() {
        places.push(Place::Here);
    }
    for kernel in others {
        vm::prepare(kernel)?;
        places.push(Place::Machine(kernel));
    }

    let wanted = |step: &&Step| args.step.as_deref().is_none_or(|name| name == step.name);
    ensure!(
        places.iter().flat_map(Place::steps).any(|step| wanted(&step)),
        "none of these kernels has that step; name one that has: --kernel 6.12"
    );
    let mut failed = false;
    let mut report = String::new();
    for place in places {
        eprintln!("\n== {}", place.name());
        report += &format!("\n  {:<16}", place.name());
        for step in place.steps().iter().filter(wanted) {
            let outcome = place.run(step, args.kvm);
            if let Err(error) = &outcome {
                eprintln!("{error:#}");
            }
            failed |= outcome.is_err();
            report += &format!("  {}: {}", step.name, if outcome.is_ok() { "passed" } else { "FAILED" });
        }
    }
    eprintln!("\nVerified:{report}");
    if failed {
        bail!("a step failed on some kernel; see above");
    }
    Ok(())
}

/// The kernel that tests run on.
enum Place {
    Here,
    Machine(&'static Kernel),
}

impl Place {
    fn name(&self) -> String {
        match self {
            Place::Here => "running kernel".to_owned(),
            Place::Machine(kernel) => format!("Linux {}", kernel.version),
        }
    }

    fn steps(&self) -> &'static [Step] {
        match self {
            Place::Machine(_) => &[PROGRAMS, PACKETS, TUNNELS, PEER, INTERFACES],
            Place::Here => &[PROGRAMS, PACKETS],
        }
    }

    fn run(&self, step: &Step, kvm: bool) -> Result<()> {
        let mut arguments = step.arguments.to_vec();
        let runner = match self {
            Place::Here => command::as_root("env")?,
            Place::Machine(kernel) => {
                let mut runner =
                    Command::new(env::current_exe().context("finding the path of xtask itself")?);
                runner.args(["vm", kernel.version]);
                if kvm {
                    runner.arg("--kvm");
                }
                if step.daemon {
                    command::run(workspace::cargo("build").args(["--package", "nlb", "--bin", "nlb"]))?;
                    runner.arg("--with").arg(workspace::debug_dir()?.join("nlb"));
                }
                runner.arg("--");
                // Some tests depend on time, and in an emulated machine parallel tests would delay their
                // packets.
                arguments.push("--test-threads=1");
                runner
            }
        };
        // With output: on machines where this takes a quarter of an hour, each test's line shows the
        // progress.
        let mut cargo = workspace::cargo("test");
        cargo.args(["--package", "nlb-tests", "--test", step.test]);
        command::run_tests_by(&runner, &mut cargo, &arguments)
    }
}
