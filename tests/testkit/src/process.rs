//! A program in a lab. Its output goes to a file, and it ends when this value is dropped.

use std::fs::{self, File};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::{self, Signal};
use nix::unistd::Pid;

/// How long tests wait for a state. Only a failure takes that long: no test may fail because the machine is
/// slow.
pub const MAX_WAIT: Duration = Duration::from_secs(120);

#[derive(Debug)]
pub struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a command with its output going to a file. The thread that starts a command of a namespace has
    /// to outlive it: the kernel kills the command when the thread ends.
    pub fn start(command: &mut Command, log: PathBuf) -> Result<Process> {
        let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
        let child = command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output)
            // Ctrl-C ends the program that runs the lab, which then ends its processes.
            .process_group(0)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Process { child, log })
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn signal(&self, signal: Signal) -> Result<()> {
        let pid = Pid::from_raw(self.pid() as i32);
        signal::kill(pid, signal).with_context(|| format!("sending {signal} to process {pid}"))
    }

    /// The exit status, or `None` while it runs.
    pub fn ended(&mut self) -> Result<Option<ExitStatus>> {
        Ok(self.child.try_wait()?)
    }

    pub fn wait(&mut self, at_most: Duration) -> Result<ExitStatus> {
        let started = Instant::now();
        while started.elapsed() < at_most {
            if let Some(status) = self.ended()? {
                return Ok(status);
            }
            sleep(Duration::from_millis(20));
        }
        bail!("process {} still runs after {at_most:?}; its output:\n{}", self.pid(), self.output())
    }

    /// Waits until `ready` returns true, and fails if the process ends.
    pub fn wait_until(
        &mut self,
        what: &str,
        at_most: Duration,
        mut ready: impl FnMut() -> bool,
    ) -> Result<()> {
        let started = Instant::now();
        while !ready() {
            if let Some(status) = self.ended()? {
                bail!(
                    "waiting until {what}, but the process ended ({status}); its output:\n{}",
                    self.output()
                );
            }
            if started.elapsed() > at_most {
                bail!("after {at_most:?} still not: {what}; the process's output:\n{}", self.output());
            }
            sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Its output so far.
    pub fn output(&self) -> String {
        fs::read(&self.log).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    }

    pub fn log(&self) -> &Path {
        &self.log
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail only if the process has ended.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
