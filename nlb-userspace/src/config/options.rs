//! Settings as they are given: by flag, by variable or in the file.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use super::{AcceptMac, Mode, Net, Ports, Span, XdpMode};

const STATE_DIR: &str = "/var/lib/nlb";

/// One source's settings; those that it leaves out come from the next source. Flags, variables and keys of
/// the file have the same names.
#[derive(Clone, Debug, Default, PartialEq, Deserialize, Serialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// A TOML file with the settings below, such as `vip = ["192.0.2.1"]`; an unknown key is an error
    #[arg(long, env = "NLB_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// The directory of settings made over gRPC, and of what operators set; one directory for each daemon
    /// [default: /var/lib/nlb]
    #[arg(long, env = "NLB_STATE_DIR", value_name = "DIRECTORY")]
    #[serde(skip)]
    pub state_dir: Option<PathBuf>,

    /// Start without the routes, limits, weights and drains that operators set; their file is moved aside
    /// [default: false]
    #[arg(long, env = "NLB_IGNORE_STATE", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    #[serde(skip)]
    pub ignore_state: Option<bool>,

    /// Interfaces to balance on; at least one is required [repeat, or separate by commas]
    #[arg(long, env = "NLB_IFACE", value_name = "NAME", value_delimiter = ',')]
    pub iface: Option<Vec<String>>,

    /// Virtual addresses that routes may claim, or CIDRs of them; wildcard destinations stand for the single
    /// addresses among them; none: any address [repeat, or separate by commas]
    #[arg(long, env = "NLB_VIP", value_name = "ADDRESS|CIDR", value_delimiter = ',')]
    pub vip: Option<Vec<Net>>,

    /// The XDP mode [default: auto]
    #[arg(long, env = "NLB_XDP_MODE", value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,

    /// Other destination MAC addresses whose frames an interface balances, such as that of a virtual router;
    /// `any`: every frame that the driver receives [repeat, or separate by commas]
    #[arg(long, env = "NLB_ACCEPT_MAC", value_name = "IFACE=MAC|any", value_delimiter = ',')]
    pub accept_mac: Option<Vec<AcceptMac>>,

    /// Ports, of TCP and UDP, that routes for every port leave to this host where a VIP is an address of its
    /// own, together with the gRPC port: ssh, and DHCP's answers [default: 22,68,546]
    #[arg(long, env = "NLB_PROTECTED_PORTS", value_name = "PORT", value_delimiter = ',')]
    pub protected_ports: Option<Vec<u16>>,

    /// The address of the gRPC server, which requires no credentials [default: 127.0.0.1:50051]
    #[arg(long, env = "NLB_GRPC", value_name = "ADDRESS:PORT")]
    pub grpc: Option<SocketAddr>,

    /// The forward mode of modules that name none [default: nat]
    #[arg(long, env = "NLB_FORWARD_MODE", value_name = "MODE")]
    pub forward_mode: Option<Mode>,

    /// Source ports for translated connections [default: 1024-32767]
    #[arg(long, env = "NLB_SNAT_PORTS", value_name = "FIRST-LAST")]
    pub snat_ports: Option<Ports>,

    /// Source addresses for translated connections, which modules reply to, selected by the flow's hash: at
    /// most 16 of a family; none: the one that the kernel's route to the module prefers; repeat, or separate
    /// by commas
    #[arg(long, env = "NLB_SNAT_ADDRESS", value_name = "ADDRESS", value_delimiter = ',')]
    pub snat_address: Option<Vec<IpAddr>>,

    /// Time for which the source port of a closed connection rests while others are free: as long as backends
    /// keep connections in TIME_WAIT [default: 1m]
    #[arg(long, env = "NLB_SNAT_REST", value_name = "TIME")]
    pub snat_rest: Option<Span>,

    /// UDP port of packets to modules with forward mode gue; `nlb decap` has the same flag [default: 6080]
    #[arg(long, env = "NLB_GUE_PORT", value_name = "PORT")]
    pub gue_port: Option<u16>,

    /// Prefixes of the outer sources of forward mode dsr-ipip, selected by the flow's hash: one of IPv4, one
    /// of IPv6, or both; none: the NLB's own address [repeat, or separate by commas]
    #[arg(long, env = "NLB_IPIP_SOURCES", value_name = "CIDR", value_delimiter = ',')]
    pub ipip_sources: Option<Vec<Net>>,

    /// How often modules are asked to send heartbeats [default: 10s]
    #[arg(long, env = "NLB_HEARTBEAT_INTERVAL", value_name = "TIME")]
    pub heartbeat_interval: Option<Span>,

    /// Missed heartbeats after which a module gets no new flows [default: 3]
    #[arg(long, env = "NLB_MISSED_HEARTBEATS", value_name = "NUMBER")]
    pub missed_heartbeats: Option<u32>,

    /// Time without heartbeats after which a module is evicted [default: 5m]
    #[arg(long, env = "NLB_EVICT_AFTER", value_name = "TIME")]
    pub evict_after: Option<Span>,

    /// How long a leaving module's connections may last, if the module gives no time [default: 30s]
    #[arg(long, env = "NLB_DRAIN_TIMEOUT", value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Time between the steps of a version's promotion, and after the last one [default: 30s]
    #[arg(long, env = "NLB_PROMOTION_STEP", value_name = "TIME")]
    pub promotion_step: Option<Span>,

    /// Failed requests or reset flows, in percent, beyond which a promotion is rolled back [default: 5]
    #[arg(long, env = "NLB_PROMOTION_MAX_ERROR_PERCENT", value_name = "NUMBER")]
    pub promotion_max_error_percent: Option<u32>,

    /// TCP resets of a module's new flows, in percent, beyond which the module is ejected for a while; 0:
    /// never [default: 50]
    #[arg(long, env = "NLB_MAX_RESET_PERCENT", value_name = "NUMBER")]
    pub max_reset_percent: Option<u32>,

    /// How long a module is ejected at first for its TCP resets; doubled each time the resets recur [default:
    /// 10s]
    #[arg(long, env = "NLB_RESET_BACK_OFF", value_name = "TIME")]
    pub reset_back_off: Option<Span>,

    /// Use a pool of which every module is unhealthy, instead of refusing its clients [default: true]
    #[arg(long, env = "NLB_FAIL_OPEN", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub fail_open: Option<bool>,

    /// Reject clients that no module can serve by TCP RST or ICMP port unreachable, instead of ignoring them
    /// [default: false]
    #[arg(long, env = "NLB_REJECT", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub reject: Option<bool>,

    /// Drop packets to ports of a VIP that have no service, instead of passing them to the kernel [default:
    /// false]
    #[arg(long, env = "NLB_DROP_CLOSED_PORTS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub drop_closed_ports: Option<bool>,

    /// Ask modules (CanHandle) about ports of a VIP that no route covers, and learn a route for each that a
    /// module can handle; a module that accepts every port opens every port of the VIPs [default: false]
    #[arg(long, env = "NLB_LEARN_ROUTES", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub learn_routes: Option<bool>,

    /// Let modules leave registration_id empty [default: false]
    #[arg(long, env = "NLB_ACCEPT_EMPTY_IDS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub accept_empty_ids: Option<bool>,

    /// Modules that may be registered at a time, up to 65,536 [default: 1024]
    #[arg(long, env = "NLB_MAX_MODULES", value_name = "NUMBER")]
    pub max_modules: Option<usize>,

    /// Routes of all modules and operators together, up to 1,048,576 [default: 8192]
    #[arg(long, env = "NLB_MAX_ROUTES", value_name = "NUMBER")]
    pub max_routes: Option<usize>,

    /// Backends (module addresses and ports) in the kernel's table [default: 4096]
    #[arg(long, env = "NLB_MAX_BACKENDS", value_name = "NUMBER")]
    pub max_backends: Option<u16>,

    /// Services (VIP, port and protocol) in the kernel's table [default: 4096]
    #[arg(long, env = "NLB_MAX_SERVICES", value_name = "NUMBER")]
    pub max_services: Option<u16>,

    /// Pools, which are groups of modules that share traffic; each takes 128 KiB of the kernel's memory while
    /// it is in use [default: 1024]
    #[arg(long, env = "NLB_MAX_POOLS", value_name = "NUMBER")]
    pub max_pools: Option<u16>,

    /// Source prefixes of routes in the kernel's table, counted once for each service that distinguishes
    /// clients by them; their memory in the kernel grows with them, 4 MiB at first and 8 to 16 MiB for
    /// 100,000 [default: 1048576]
    #[arg(long, env = "NLB_MAX_SOURCE_PREFIXES", value_name = "NUMBER")]
    pub max_source_prefixes: Option<u32>,

    /// Routes with counters of their own, in addition to those with a rate limit; the others are counted
    /// together, by module [default: 256]
    #[arg(long, env = "NLB_MAX_COUNTED_ROUTES", value_name = "NUMBER")]
    pub max_counted_routes: Option<u16>,

    /// Rate limits in force [default: 16384]
    #[arg(long, env = "NLB_MAX_RATE_LIMITS", value_name = "NUMBER")]
    pub max_rate_limits: Option<u16>,

    /// Virtual addresses, and the NLB's own addresses towards modules [default: 1024]
    #[arg(long, env = "NLB_MAX_VIPS", value_name = "NUMBER")]
    pub max_vips: Option<u16>,

    /// Flows in the kernel's table, 1024 to 67108864, of 32 bytes each [default: 1048576]
    #[arg(long, env = "NLB_MAX_FLOWS", value_name = "NUMBER")]
    pub max_flows: Option<u32>,

    /// Memory for the metrics of the last hour, in bytes, at least 1048576; beyond it the oldest are
    /// discarded [default: 67108864]
    #[arg(long, env = "NLB_METRICS_HISTORY_BYTES", value_name = "NUMBER")]
    pub metrics_history_bytes: Option<usize>,

    /// Idle time after which a TCP flow may be removed before its handshake is complete [default: 1m]
    #[arg(long, env = "NLB_IDLE_OPENING", value_name = "TIME")]
    pub idle_opening: Option<Span>,

    /// Idle time after which an established TCP flow may be removed [default: 2h]
    #[arg(long, env = "NLB_IDLE_ESTABLISHED", value_name = "TIME")]
    pub idle_established: Option<Span>,

    /// Idle time after which a TCP flow may be removed after the FINs of both sides or a RST [default: 10s]
    #[arg(long, env = "NLB_IDLE_CLOSING", value_name = "TIME")]
    pub idle_closing: Option<Span>,

    /// Idle time after which a UDP flow may be removed [default: 2m]
    #[arg(long, env = "NLB_IDLE_UDP", value_name = "TIME")]
    pub idle_udp: Option<Span>,
}

impl Options {
    /// The settings in the config file, if one is named.
    pub(super) fn file(&self) -> anyhow::Result<Options> {
        Ok(self.config.as_deref().map(read).transpose()?.unwrap_or_default())
    }

    pub(super) fn state_dir(&self) -> PathBuf {
        self.state_dir.clone().unwrap_or_else(|| PathBuf::from(STATE_DIR))
    }

    pub(super) fn or(self, file: Options) -> Options {
        macro_rules! either {
            ($($field:ident),+ $(,)?) => { Options { $($field: self.$field.or(file.$field)),+ } };
        }
        either!(
            config,
            state_dir,
            ignore_state,
            iface,
            vip,
            xdp_mode,
            accept_mac,
            protected_ports,
            grpc,
            forward_mode,
            snat_ports,
            snat_address,
            snat_rest,
            gue_port,
            ipip_sources,
            heartbeat_interval,
            missed_heartbeats,
            evict_after,
            drain_timeout,
            promotion_step,
            promotion_max_error_percent,
            max_reset_percent,
            reset_back_off,
            fail_open,
            reject,
            drop_closed_ports,
            learn_routes,
            accept_empty_ids,
            max_modules,
            max_routes,
            max_backends,
            max_services,
            max_pools,
            max_source_prefixes,
            max_counted_routes,
            max_rate_limits,
            max_vips,
            max_flows,
            metrics_history_bytes,
            idle_opening,
            idle_established,
            idle_closing,
            idle_udp,
        )
    }
}

fn read(path: &Path) -> anyhow::Result<Options> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the config file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the config file {}", path.display()))
}
