//! Runs a program on one frame repeatedly, each time for another flow, and measures the time of a run.
//!
//! A driver program in front of it ([`tests/bench/baselines`](../../baselines/src/drive.rs)) restores what
//! the last run changed. The driver's cost is measured in the same way and subtracted.

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions};
use aya::{Ebpf, EbpfLoader};
use nlb::datapath::loader;

use crate::baselines::{self, map, program, words};

/// The length of every frame.
pub const FRAME: usize = 128;

/// How flows differ: the offsets of the last four bytes of an address and of a port, and the range of ports.
#[derive(Clone, Copy)]
pub struct Flows {
    address: u32,
    port: u32,
    first_port: u16,
    port_bits: u32,
}

impl Flows {
    /// Flows differ by the client's address and port.
    pub const V4: Flows = Flows { address: 26, port: 34, first_port: 4096, port_bits: 12 };
    pub const V6: Flows = Flows { address: 34, port: 54, ..Flows::V4 };
    /// Frames differ in the payload only, so all are of one flow.
    pub const ONE: Flows = Flows { address: 120, port: 124, ..Flows::V4 };
    /// Flows differ by the port of the IPv4 service that they are for.
    pub const SERVICES: Flows = Flows { address: 120, port: 36, first_port: FIRST_SERVICE, port_bits: 13 };
}

pub const FIRST_SERVICE: u16 = 4096;

/// The number and length of bursts of runs. The best burst counts.
#[derive(Clone, Copy)]
pub struct Bursts {
    pub number: u32,
    pub runs: u32,
}

impl Bursts {
    /// Divides a number of runs into bursts that each have a packet of every flow. Other work uses the caches
    /// between bursts, as it does between the packets of real traffic.
    pub fn of(runs: u32, flows: u32) -> Bursts {
        const NUMBER: u32 = 20;
        const MOST_RUNS: u32 = 1 << 26;
        let runs = runs.div_ceil(NUMBER).max(flows);
        Bursts { number: (MOST_RUNS / runs).clamp(3, NUMBER), runs }
    }
}

pub struct Driver {
    bpf: Ebpf,
    measured: ProgramArray<MapData>,
    frame: Vec<u8>,
    ifindex: u32,
}

impl Driver {
    /// A driver for frames like this one, of `number` flows (a power of two), from the interface of that
    /// index. Baselines that read memory have `lines` cache lines, another power of two.
    pub fn new(frame: &[u8], flows: Flows, number: u32, ifindex: u32, lines: u32) -> Result<Driver> {
        anyhow::ensure!(frame.len() == FRAME, "a frame of {} bytes, not {FRAME}", frame.len());
        let Flows { address, port, first_port, port_bits } = flows;
        let plan = [number - 1, address, port, first_port.into(), port_bits];
        let last_line = lines - 1;
        let mut bpf = baselines::open(
            EbpfLoader::new()
                .override_global("PLAN", &plan, true)
                .override_global("LAST_LINE", &last_line, true)
                .map_max_entries("LINES", lines),
        )?;
        for name in ["drive", "nothing", "mac_swap", "look_up", "ipip", "ipip_of_flow", "ipip_of_new_flow"] {
            program(&mut bpf, name)?.load()?;
        }
        let mut template = Array::<_, [u64; FRAME / 8]>::try_from(map(&mut bpf, "TEMPLATE")?)?;
        template.set(0, words(frame), 0)?;
        // The frame's destination is the service of the baselines, if the frame is IPv4.
        let word = |at: usize| u32::from_ne_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let port = u32::from(u16::from_ne_bytes([frame[36], frame[37]]));
        let mut tunnels = HashMap::<_, [u32; 2], [u32; 5]>::try_from(map(&mut bpf, "TUNNELS")?)?;
        tunnels.insert([word(30), port | u32::from(frame[23]) << 16], [1, 2, 3, 4, 5], 0)?;
        let measured = ProgramArray::try_from(map(&mut bpf, "MEASURED")?)?;
        Ok(Driver { bpf, measured, frame: frame.to_vec(), ifindex })
    }

    /// Loads a baseline by its name.
    pub fn baseline(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(program(&mut self.bpf, name)?.fd()?.try_clone()?)
    }

    /// The nanoseconds of a run, the driver's included, and the action that the last run returned. The best
    /// of several bursts counts, because a disturbance only makes a burst slower.
    pub fn time(&mut self, measured: &ProgramFd, bursts: Bursts) -> Result<(f64, u32)> {
        self.measured.set(0, measured, 0)?;
        let mut best = f64::INFINITY;
        let mut answer = 0;
        for _ in 0..bursts.number {
            let taken;
            (taken, answer) = self.burst(bursts.runs)?;
            best = best.min(taken);
        }
        Ok((best, answer))
    }

    fn burst(&mut self, runs: u32) -> Result<(f64, u32)> {
        let context = loader::arrival(&self.frame, self.ifindex);
        let options = TestRunOptions {
            data_in: Some(&self.frame),
            ctx_in: Some(&context),
            repeat: runs,
            ..TestRunOptions::new()
        };
        let drive = program(&mut self.bpf, "drive")?;
        let run = drive.test_run(options).context("BPF_PROG_TEST_RUN")?;
        // The kernel's own measurement, in whole nanoseconds. The system call takes milliseconds more,
        // because the kernel patches its XDP dispatcher before and after the runs and waits for all CPUs.
        Ok((run.duration.as_nanos() as f64, run.return_value))
    }
}
