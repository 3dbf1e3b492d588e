//! `cargo xtask deny` and `cargo xtask advisories`: cargo-deny against the rules of deny.toml.

use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result};

use crate::tools::Tool;
use crate::{command, workspace};

const VERSION: &str = "0.20.2";

/// Of the crates that are built for this target; deny.toml names the same one.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Licences, duplicate versions and sources of crates. Needs no network once the crates are there.
pub fn deny() -> Result<()> {
    let cargo_deny = install()?;
    // What `cargo metadata` reads. A build fetches the same crates, except those of tests.
    command::run(workspace::cargo("fetch").args(["--quiet", "--locked", "--target", TARGET]))?;
    let mut check = Command::new(cargo_deny);
    check
        .current_dir(workspace::root())
        .args(["--locked", "--offline", "--workspace", "--config", "deny.toml", "check"])
        .args(["bans", "licenses", "sources"]);
    command::run(&mut check)
}

/// Known vulnerabilities of crates, and versions that were withdrawn.
pub fn advisories() -> Result<()> {
    let mut check = Command::new(install()?);
    check.current_dir(workspace::root()).args([
        "--locked",
        "--workspace",
        "--config",
        "deny.toml",
        "check",
        "advisories",
    ]);
    command::run(&mut check).context(
        "an advisory applies, or the advisories could not be read; see above. Reading them needs a network: cargo-deny \
         clones the RustSec database with git, and asks the crates' registry which versions were withdrawn",
    )
}

fn install() -> Result<PathBuf> {
    let tool = Tool { name: "cargo-deny", version: VERSION, feature: None };
    if !tool.is_current() {
        tool.install(&[]).context("cargo-deny cannot be built")?;
    }
    Ok(tool.path())
}
