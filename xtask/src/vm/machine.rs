//! The virtual machine: qemu, its two serial ports, and a time limit.

use std::fs;
use std::io::{BufRead, BufReader, Write, stdout};
use std::path::Path;
use std::process::{ChildStdout, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use super::kernel::Kernel;

const QEMU: &str = "qemu-system-x86_64";

/// Far longer than the longest test takes without hardware virtualisation.
const TIME_LIMIT: Duration = Duration::from_secs(60 * 60);

/// The last line that the first process prints, before the status of the program.
const ENDED: &str = "vm: ended with ";

/// Boots a machine, shows the output of its program, and returns the program's exit status.
pub fn run(kernel: &Kernel, image: &Path, kvm: bool) -> Result<u8> {
    let console = image.with_file_name("console.log");
    // The machine ends with this process.
    let mut qemu = Command::new("setpriv");
    qemu.args(["--pdeathsig", "KILL", "--", QEMU])
        .args(["-machine", "pc", "-accel", if kvm { "kvm" } else { "tcg" }])
        // The smallest configuration, since every feature costs time where it is emulated.
        .args(["-cpu", "qemu64", "-smp", "2", "-m", "2048"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-serial")
        .arg(format!("file:{}", console.display()))
        .args(["-serial", "stdio"])
        .arg("-kernel")
        .arg(kernel.vmlinuz())
        .arg("-initrd")
        .arg(image)
        // A kernel that panics reboots, which ends the machine.
        .args(["-append", "console=ttyS0 quiet panic=-1 mitigations=off"]);
    let mut machine = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("starting {QEMU}"))?;
    let output = machine.stdout.take().expect("it was piped");
    let reader = thread::spawn(move || show(output));
    let started = Instant::now();
    while machine.try_wait()?.is_none() {
        if started.elapsed() > TIME_LIMIT {
            machine.kill()?;
            machine.wait()?;
            bail!("the machine still ran after {} minutes and was ended", TIME_LIMIT.as_secs() / 60);
        }
        thread::sleep(Duration::from_millis(50));
    }
    let status = reader.join().expect("reading does not panic")?;
    status.with_context(|| {
        format!("the machine ended before the program in it did; its console output:\n{}", tail(&console))
    })
}

/// Copies lines to standard output, except the one with the program's status.
fn show(output: ChildStdout) -> Result<Option<u8>> {
    let mut status = None;
    for line in BufReader::new(output).split(b'\n') {
        let line = line.context("reading what the machine prints")?;
        let text = String::from_utf8_lossy(&line);
        match text.strip_prefix(ENDED) {
            Some(number) => {
                status = Some(number.trim().parse().with_context(|| format!("status {number:?}"))?)
            }
            None => writeln!(stdout(), "{text}")?,
        }
    }
    Ok(status)
}

fn tail(log: &Path) -> String {
    let text = String::from_utf8_lossy(&fs::read(log).unwrap_or_default()).into_owned();
    let lines: Vec<_> = text.lines().collect();
    lines[lines.len().saturating_sub(30)..].join("\n")
}
