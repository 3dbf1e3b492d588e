//! Whether the kernel loads our programs, and the verifier's cost: every program of the object, with every
//! combination of the settings that are fixed at load time.
//!
//! This is a test program of its own, because it lowers the process's limit of file descriptors for a moment
//! (see [`verifier_log`]).

use std::fmt;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aya::VerifierLogLevel;
use aya::programs::{Program, ProgramError};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::utsname::uname;
use nlb::config::{Flows, OuterSources};
use nlb::datapath::loader::{self, Clock, LoadConfig};
use nlb::model::settings::TableSizes;
use nlb::model::snat::SnatAddresses;
use nlb::model::vips::Vips;

/// The most instructions that the verifier may process: three quarters of the kernel's limit, so that there
/// is room when this test fails.
const MOST_PROCESSED: u64 = 750_000;

#[test]
fn kernel_loads_every_program_with_every_setting() -> Result<()> {
    let clock = Clock::measure()?;
    println!("\nLinux {}", uname()?.release().to_string_lossy());
    println!("{HEAD}");
    for (settings, load_config) in combinations() {
        let mut bpf = loader::open(&load_config, &clock, VerifierLogLevel::STATS)?;
        let mut programs: Vec<_> = bpf.programs_mut().collect();
        programs.sort_by_key(|(name, _)| *name);
        assert!(!programs.is_empty(), "the object has no programs");
        for (name, program) in programs {
            let cost = Cost::of(program).with_context(|| format!("{name}, {settings}"))?;
            println!("{name:<18} {settings:<16} {cost}");
            assert!(cost.processed < MOST_PROCESSED, "{name} nears the kernel's limit of a million");
        }
    }
    Ok(())
}

/// Combinations of the settings that are fixed at load time: whether XDP_TX may be used, and numbers that the
/// verifier knows as constants, at their least and as in large installations, without and with prefixes of
/// outer sources.
fn combinations() -> Vec<(String, LoadConfig)> {
    let seconds = Duration::from_secs;
    let flows = |max, [opening, established, closing, udp, time_wait]: [u64; 5]| Flows {
        max,
        opening: seconds(opening),
        established: seconds(established),
        closing: seconds(closing),
        udp: seconds(udp),
        time_wait: seconds(time_wait),
    };
    // The verifier does not depend on the sizes of maps.
    let limits = TableSizes {
        backends: 100,
        services: 100,
        pools: 100,
        addresses: 100,
        rate_limits: 100,
        source_prefixes: 1000,
        counted_routes: 100,
    };
    let prefixes = ["10.200.0.0/16", "fd00:200::/64"].map(|prefix| prefix.parse().expect("a prefix"));
    let many = OuterSources::new(&prefixes, &Vips::default()).expect("both may be sources");
    let sources = ["10.0.0.1", "10.0.0.2", "fd00::1"].map(|addr| addr.parse().expect("an address"));
    let sources = SnatAddresses::new(sources.into()).expect("three hosts");
    let numbers = [
        ("small", flows(1024, [1; 5]), 1..=1, OuterSources::default(), SnatAddresses::default()),
        ("large", flows(1 << 20, [60, 7200, 10, 120, 60]), 1..=u16::MAX, many, sources),
    ];
    let mut combinations = Vec::new();
    for (size, flows, snat_ports, ipip_sources, snat_addresses) in numbers {
        for (way, use_tx) in [("XDP_TX", true), ("redirect", false)] {
            let (snat_ports, snat_addresses) = (snat_ports.clone(), snat_addresses.clone());
            let load_config = LoadConfig {
                flows,
                limits,
                snat_ports,
                snat_addresses,
                gue_port: 6080,
                ipip_sources,
                use_tx,
            };
            combinations.push((format!("{way}, {size}"), load_config));
        }
    }
    combinations
}

const HEAD: &str =
    "program            settings          instructions  processed  peak states  time/ms  JIT/bytes  stack";

/// The kernel's figures about a loaded program.
struct Cost {
    /// The instructions that the kernel runs.
    instructions: u32,
    jitted: u32,
    /// Steps of the verifier, over all paths.
    processed: u64,
    peak_states: u64,
    microseconds: u64,
    /// The bytes of the program and of each function.
    stack: String,
}

impl Cost {
    fn of(program: &mut Program) -> Result<Cost> {
        let log = verifier_log(|| load(program))?;
        load(program)?;
        let info = program.info()?;
        Ok(Cost {
            instructions: info.size_translated().context("no length of the program")? / 8,
            jitted: info.size_jitted(),
            processed: number_after(&log, "processed ")?,
            peak_states: number_after(&log, "peak_states ")?,
            microseconds: number_after(&log, "verification time ")?,
            stack: word_after(&log, "stack depth ")?.to_owned(),
        })
    }
}

impl fmt::Display for Cost {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let milliseconds = self.microseconds as f64 / 1000.0;
        write!(
            f,
            "{:>13} {:>10} {:>12} {milliseconds:>8.1} {:>10}  {}",
            self.instructions, self.processed, self.peak_states, self.jitted, self.stack
        )
    }
}

fn load(program: &mut Program) -> Result<(), ProgramError> {
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        other => panic!("this test does not know how to load a program of type {:?}", other.prog_type()),
    }
}

/// The verifier's log of a valid program. aya keeps the log only of programs that fail to load, so the kernel
/// verifies this one and then fails for lack of a file descriptor.
fn verifier_log(load: impl FnOnce() -> Result<(), ProgramError>) -> Result<String> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, 0, hard)?;
    let outcome = load();
    setrlimit(Resource::RLIMIT_NOFILE, soft, hard)?;
    match outcome {
        Err(ProgramError::LoadError { io_error, verifier_log })
            if io_error.raw_os_error() == Some(nix::libc::EMFILE) =>
        {
            Ok(verifier_log.to_string())
        }
        Err(refused) => Err(refused.into()),
        Ok(()) => bail!("a program was loaded without a file descriptor"),
    }
}

fn number_after(log: &str, label: &str) -> Result<u64> {
    let word = word_after(log, label)?;
    word.parse().with_context(|| format!("{word:?} after {label:?} in the verifier's log is not a number"))
}

fn word_after<'a>(log: &'a str, label: &str) -> Result<&'a str> {
    let (_, rest) =
        log.split_once(label).with_context(|| format!("no {label:?} in the verifier's log:\n{log}"))?;
    rest.split_whitespace().next().with_context(|| format!("nothing after {label:?} in the verifier's log"))
}
