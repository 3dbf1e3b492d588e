//! `cargo xtask test`: all checks, the cheapest first. It stops at the first failure.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::{command, deny, fuzz, image, setup, tidy, workspace};

#[derive(clap::Args)]
pub struct Args {
    /// Run only the privileged tests, beside two busy loops on each CPU: no test may fail because a machine
    /// is slow
    #[arg(long)]
    busy: bool,
}

/// A name, and what to do.
type Step = (&'static str, fn() -> Result<()>);

const CHECKS: &[Step] = &[
    ("setup", setup::setup),
    ("tidy", tidy::tidy),
    ("format", format),
    ("licences and duplicates", deny::deny),
    ("clippy", clippy),
    ("clippy of the XDP programs", clippy_ebpf),
    ("unit tests", unit_tests),
    ("interleavings of the tables", interleavings),
    ("fuzzing of the parsers", fuzz::parsers_for_a_while),
    ("build of the privileged tests", build_privileged_tests),
];

/// The test binaries that need root.
const PRIVILEGED: &[Step] = &[
    ("privileged tests: lab", || privileged("lab", &[])),
    ("privileged tests: leftovers", || privileged("leftovers", &[])),
    ("privileged tests: verifier", || privileged("verifier", &[])),
    ("privileged tests: packets", || privileged("packets", &[])),
    ("privileged tests: traffic", traffic),
    ("privileged tests: demo", || privileged("demo", &[])),
];

pub fn test(args: &Args) -> Result<()> {
    let started = Instant::now();
    let mut took = Vec::new();
    if args.busy {
        run(&[CHECKS[0], CHECKS[CHECKS.len() - 1]], &mut took)?;
        let _load = Load::start()?;
        run(PRIVILEGED, &mut took)?;
    } else {
        run(CHECKS, &mut took)?;
        run(PRIVILEGED, &mut took)?;
    }
    let took: Vec<_> = took.iter().map(|(name, took)| format!("{name} {} s", took.as_secs())).collect();
    eprintln!("\nAll passed in {} s: {}.", started.elapsed().as_secs(), took.join(", "));
    Ok(())
}

fn run(steps: &[Step], took: &mut Vec<(&'static str, Duration)>) -> Result<()> {
    for (name, step) in steps {
        eprintln!("\n== {name}");
        let started = Instant::now();
        step().with_context(|| format!("FAILED at: {name}"))?;
        took.push((name, started.elapsed()));
    }
    Ok(())
}

/// Two busy loops a CPU, which end with this value. They are threads of this process, so none outlives it.
struct Load {
    ended: Arc<AtomicBool>,
    loops: Vec<JoinHandle<()>>,
}

impl Load {
    fn start() -> Result<Load> {
        let ended = Arc::<AtomicBool>::default();
        let count = 2 * thread::available_parallelism().context("counting CPUs")?.get();
        let spin = |ended: Arc<AtomicBool>| {
            thread::spawn(move || {
                while !ended.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        };
        let loops = (0..count).map(|_| spin(ended.clone())).collect();
        eprintln!("\n{count} busy loops run beside the tests");
        Ok(Load { ended, loops })
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        for spinning in self.loops.drain(..) {
            // It does nothing that could panic.
            let _ = spinning.join();
        }
    }
}

fn format() -> Result<()> {
    command::run(workspace::cargo("fmt").args(["--all", "--check"]))
}

fn clippy() -> Result<()> {
    command::run(workspace::cargo("clippy").args([
        "--workspace",
        "--exclude",
        "nlb-ebpf",
        "--exclude",
        "nlb-baselines",
        "--all-targets",
        "--",
        "--deny",
        "warnings",
    ]))
}

/// Clippy checks the XDP programs as if for this host, since it has no BPF target; the build scripts compile
/// them for BPF.
fn clippy_ebpf() -> Result<()> {
    command::run(workspace::cargo("clippy").args([
        "--package",
        "nlb-ebpf",
        "--package",
        "nlb-baselines",
        "--",
        "--deny",
        "warnings",
    ]))
}

fn unit_tests() -> Result<()> {
    command::run(&mut workspace::cargo("test"))
}

/// A model checker runs the table with another word type: hence the flags and the separate directory.
fn interleavings() -> Result<()> {
    command::run(
        workspace::cargo("test")
            .args(["--package", "nlb-common", "--test", "interleavings", "--release"])
            .args(["--target-dir", "target/loom"])
            .env("RUSTFLAGS", "--cfg loom"),
    )
}

/// Builds what the privileged tests start: the daemon and the modules, some of them in containers, and the
/// demo.
fn build_privileged_tests() -> Result<()> {
    command::run(
        workspace::cargo("build")
            .args(["--package", "nlb", "--package", "nlb-module", "--package", "nlb-demo"])
            .args(["--bin", "nlb", "--bin", "nlb-demo", "--example", "echo"]),
    )?;
    // The contents of the images that tests with a container engine build.
    image::stage("dev")?;
    command::run(workspace::cargo("test").args(["--no-run", "--package", "nlb-tests"]))
}

/// Built as the user who calls, run as root by way of cargo's runner setting.
fn privileged(test: &str, arguments: &[&str]) -> Result<()> {
    let mut cargo = workspace::cargo("test");
    cargo.args(["--package", "nlb-tests", "--test", test]);
    command::run_tests_as_root(&mut cargo, &[], arguments)
}

/// Most of these tests mostly wait, so more of them run at once than there are CPUs.
fn traffic() -> Result<()> {
    let threads = 2 * thread::available_parallelism().context("counting CPUs")?.get();
    privileged("traffic", &[&format!("--test-threads={threads}")])
}
