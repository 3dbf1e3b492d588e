//! What this process takes of the machine, for the heartbeat's figures.

use std::thread::available_parallelism;
use std::time::{Duration, Instant};

use nix::sys::resource::{UsageWho, getrusage};
use nix::unistd::{SysconfVar, sysconf};

#[derive(Debug)]
pub(crate) struct Usage {
    started: Instant,
    cpu_before: Duration,
}

impl Usage {
    pub(crate) fn start() -> Usage {
        Usage { started: Instant::now(), cpu_before: cpu_time() }
    }

    /// Of the whole machine, on average since the start.
    pub(crate) fn cpu_percent(&self) -> f64 {
        let cpus = available_parallelism().map_or(1, usize::from) as f64;
        let used = cpu_time().saturating_sub(self.cpu_before).as_secs_f64();
        let passed = self.started.elapsed().as_secs_f64();
        if passed > 0.0 { 100.0 * used / passed / cpus } else { 0.0 }
    }

    /// Resident memory in mebibytes; 0 where the kernel does not tell.
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
        let usage = Usage::start();
        let mut x = 0u64;
        while usage.started.elapsed() < Duration::from_millis(50) {
            x = std::hint::black_box(x + 1);
        }
        assert!(usage.cpu_percent() > 0.0 && usage.cpu_percent() <= 100.0, "{} %", usage.cpu_percent());
        assert!(Usage::memory_mb() > 0.5, "{} MiB", Usage::memory_mb());
    }
}
