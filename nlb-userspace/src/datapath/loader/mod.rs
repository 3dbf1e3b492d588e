//! Loads the XDP programs and attaches them to interfaces.

mod clock;
mod errors;
mod kernel_types;
mod lost_redirects;
mod object;

use std::fs;
use std::ops::RangeInclusive;

use anyhow::{anyhow, bail};
use aya::programs::tc::{self, SchedClassifierLink, TcAttachType};
use aya::programs::xdp::{XdpLink, XdpLinkId, XdpMode as Attach};
use aya::programs::{SchedClassifier, TestRun, TestRunAttrs, TestRunOptions, TestRunResult, Xdp};
use aya::util::KernelVersion;
use aya::{Ebpf, EbpfLoader, VerifierLogLevel};
use aya_obj::programs::XdpAttachType;
use nix::net::if_::if_nametoindex;
use nlb_common::abi::{PUNTED_BYTES, Settings};
use nlb_common::flow::{IdleTimes, WAYS};
use nlb_common::verdict;
use tracing::{info, warn};

pub(crate) use super::errors::error_chain;
pub use clock::Clock;
use clock::jiffies;
use errors::{explain_attach, explain_load, retry_verifier};
use object::{JIFFIES, OBJECT, missing, program};

use super::maps::programs::{self as program_arrays, ProgramArrays};
use super::maps::{prefixes, swap};
use crate::config::{Flows, OuterSources, XdpMode};
use crate::model::settings::TableSizes;
use crate::model::snat::SnatAddresses;

/// The first kernel with live frames: a test run really sends its frames.
const LIVE_FRAMES: KernelVersion = KernelVersion::new(5, 18, 0);

/// The settings that the programs are loaded with.
#[derive(Clone, Debug)]
pub struct LoadConfig {
    /// The flow table has room for `flows.max`, rounded up to a power of two.
    pub flows: Flows,
    pub limits: TableSizes,
    pub snat_ports: RangeInclusive<u16>,
    pub snat_addresses: SnatAddresses,
    pub gue_port: u16,
    pub ipip_sources: OuterSources,
    /// Whether packets may leave by the interface that they arrived on with XDP_TX. A veth loses such packets
    /// unless an XDP program is attached to its other end; a redirect, which is a little slower, arrives
    /// there.
    pub use_tx: bool,
}

impl LoadConfig {
    pub fn idle_times(&self, clock: &Clock) -> IdleTimes {
        IdleTimes {
            opening: clock.ticks(self.flows.opening),
            established: clock.ticks(self.flows.established),
            closing: clock.ticks(self.flows.closing),
            udp: clock.ticks(self.flows.udp),
            time_wait: clock.ticks(self.flows.time_wait),
        }
    }

    pub fn flow_buckets(&self) -> u32 {
        self.flows.max.div_ceil(WAYS as u32).next_power_of_two()
    }
}

/// The XDP action for a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum XdpAction {
    Dropped,
    /// The kernel's stack gets the frame.
    Passed,
    /// The frame leaves by the interface that it arrived on.
    SentBack,
    /// The frame leaves by any interface.
    SentOn,
}

/// A loaded object.
pub struct Datapath {
    pub bpf: Ebpf,
    clock: Clock,
    live_frames: bool,
    _program_arrays: Vec<ProgramArrays>,
}

impl Datapath {
    /// Loads the balancer for XDP. The maps have the given sizes and are empty.
    pub fn load(load_config: &LoadConfig) -> anyhow::Result<Self> {
        let clock = Clock::measure()?;
        let mut bpf = open(load_config, &clock, VerifierLogLevel::default())?;
        retry_verifier(program(&mut bpf, BALANCER)?, Xdp::load)?;
        retry_verifier(program(&mut bpf, JIFFIES)?, Xdp::load)?;
        retry_verifier(classifier(&mut bpf, INJECT)?, SchedClassifier::load)?;
        let mut programs = program_arrays::take(&mut bpf, "PROGRAMS")?;
        for called in verdict::Program::ALL {
            let program = program(&mut bpf, program_name(called))?;
            retry_verifier(program, Xdp::load)?;
            programs.set(called as u32, program.fd()?, 0)?;
        }
        Ok(Datapath { bpf, clock, live_frames: has_live_frames()?, _program_arrays: vec![programs] })
    }

    /// Loads the balancer for TC ingress, too. It refers to maps, so it has to be loaded before a caller
    /// takes them.
    pub fn load_tc_ingress(&mut self) -> anyhow::Result<()> {
        let bpf = &mut self.bpf;
        retry_verifier(classifier(bpf, TC_INGRESS)?, SchedClassifier::load)?;
        let mut programs = program_arrays::take(bpf, "TC_PROGRAMS")?;
        for (called, name) in [
            (verdict::Program::Icmp, TC_ICMP),
            (verdict::Program::TooBig, TC_TOO_BIG),
            (verdict::Program::Fragments, TC_FRAGMENTS),
            (verdict::Program::Quic, TC_QUIC),
        ] {
            let program = classifier(bpf, name)?;
            retry_verifier(program, SchedClassifier::load)?;
            programs.set(called as u32, program.fd()?, 0)?;
        }
        self._program_arrays.push(programs);
        Ok(())
    }

    /// Has the packets counted that the kernel cannot redirect. The NLB works without that, so a failure is
    /// logged. As above, this has to come before a caller takes maps.
    pub(super) fn count_lost_redirects(&mut self) {
        if let Err(error) = lost_redirects::attach(&mut self.bpf) {
            warn!(
                "packets that the kernel cannot redirect count as sent, and are not counted as lost \
                 (nlb_lost_redirects_total): {error:#}"
            );
        }
    }

    /// Loads the decapsulator for dsr-ipip, and for gue on this UDP port.
    pub fn load_decap(gue_port: u16) -> anyhow::Result<Self> {
        let clock = Clock::measure()?;
        let mut bpf = EbpfLoader::new()
            .override_global("GUE_PORT", &gue_port, true)
            .map_max_entries("DECAP_PEERS", 1 << 16)
            .load(OBJECT)
            .map_err(explain_load)?;
        retry_verifier(program(&mut bpf, DECAP)?, Xdp::load)?;
        Ok(Datapath { bpf, clock, live_frames: has_live_frames()?, _program_arrays: Vec::new() })
    }

    /// The balancer for XDP.
    pub fn for_interfaces(&mut self) -> anyhow::Result<Balancer> {
        let program = program(&mut self.bpf, BALANCER)?;
        Ok(Balancer(Xdp::from_program_info(program.info()?, BALANCER.into(), XdpAttachType::Interface)?))
    }

    /// The balancer for TC ingress, once it is loaded.
    pub fn tc_ingress(&mut self) -> anyhow::Result<TcIngress> {
        let program = classifier(&mut self.bpf, TC_INGRESS)?;
        Ok(TcIngress(SchedClassifier::from_program_info(program.info()?, TC_INGRESS.into())?))
    }

    pub fn attach_decap(&mut self, interface: &str, mode: XdpMode) -> anyhow::Result<XdpMode> {
        let ifindex = if_nametoindex(interface)
            .map_err(|_| anyhow!("there is no interface {interface}; `ip link` lists them"))?;
        attach(program(&mut self.bpf, DECAP)?, ifindex, interface, mode).map(|(_, mode)| mode)
    }

    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// Whether the kernel supports [`inject_live`](Self::inject_live).
    pub fn has_live_frames(&self) -> bool {
        self.live_frames
    }

    /// Sends a frame through the balancer as if it had just arrived on the interface. The kernel really sends
    /// what the program forwards.
    pub fn inject_live(&self, frame: &[u8], ifindex: u32) -> anyhow::Result<()> {
        let context = arrival(frame, ifindex);
        let options = TestRunOptions {
            data_in: Some(frame),
            ctx_in: Some(&context),
            attrs: TestRunAttrs::new().xdp_live_frames(1),
            ..TestRunOptions::new()
        };
        self.run_balancer(options).map(drop)
    }

    /// Runs the balancer on a frame as if it had just arrived on the interface, and returns the action and
    /// the frame that results. The run changes flows, counters and other maps as any packet does.
    pub fn test_run(&self, frame: &[u8], ifindex: u32) -> anyhow::Result<(XdpAction, Vec<u8>)> {
        let context = arrival(frame, ifindex);
        let mut out = vec![0; frame.len() + ROOM_FOR_HEADERS];
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut out),
            ctx_in: Some(&context),
            ..TestRunOptions::new()
        };
        let run = self.run_balancer(options)?;
        out.truncate(run.data_size_out as usize);
        let action = match run.return_value {
            2 => XdpAction::Passed,
            3 => XdpAction::SentBack,
            4 => XdpAction::SentOn,
            _ => XdpAction::Dropped,
        };
        Ok((action, out))
    }

    fn run_balancer(&self, options: TestRunOptions) -> anyhow::Result<TestRunResult> {
        let program: &Xdp = self.bpf.program(BALANCER).ok_or_else(|| missing(BALANCER))?.try_into()?;
        program.test_run(options).map_err(|error| anyhow!("{}", error_chain(&error)))
    }

    /// Sends a frame out of an interface, as it is.
    pub fn send(&self, frame: &[u8], ifindex: u32) -> anyhow::Result<()> {
        self.pass_to_kernel(frame, ifindex, false)
    }

    /// Passes a frame to the kernel's stack as if it had arrived on the interface.
    pub fn receive(&self, frame: &[u8], ifindex: u32) -> anyhow::Result<()> {
        self.pass_to_kernel(frame, ifindex, true)
    }

    fn pass_to_kernel(&self, frame: &[u8], ifindex: u32, ingress: bool) -> anyhow::Result<()> {
        // `struct __sk_buff`: twelve words that the kernel sets, and the control block.
        let mut context = [0_u32; 17];
        (context[12], context[13]) = (ifindex, ingress as u32);
        let context = context.map(u32::to_ne_bytes).concat();
        let options =
            TestRunOptions { data_in: Some(frame), ctx_in: Some(&context), ..TestRunOptions::new() };
        let program: &SchedClassifier =
            self.bpf.program(INJECT).ok_or_else(|| missing(INJECT))?.try_into()?;
        let run = program.test_run(options).map_err(|error| anyhow!("{}", error_chain(&error)))?;
        match run.return_value as i32 {
            0 => Ok(()),
            error @ ..0 => Err(std::io::Error::from_raw_os_error(-error).into()),
            _ => bail!("the interface or the stack had no room for it"),
        }
    }

    /// The current tick, as flows are stamped with.
    pub fn now(&self) -> anyhow::Result<u16> {
        Ok((self.jiffies()? >> self.clock.shift) as u16)
    }

    /// The current jiffies.
    pub fn jiffies(&self) -> anyhow::Result<u32> {
        let program: &Xdp = self.bpf.program(JIFFIES).ok_or_else(|| missing(JIFFIES))?.try_into()?;
        jiffies(program)
    }

    /// The balancer for XDP, for tests that run it on their own packets.
    pub fn balancer(&mut self) -> anyhow::Result<&mut Xdp> {
        program(&mut self.bpf, BALANCER)
    }

    /// The balancer for TC ingress, for such tests.
    pub fn balancer_at_tc_ingress(&mut self) -> anyhow::Result<&mut SchedClassifier> {
        classifier(&mut self.bpf, TC_INGRESS)
    }

    /// The decapsulator, for such tests.
    pub fn decapsulator(&mut self) -> anyhow::Result<&mut Xdp> {
        program(&mut self.bpf, DECAP)
    }
}

/// Opens the object with the balancer's settings and empty maps of the given sizes; none of its programs is
/// loaded yet. `log` is what the kernel's verifier logs about a program that it rejects.
pub fn open(load_config: &LoadConfig, clock: &Clock, log: VerifierLogLevel) -> anyhow::Result<Ebpf> {
    let settings = settings(load_config, clock);
    let ipip_sources = load_config.ipip_sources.rows();
    let snat_sources = load_config.snat_addresses.rows();
    let pools = load_config.limits.pool_numbers().into();
    let prefixes = load_config.limits.source_prefixes.saturating_add(load_config.limits.rate_limits.into());
    // Twice the prefixes: the old and the new ones, while one set replaces the other.
    let prefix_slabs = prefixes::slabs(prefixes.saturating_mul(2));
    EbpfLoader::new()
        .verifier_log_level(log)
        .override_global("SETTINGS", &settings, true)
        .override_global("GUE_PORT", &load_config.gue_port, true)
        .override_global("IPIP_SOURCES", &ipip_sources, true)
        .override_global("SNAT_SOURCES", &snat_sources, true)
        .map_max_entries("FLOWS", load_config.flow_buckets())
        .map_max_entries("BACKENDS", load_config.limits.backends as u32 + 1)
        .map_max_entries("BACKEND_STATS", load_config.limits.backends as u32 + 1)
        .map_max_entries("CAPACITIES", load_config.limits.backends as u32 + 1)
        .map_max_entries("SERVICES", load_config.limits.services as u32 + 1)
        .map_max_entries("POOLS", pools + 1)
        .map_max_entries("MAGLEV_TABLES", swap::slabs(pools))
        .map_max_entries("VIPS", load_config.limits.addresses as u32 + 1)
        .map_max_entries("PREFIXES", prefix_slabs)
        .map_max_entries("PREFIX_LENGTHS", load_config.limits.services as u32 + 1)
        // Twice the backends: a plan adds the new server ids before it removes the old ones.
        .map_max_entries("QUIC_SERVERS", 2 * (load_config.limits.backends as u32 + 1))
        .map_max_entries("RATE_LIMITS", load_config.limits.rate_limits as u32 + 1)
        .map_max_entries("LIMIT_STATE", load_config.limits.rate_limits as u32 + 1)
        .map_max_entries("LIMIT_STATS", load_config.limits.rate_limits as u32 + 1)
        .load(OBJECT)
        .map_err(explain_load)
}

const BALANCER: &str = "nlb";
const DECAP: &str = "nlb_decap";
const INJECT: &str = "nlb_inject";
const TC_INGRESS: &str = "nlb_tc";
const TC_ICMP: &str = "nlb_tc_icmp";
const TC_TOO_BIG: &str = "nlb_tc_too_big";
const TC_FRAGMENTS: &str = "nlb_tc_fragments";
const TC_QUIC: &str = "nlb_tc_quic";

/// The balancer for XDP, at the drivers of interfaces.
pub struct Balancer(Xdp);

/// An XDP attachment, which ends when it is dropped.
pub struct XdpAttachment(#[expect(dead_code, reason = "kept for what dropping it does")] XdpLink);

impl Balancer {
    /// Attaches the balancer, and returns the mode in use.
    pub fn attach(
        &mut self,
        ifindex: u32,
        name: &str,
        mode: XdpMode,
    ) -> anyhow::Result<(XdpAttachment, XdpMode)> {
        let (id, mode) = attach(&mut self.0, ifindex, name, mode)?;
        Ok((XdpAttachment(self.0.take_link(id)?), mode))
    }
}

/// The balancer at TC ingress, where the kernel's stack takes packets in.
pub struct TcIngress(SchedClassifier);

/// A TC ingress attachment, which ends when it is dropped.
pub struct TcAttachment(#[expect(dead_code, reason = "kept for what dropping it does")] SchedClassifierLink);

impl TcIngress {
    pub fn attach(&mut self, interface: &str) -> anyhow::Result<TcAttachment> {
        // Before tcx (Linux 6.6) a clsact queueing discipline holds the programs, and a daemon that was
        // killed may have left some.
        if KernelVersion::current()? < KernelVersion::new(6, 6, 0) {
            // The kernel refuses this if the discipline exists already.
            let _ = tc::qdisc_add_clsact(interface);
            let _ = tc::qdisc_detach_program(interface, TcAttachType::Ingress, TC_INGRESS);
        }
        let attached = self.0.attach(interface, TcAttachType::Ingress);
        let id = attached.map_err(|error| explain_attach(interface, error))?;
        Ok(TcAttachment(self.0.take_link(id)?))
    }
}

fn program_name(called: verdict::Program) -> &'static str {
    match called {
        verdict::Program::Icmp => "nlb_icmp",
        verdict::Program::TooBig => "nlb_too_big",
        verdict::Program::Fragments => "nlb_fragments",
        verdict::Program::Gue => "nlb_gue",
        verdict::Program::Quic => "nlb_quic",
        verdict::Program::Reject => "nlb_reject",
    }
}

fn classifier<'a>(bpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut SchedClassifier> {
    Ok(bpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?)
}

fn has_live_frames() -> anyhow::Result<bool> {
    Ok(KernelVersion::current()? >= LIVE_FRAMES)
}

/// `struct xdp_md` of a frame that arrives: data, data_end, data_meta, ingress_ifindex, rx_queue_index,
/// egress_ifindex.
pub fn arrival(frame: &[u8], ifindex: u32) -> Vec<u8> {
    [0, frame.len() as u32, 0, ifindex, 0, 0].map(u32::to_ne_bytes).concat()
}

/// The program adds fewer bytes of headers.
const ROOM_FOR_HEADERS: usize = 256;

/// Attaches a program, and returns the mode in use.
fn attach(
    program: &mut Xdp,
    ifindex: u32,
    name: &str,
    mode: XdpMode,
) -> anyhow::Result<(XdpLinkId, XdpMode)> {
    let native = match mode {
        XdpMode::Generic => None,
        XdpMode::Auto | XdpMode::Native => Some(program.attach_to_if_index(ifindex, Attach::Driver)),
    };
    match native {
        Some(Ok(link)) => {
            info!("attached to {name} in native mode");
            return Ok((link, XdpMode::Native));
        }
        Some(Err(error)) if mode == XdpMode::Native => return Err(explain_attach(name, error)),
        Some(Err(error)) => {
            warn!("using generic mode, which is slower: {:#}", explain_attach(name, error))
        }
        None => {}
    }
    let link =
        program.attach_to_if_index(ifindex, Attach::Skb).map_err(|error| explain_attach(name, error))?;
    info!("attached to {name} in generic mode");
    Ok((link, XdpMode::Generic))
}

fn settings(load_config: &LoadConfig, clock: &Clock) -> Settings {
    let idle = load_config.idle_times(clock);
    let ports = load_config.snat_ports.end() - load_config.snat_ports.start() + 1;
    Settings {
        flow_mask: load_config.flow_buckets() - 1,
        tick_shift: clock.shift,
        opening: idle.opening,
        established: idle.established,
        closing: idle.closing,
        udp: idle.udp,
        snat_first: *load_config.snat_ports.start(),
        snat_count: ports,
        snat_stride: stride(ports),
        time_wait: idle.time_wait,
        use_tx: load_config.use_tx as u32,
        jiffy: 1_000_000_000 / clock.hertz,
        snat_addresses: load_config.snat_addresses.iter().next().is_some() as u32,
    }
}

/// The step from one SNAT port that a search tries to the next. Multiples of the golden section spread evenly
/// (Knuth, "The Art of Computer Programming", volume 3, section 6.4), and steps without a common divisor lead
/// through all ports.
fn stride(ports: u16) -> u16 {
    const GOLDEN_SECTION: f64 = 0.618_034;
    let divides = |a: u16, b: u16| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a > 1
    };
    let nearest = (f64::from(ports) * GOLDEN_SECTION) as u16;
    (nearest.max(1)..ports).find(|step| !divides(ports, *step)).unwrap_or(1)
}

/// Makes loopback forward, which the program's FIB look-ups need (`nlb-ebpf/src/next_hop.rs`), and accept
/// packets from one of the host's own addresses to another: the TC ingress program forwards such packets to
/// loopback. The settings do not affect packets on other interfaces, and loopback has no others.
pub fn prepare_host() -> anyhow::Result<()> {
    const SETTINGS: [(&str, &str); 3] =
        [("ipv4", "forwarding"), ("ipv6", "forwarding"), ("ipv4", "accept_local")];
    for (family, setting) in SETTINGS {
        let path = format!("/proc/sys/net/{family}/conf/lo/{setting}");
        let Ok(now) = fs::read_to_string(&path) else {
            // A kernel without this address family needs no setting for it.
            continue;
        };
        if now.trim() == "1" {
            continue;
        }
        if let Err(error) = fs::write(&path, "1") {
            bail!(
                "cannot write {path} ({error}), which route look-ups for replies to clients need; run `sysctl -w \
                 net.{family}.conf.lo.{setting}=1` on the host"
            );
        }
    }
    Ok(())
}

/// The longest frame that the programs can be run on: a page, without the head- and tailroom that the kernel
/// adds.
pub const MAX_RUN: usize = 3520;

const _: () = assert!(PUNTED_BYTES <= MAX_RUN);
