//! Installs Debian packages without letting them start their services on this machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::find_program;
use crate::command;

const INSTALL: &str = include_str!("apt-install.sh");

pub fn install(packages: &[&str]) -> Result<()> {
    let manual = format!("apt-get update && apt-get install {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        bail!(
            "apt-get is missing, so this is no Debian; install the contents of these packages: {}",
            packages.join(" ")
        );
    }
    let to_type = || format!("packages are missing; run as root: {manual}");
    let mut shell = command::as_root("/bin/sh").with_context(to_type)?;
    if !command::is_root() {
        // sudo asks for the password now, while its prompt is visible.
        command::run(Command::new("sudo").arg("--validate")).with_context(to_type)?;
    }
    shell.args(["-c", INSTALL, "apt-install"]).args(packages);
    command::run_quietly(&format!("apt-get install {}", packages.join(" ")), &mut shell).with_context(to_type)
}
