//! The CPU time of the whole machine, because no process is charged for the kernel's work on packets.

use std::fs;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nlb_testkit::process::Process;

use crate::figures::cpu_time;

/// A start of the measurement.
pub struct Busy {
    since: Instant,
    idle: Duration,
}

impl Busy {
    pub fn since_now() -> Result<Busy> {
        let (_, idle) = idle()?;
        Ok(Busy { since: Instant::now(), idle })
    }

    /// The CPUs' time that was neither idle nor stolen by the machine's host. The kernel measures idle time
    /// and samples all other times.
    pub fn time(&self) -> Result<Duration> {
        let (cpus, idle) = idle()?;
        Ok((self.since.elapsed() * cpus).saturating_sub(idle.saturating_sub(self.idle)))
    }
}

/// The number of CPUs, and the time since the machine started in which they were idle, waited for disks, or
/// were stolen.
fn idle() -> Result<(u32, Duration)> {
    const IDLE: usize = 3;
    const IO_WAIT: usize = 4;
    const STOLEN: usize = 7;
    let stat = fs::read_to_string("/proc/stat")?;
    let mut lines = stat.lines().take_while(|line| line.starts_with("cpu"));
    let all = lines.next().context("the form of /proc/stat")?;
    let ticks: Vec<u64> = all.split_whitespace().skip(1).map(str::parse).collect::<Result<_, _>>()?;
    let idle = [IDLE, IO_WAIT, STOLEN].map(|field| ticks.get(field).copied().unwrap_or_default());
    // In hundredths of a second on every architecture of Debian (USER_HZ).
    Ok((lines.count() as u32, Duration::from_millis(10 * idle.iter().sum::<u64>())))
}

/// The CPU time of a program and of the processes that it has started.
pub fn own_time(process: &Process) -> Result<Duration> {
    let pid = process.pid();
    let children = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children"))?;
    let children = children.split_whitespace().map(|child| cpu_time(child.parse()?));
    children.sum::<Result<Duration>>().and_then(|theirs| Ok(theirs + cpu_time(pid)?))
}
