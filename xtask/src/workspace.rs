//! The paths of the workspace, and the cargo that builds it.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

pub fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("xtask is a directory of the workspace")
}

pub fn cargo(subcommand: &str) -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or("cargo".into()));
    cargo.current_dir(root()).arg(subcommand);
    cargo
}

/// The directory of debug builds: that of this program, which cargo built there.
pub fn debug_dir() -> Result<PathBuf> {
    let xtask = env::current_exe().context("finding the path of xtask itself")?;
    Ok(xtask.parent().context("xtask is in no directory")?.to_owned())
}

/// The directory of optimised builds.
pub fn release_dir() -> Result<PathBuf> {
    Ok(debug_dir()?.parent().context("xtask is in no profile's directory")?.join("release"))
}
