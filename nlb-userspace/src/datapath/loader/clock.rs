//! The kernel's jiffies, which are the programs' clock, because reading them is cheap.

use std::time::{Duration, Instant};

use anyhow::Context;
use aya::EbpfLoader;
use aya::programs::{TestRun, TestRunOptions, Xdp};

use super::errors::{explain_load, retry_verifier};
use super::object::{JIFFIES, OBJECT, program};

/// How the kernel's jiffies relate to time.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Jiffies a second: 100, 250, 300 or 1000 (the kernel's CONFIG_HZ).
    pub(super) hertz: u32,
    /// Jiffies shifted right by this many bits are ticks: 512 ms at 250 and 1,000 Hz, 640 ms at 100 Hz, 853
    /// ms at 300 Hz.
    pub(super) shift: u32,
}

impl Clock {
    /// Counts the kernel's jiffies for a fifth of a second, which is enough to distinguish the four possible
    /// rates.
    pub fn measure() -> anyhow::Result<Self> {
        const WAIT: Duration = Duration::from_millis(200);
        let mut bpf = EbpfLoader::new().load(OBJECT).map_err(explain_load)?;
        let program = program(&mut bpf, JIFFIES)?;
        retry_verifier(program, Xdp::load)?;
        let first = jiffies(program)?;
        let start = Instant::now();
        std::thread::sleep(WAIT);
        let second = jiffies(program)?;
        let end = Instant::now();
        let measured = second.wrapping_sub(first) as f64 / (end - start).as_secs_f64();
        let hertz = [100, 250, 300, 1000]
            .into_iter()
            .min_by_key(|hertz| (measured - *hertz as f64).abs() as u64)
            .unwrap_or(250);
        // The shift of the smallest power of two of jiffies that takes at least half a second.
        Ok(Clock { hertz, shift: (hertz / 2).next_power_of_two().trailing_zeros() })
    }

    /// The time that this many jiffies take.
    pub fn duration(&self, jiffies: u32) -> Duration {
        Duration::from_secs(jiffies.into()) / self.hertz
    }

    /// The length of a tick.
    pub fn tick(&self) -> Duration {
        self.duration(1 << self.shift)
    }

    /// A duration in ticks, at least 1 and less than half of the range of 16 bits, so that ages are
    /// unambiguous.
    pub fn ticks(&self, duration: Duration) -> u16 {
        let ticks = duration.as_secs_f64() * self.hertz as f64 / (1_u64 << self.shift) as f64;
        ticks.ceil().clamp(1.0, i16::MAX as f64) as u16
    }
}

/// The low 32 bits of the kernel's tick counter.
pub(super) fn jiffies(program: &Xdp) -> anyhow::Result<u32> {
    // The kernel accepts no frame shorter than an Ethernet header.
    let frame = [0; 64];
    let run = program.test_run(TestRunOptions { data_in: Some(&frame), ..TestRunOptions::new() });
    Ok(run.context("running a program in the kernel")?.return_value)
}
