//! Installs Debian packages without letting them start their services on this machine.

use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::find_program;
use crate::command;

const INSTALL: &str = include_str!("apt-install.sh");

pub fn install(packages: &[&str]) -> Result<()> {
    let by_hand = format!("apt-get update && apt-get install {}", packages.join(" "));
    if find_program("apt-get").is_none() {
        bail!(
            "this is no Debian (there is no apt-get); install what these packages hold: {}",
            packages.join(" ")
        );
    }
    let to_type = || format!("packages are missing; type as root: {by_hand}");
    let mut shell = command::as_root("/bin/sh").with_context(to_type)?;
    if !command::is_root() {
        // Asks for the password now, while the terminal is still ours.
        command::run(Command::new("sudo").arg("--validate")).with_context(to_type)?;
    }
    shell.args(["-c", INSTALL, "apt-install"]).args(packages);
    command::run_quietly(&format!("apt-get install {}", packages.join(" ")), &mut shell).with_context(to_type)
}
