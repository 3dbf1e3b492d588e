//! The resources that this process uses, for the figures of heartbeats.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

/// Over a shorter time, the resolution of the CPU clock would dominate the result.
const SHORTEST: Duration = Duration::from_secs(1);

/// Measures from one call to the next: scaling needs the current load, not the average since the start.
#[derive(Debug)]
pub(crate) struct Usage {
    since: Instant,
    cpu_before: Duration,
    /// The value for the time before `since`.
    measured: Option<f64>,
}

impl Usage {
    pub(crate) fn start() -> Usage {
        Usage { since: Instant::now(), cpu_before: cpu_time(), measured: None }
    }

    /// In percent of the whole machine, averaged since the call before.
    pub(crate) fn cpu_percent(&mut self) -> f64 {
        let passed = self.since.elapsed();
        if let Some(measured) = self.measured.filter(|_| passed < SHORTEST) {
            return measured;
        }
        let cpus = available_parallelism().map_or(1, usize::from) as f64;
        let cpu = cpu_time();
        let used = cpu.saturating_sub(self.cpu_before).as_secs_f64();
        let measured = if passed.is_zero() { 0.0 } else { 100.0 * used / passed.as_secs_f64() / cpus };
        if passed >= SHORTEST {
            *self = Usage { since: Instant::now(), cpu_before: cpu, measured: Some(measured) };
        }
        measured
    }

    /// Resident memory in mebibytes; 0 if the kernel does not report it.
    pub(crate) fn memory_mb() -> f64 {
        let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
        let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
        let page_size = sysconf(SysconfVar::PAGE_SIZE).ok().flatten().unwrap_or(4096) as f64;
        pages * page_size / (1024.0 * 1024.0)
    }
}

fn cpu_time() -> Duration {
    let Ok(usage) = getrusage(UsageWho::RUSAGE_SELF) else { return Duration::ZERO };
    let time = |value: nix::sys::time::TimeVal| {
        Duration::from_secs(value.tv_sec() as u64) + Duration::from_micros(value.tv_usec() as u64)
    };
    time(usage.user_time()) + time(usage.system_time())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn measures_this_process() {
        let mut usage = Usage::start();
        let mut x = 0u64;
        let mut work = |usage: &Usage, time| {
            while usage.since.elapsed() < time {
                x = std::hint::black_box(x + 1);
            }
        };
        work(&usage, Duration::from_millis(50));
        let percent = usage.cpu_percent();
        assert!(percent > 0.0 && percent <= 100.0, "{percent} %");
        assert_eq!(usage.measured, None, "the first call has an answer at any time");
        work(&usage, SHORTEST);
        let percent = usage.cpu_percent();
        assert_eq!(
            (usage.measured, usage.cpu_percent()),
            (Some(percent), percent),
            "too soon for another measurement"
        );
        assert!(Usage::memory_mb() > 0.5, "{} MiB", Usage::memory_mb());
    }
}
