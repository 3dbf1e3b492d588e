//! `cargo xtask image`: the daemon and the echo example as container images with nothing else in them.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::needs::Verb;
use crate::{command, setup, workspace};

/// The programs are linked statically, C library included, so that an image needs no other file.
const TARGET: &str = "x86_64-unknown-linux-gnu";
const STATIC: &str = "-C target-feature=+crt-static";

const IMAGES: [&str; 2] = ["nlb", "echo"];

pub fn image() -> Result<()> {
    setup::install_for(Verb::Image)?;
    let context = stage("release")?;
    for image in IMAGES {
        let mut docker = Command::new("docker");
        docker.args(["build", "--target", image, "--tag", &format!("marchproxy/{image}")]).arg(&context);
        command::run(&mut docker)?;
    }
    Ok(())
}

/// Puts the contents of the images into a directory: target/image.
pub fn stage(profile: &str) -> Result<PathBuf> {
    let mut cargo = workspace::cargo("build");
    cargo
        .args(["--target", TARGET, "--profile", profile])
        .args(["--package", "nlb", "--package", "nlb-module", "--bin", "nlb", "--example", "echo"])
        .env("RUSTFLAGS", STATIC)
        // Small images: their test builds them without optimisation.
        .env("CARGO_PROFILE_DEV_DEBUG", "0");
    command::run(&mut cargo)?;
    let target = workspace::debug_dir()?.parent().context("xtask is in no profile's directory")?.to_owned();
    // Cargo's exception: the profile `dev` builds into `debug`.
    let built = target.join(TARGET).join(if profile == "dev" { "debug" } else { profile });
    let context = target.join("image");
    fs::create_dir_all(&context).with_context(|| format!("creating {}", context.display()))?;
    let files = [
        (built.join("nlb"), "nlb"),
        (built.join("examples/echo"), "echo"),
        (workspace::root().join("deploy/Dockerfile"), "Dockerfile"),
    ];
    for (from, name) in files {
        fs::copy(&from, context.join(name)).with_context(|| format!("copying {}", from.display()))?;
    }
    Ok(context)
}
