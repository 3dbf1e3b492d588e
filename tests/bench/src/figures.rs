//! Collects and prints figures.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result};

/// Prints a line of the table.
pub fn print(case: &str, figure: impl std::fmt::Display) {
    println!("{case:<58} {figure}");
}

/// The quantile of durations for a share.
pub fn percentile(durations: &mut [Duration], share: f64) -> Duration {
    durations.sort();
    let last = durations.len() - 1;
    durations[(last as f64 * share).round() as usize]
}

pub fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1e3)
}

pub fn median_and_tail(durations: &mut [Duration]) -> String {
    let (median, tail) = (percentile(durations, 0.5), percentile(durations, 0.99));
    format!("p50 {}, p99 {}", milliseconds(median), milliseconds(tail))
}

/// The CPU time of a process, user and system.
pub fn cpu_time(pid: u32) -> Result<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The name, in parentheses, may contain anything.
    let (_, rest) = stat.rsplit_once(')').context("the form of /proc/PID/stat")?;
    let field = |n: usize| rest.split_whitespace().nth(n).and_then(|word| word.parse::<u64>().ok());
    let ticks = field(11).zip(field(12)).map(|(user, system)| user + system).context("CPU times")?;
    // In hundredths of a second on every architecture of Debian (USER_HZ).
    Ok(Duration::from_millis(ticks * 10))
}

/// The resident memory of a process and its maximum, in MiB.
pub fn memory(pid: u32) -> Result<(u64, u64)> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let kib = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name))?;
        line.trim_start_matches(':').split_whitespace().next()?.parse::<u64>().ok()
    };
    let both = kib("VmRSS").zip(kib("VmHWM")).context("the form of /proc/PID/status")?;
    Ok((both.0 / 1024, both.1 / 1024))
}
