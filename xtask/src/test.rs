//! `cargo xtask test`: all checks, the cheapest first. It stops at the first failure.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::{command, deny, fuzz, image, setup, tidy, workspace};

type Check = (&'static str, fn() -> Result<()>);

const CHECKS: &[Check] = &[
    ("setup", setup::setup),
    ("tidy", tidy::tidy),
    ("format", format),
    ("licences and duplicates", deny::deny),
    ("clippy", clippy),
    ("clippy of the XDP programs", clippy_ebpf),
    ("unit tests", unit_tests),
    ("interleavings of the tables", interleavings),
    ("fuzzing of the parsers", fuzz::parsers_for_a_while),
    ("privileged tests", privileged_tests),
];

pub fn test() -> Result<()> {
    let started = Instant::now();
    for (name, check) in CHECKS {
        eprintln!("\n== {name}");
        check().with_context(|| format!("FAILED at: {name}"))?;
    }
    let names: Vec<_> = CHECKS.iter().map(|(name, _)| *name).collect();
    eprintln!("\nAll passed in {} s: {}.", started.elapsed().as_secs(), names.join(", "));
    Ok(())
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

/// Tests that are built as the calling user and run as root, by cargo's runner setting. They start the daemon
/// and the modules that are built before, some of them in containers.
fn privileged_tests() -> Result<()> {
    command::run(workspace::cargo("build").args([
        "--package",
        "nlb",
        "--package",
        "nlb-module",
        "--package",
        "nlb-demo",
        "--bin",
        "nlb",
        "--bin",
        "nlb-demo",
        "--example",
        "echo",
    ]))?;
    // The images' contents, for the tests with a container engine.
    image::stage("dev")?;
    let mut cargo = workspace::cargo("test");
    cargo.args(["--package", "nlb-tests"]);
    command::run_tests_as_root(&mut cargo, &[], &[])
}
