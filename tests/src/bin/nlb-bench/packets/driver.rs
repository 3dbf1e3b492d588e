//! Runs a program on the same frame again and again, each time for another flow, and says what one run took.
//!
//! The program in front of it ([`tests/floors`](../../../../floors/src/drive.rs)) puts back what the last run changed. What
//! that costs is measured like anything else and taken off.

use anyhow::{Context, Result};
use aya::maps::{Array, HashMap, MapData, ProgramArray};
use aya::programs::{ProgramFd, TestRun, TestRunOptions, Xdp};
use aya::{Ebpf, EbpfLoader};
use nlb::loader;

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/floors.bpf.o"));

/// Bytes of the frame that are put back each time.
const HEADERS: usize = 96;

/// Every frame is this long.
pub const FRAME: usize = 128;

/// Where a frame names its client: the last four bytes of the address, and the port.
#[derive(Clone, Copy)]
pub struct Client {
    pub address: u32,
    pub port: u32,
}

impl Client {
    pub const V4: Client = Client { address: 26, port: 34 };
    pub const V6: Client = Client { address: 34, port: 54 };
    /// In the payload: all frames are of one flow, as they are.
    pub const NONE: Client = Client { address: 100, port: 104 };
}

/// Bursts that are made of so many runs.
pub const BURSTS: u32 = 20;

pub struct Driver {
    bpf: Ebpf,
    measured: ProgramArray<MapData>,
    frame: Vec<u8>,
    ifindex: u32,
}

impl Driver {
    /// For frames like this one, of `flows` flows (a power of two), from the interface of that index.
    pub fn new(frame: &[u8], client: Client, flows: u32, ifindex: u32) -> Result<Driver> {
        anyhow::ensure!(frame.len() == FRAME, "a frame of {} bytes, not {FRAME}", frame.len());
        let plan = [FRAME as u32, flows - 1, client.address, client.port];
        let mut bpf = EbpfLoader::new().override_global("PLAN", &plan, true).load(OBJECT)?;
        for name in ["drive", "nothing", "mac_swap", "look_up", "ipip"] {
            program(&mut bpf, name)?.load()?;
        }
        let words =
            frame[..HEADERS].chunks(8).map(|word| u64::from_ne_bytes(word.try_into().expect("eight")));
        let words: Vec<u64> = words.collect();
        let words: [u64; HEADERS / 8] = words.try_into().expect("as many as headers have");
        let mut template = Array::<_, [u64; HEADERS / 8]>::try_from(map(&mut bpf, "TEMPLATE")?)?;
        template.set(0, words, 0)?;
        // The floors' service is where the frame goes, if it is IPv4.
        let word = |at: usize| u32::from_ne_bytes(frame[at..at + 4].try_into().expect("four bytes"));
        let port = u32::from(u16::from_ne_bytes([frame[36], frame[37]]));
        let mut tunnels = HashMap::<_, [u32; 2], [u32; 5]>::try_from(map(&mut bpf, "TUNNELS")?)?;
        tunnels.insert([word(30), port | u32::from(frame[23]) << 16], [1, 2, 3, 4, 5], 0)?;
        let measured = ProgramArray::try_from(map(&mut bpf, "MEASURED")?)?;
        Ok(Driver { bpf, measured, frame: frame.to_vec(), ifindex })
    }

    /// One of the floors, by name.
    pub fn floor(&mut self, name: &str) -> Result<ProgramFd> {
        Ok(program(&mut self.bpf, name)?.fd()?.try_clone()?)
    }

    /// Nanoseconds that a run takes, with the driver's own: in the best of several bursts of so many runs together, since
    /// whatever disturbs a burst makes it slower. Beside it what the last run answered.
    pub fn time(&mut self, measured: &ProgramFd, runs: u32) -> Result<(f64, u32)> {
        self.measured.set(0, measured, 0)?;
        let mut best = f64::INFINITY;
        let mut answer = 0;
        for _ in 0..BURSTS {
            let taken;
            (taken, answer) = self.burst(runs.div_ceil(BURSTS))?;
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
        // The kernel's own measure, in whole nanoseconds. By a clock of ours the call takes milliseconds more: before and
        // after the runs, the kernel patches its XDP dispatcher and waits for all CPUs.
        Ok((run.duration.as_nanos() as f64, run.return_value))
    }
}

fn program<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(bpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

fn map(bpf: &mut Ebpf, name: &str) -> Result<aya::maps::Map> {
    bpf.take_map(name).with_context(|| format!("no map {name}"))
}
