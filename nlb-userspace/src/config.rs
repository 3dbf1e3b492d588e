//! What an operator can set: by flag, by `NLB_` environment variable, or in a TOML file, in that order.

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::ValueEnum;
use ipnet::IpNet;
use serde::Deserialize;

use crate::compile::Limits;
use crate::lease::Terms;
use crate::model::ForwardMode;
use crate::registry;

/// The daemon's settings, complete and consistent.
#[derive(Clone, Debug)]
pub struct Config {
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    pub grpc: SocketAddr,
    /// Of modules that name none.
    pub forward_mode: ForwardMode,
    pub snat_ports: RangeInclusive<u16>,
    pub drain_timeout: Duration,
    pub flows: Flows,
    pub limits: Limits,
    pub registry: registry::Settings,
}

/// The flow table's size, and the idle times after which flows may be forgotten.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    pub max: u32,
    /// TCP before its handshake is complete.
    pub opening: Duration,
    pub established: Duration,
    /// TCP after FIN or RST.
    pub closing: Duration,
    pub udp: Duration,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum XdpMode {
    /// Native where the driver can, else generic.
    #[default]
    Auto,
    /// In the driver; an error where it cannot.
    Native,
    /// In the kernel's stack: for every interface, and slower.
    Generic,
}

/// As given; what is not given is left to the next source. Flags, variables and keys of the file bear the same names.
#[derive(Clone, Debug, Default, Deserialize, clap::Args)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// A TOML file with the settings below, such as `vip = ["192.0.2.1"]`
    #[arg(long, env = "NLB_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Interfaces to balance on [repeat, or separate by commas]
    #[arg(long, env = "NLB_IFACE", value_name = "NAME", value_delimiter = ',')]
    pub iface: Option<Vec<String>>,

    /// Virtual addresses that routes may claim, or CIDRs of them; none: any [repeat, or separate by commas]
    #[arg(long, env = "NLB_VIP", value_name = "ADDRESS|CIDR", value_delimiter = ',')]
    pub vip: Option<Vec<Net>>,

    /// Where in the kernel packets are met [default: auto]
    #[arg(long, env = "NLB_XDP_MODE", value_name = "MODE")]
    pub xdp_mode: Option<XdpMode>,

    /// Where the gRPC server listens [default: 127.0.0.1:50051]
    #[arg(long, env = "NLB_GRPC", value_name = "ADDRESS:PORT")]
    pub grpc: Option<SocketAddr>,

    /// How packets reach modules that do not say [default: nat]
    #[arg(long, env = "NLB_FORWARD_MODE", value_name = "MODE")]
    pub forward_mode: Option<Mode>,

    /// Source ports for translated connections [default: 1024-32767]
    #[arg(long, env = "NLB_SNAT_PORTS", value_name = "FIRST-LAST")]
    pub snat_ports: Option<Ports>,

    /// How often modules send heartbeats [default: 10s]
    #[arg(long, env = "NLB_HEARTBEAT_INTERVAL", value_name = "TIME")]
    pub heartbeat_interval: Option<Span>,

    /// Missed heartbeats after which a module gets no new flows [default: 3]
    #[arg(long, env = "NLB_MISSED_HEARTBEATS", value_name = "NUMBER")]
    pub missed_heartbeats: Option<u32>,

    /// Silence after which a module is forgotten [default: 5m]
    #[arg(long, env = "NLB_EVICT_AFTER", value_name = "TIME")]
    pub evict_after: Option<Span>,

    /// How long connections of a leaving module may live on, if it does not say [default: 30s]
    #[arg(long, env = "NLB_DRAIN_TIMEOUT", value_name = "TIME")]
    pub drain_timeout: Option<Span>,

    /// Use a pool of which every module is unhealthy, instead of refusing its clients [default: true]
    #[arg(long, env = "NLB_FAIL_OPEN", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub fail_open: Option<bool>,

    /// Let modules leave registration_id empty [default: false]
    #[arg(long, env = "NLB_ACCEPT_EMPTY_IDS", value_name = "BOOL", num_args = 0..=1, default_missing_value = "true")]
    pub accept_empty_ids: Option<bool>,

    /// Modules that may be registered at a time [default: 1024]
    #[arg(long, env = "NLB_MAX_MODULES", value_name = "NUMBER")]
    pub max_modules: Option<usize>,

    /// Routes of all modules and operators together [default: 8192]
    #[arg(long, env = "NLB_MAX_ROUTES", value_name = "NUMBER")]
    pub max_routes: Option<usize>,

    /// Backends (module addresses and ports) in the kernel's table [default: 4096]
    #[arg(long, env = "NLB_MAX_BACKENDS", value_name = "NUMBER")]
    pub max_backends: Option<u16>,

    /// Services (VIP, port and protocol) in the kernel's table [default: 4096]
    #[arg(long, env = "NLB_MAX_SERVICES", value_name = "NUMBER")]
    pub max_services: Option<u16>,

    /// Groups of modules that share traffic; each takes 128 KiB of the kernel's memory [default: 1024]
    #[arg(long, env = "NLB_MAX_POOLS", value_name = "NUMBER")]
    pub max_pools: Option<u16>,

    /// Virtual addresses, and the NLB's own towards modules [default: 1024]
    #[arg(long, env = "NLB_MAX_VIPS", value_name = "NUMBER")]
    pub max_vips: Option<u16>,

    /// Flows that the kernel remembers [default: 1048576]
    #[arg(long, env = "NLB_MAX_FLOWS", value_name = "NUMBER")]
    pub max_flows: Option<u32>,

    /// Idle time after which a TCP flow may be forgotten: before its handshake is complete [default: 1m]
    #[arg(long, env = "NLB_IDLE_OPENING", value_name = "TIME")]
    pub idle_opening: Option<Span>,

    /// ... once it is established [default: 2h]
    #[arg(long, env = "NLB_IDLE_ESTABLISHED", value_name = "TIME")]
    pub idle_established: Option<Span>,

    /// ... after FIN or RST [default: 10s]
    #[arg(long, env = "NLB_IDLE_CLOSING", value_name = "TIME")]
    pub idle_closing: Option<Span>,

    /// Idle time after which a UDP flow may be forgotten [default: 2m]
    #[arg(long, env = "NLB_IDLE_UDP", value_name = "TIME")]
    pub idle_udp: Option<Span>,
}

impl Options {
    /// Adds what the file says, and the defaults.
    pub fn complete(self) -> anyhow::Result<Config> {
        let file = self.config.as_deref().map(read).transpose()?.unwrap_or_default();
        self.or(file).check()
    }

    fn or(self, file: Options) -> Options {
        macro_rules! either {
            ($($field:ident),+ $(,)?) => { Options { $($field: self.$field.or(file.$field)),+ } };
        }
        either!(
            config,
            iface,
            vip,
            xdp_mode,
            grpc,
            forward_mode,
            snat_ports,
            heartbeat_interval,
            missed_heartbeats,
            evict_after,
            drain_timeout,
            fail_open,
            accept_empty_ids,
            max_modules,
            max_routes,
            max_backends,
            max_services,
            max_pools,
            max_vips,
            max_flows,
            idle_opening,
            idle_established,
            idle_closing,
            idle_udp,
        )
    }

    fn check(self) -> anyhow::Result<Config> {
        let interfaces = self.iface.unwrap_or_default();
        ensure!(!interfaces.is_empty(), "no interface to balance on; name one with --iface");
        if let Some(name) = interfaces.iter().find(|name| !is_interface_name(name)) {
            bail!("--iface {name:?} is not the name of an interface; `ip link` lists them");
        }
        let span =
            |given: Option<Span>, default: u64| given.map_or(Duration::from_secs(default), |span| span.0);
        let lease = Terms {
            interval: span(self.heartbeat_interval, 10),
            missed: self.missed_heartbeats.unwrap_or(3),
            evict_after: span(self.evict_after, 300),
        };
        ensure!(lease.missed > 0, "--missed-heartbeats must be at least 1");
        ensure!(
            lease.interval.checked_mul(lease.missed).is_some_and(|lapse| lapse < lease.evict_after),
            "--evict-after must be longer than --missed-heartbeats times --heartbeat-interval"
        );
        let limits = Limits {
            backends: self.max_backends.unwrap_or(4096),
            services: self.max_services.unwrap_or(4096),
            pools: self.max_pools.unwrap_or(1024),
            addresses: self.max_vips.unwrap_or(1024),
        };
        let least = [limits.backends, limits.services, limits.pools, limits.addresses].into_iter().min();
        ensure!(
            least != Some(0),
            "--max-backends, --max-services, --max-pools and --max-vips must be at least 1"
        );
        let max_flows = self.max_flows.unwrap_or(1 << 20);
        ensure!((1024..=1 << 26).contains(&max_flows), "--max-flows must be 1024 to {}", 1 << 26);
        Ok(Config {
            interfaces,
            xdp_mode: self.xdp_mode.unwrap_or_default(),
            grpc: self.grpc.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 50051))),
            forward_mode: self.forward_mode.unwrap_or(Mode::Nat).into(),
            snat_ports: self.snat_ports.map_or(1024..=32_767, |ports| ports.0),
            drain_timeout: span(self.drain_timeout, 30),
            flows: Flows {
                max: max_flows,
                opening: span(self.idle_opening, 60),
                established: span(self.idle_established, 7200),
                closing: span(self.idle_closing, 10),
                udp: span(self.idle_udp, 120),
            },
            limits,
            registry: registry::Settings {
                vips: self.vip.unwrap_or_default().into_iter().map(|net| net.0).collect(),
                fail_open: self.fail_open.unwrap_or(true),
                lease,
                max_modules: self.max_modules.unwrap_or(1024),
                max_routes: self.max_routes.unwrap_or(8192),
                accept_empty_ids: self.accept_empty_ids.unwrap_or(false),
            },
        })
    }
}

fn read(path: &Path) -> anyhow::Result<Options> {
    let text = fs::read_to_string(path)
        .with_context(|| format!("cannot read the config file {}", path.display()))?;
    toml::from_str(&text).with_context(|| format!("in the config file {}", path.display()))
}

/// As the kernel sees it.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
}

/// A forward mode as operators write it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub enum Mode {
    /// Destination rewritten; replies come back through the NLB
    Nat,
    /// MAC addresses rewritten; modules answer clients directly
    DsrL2,
    /// Wrapped in an outer IP header; modules answer clients directly
    DsrIpip,
}

impl From<Mode> for ForwardMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Nat => ForwardMode::Nat,
            Mode::DsrL2 => ForwardMode::DsrL2,
            Mode::DsrIpip => ForwardMode::DsrIpip,
        }
    }
}

/// An address, or a CIDR.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Net(pub IpNet);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let net = text.parse::<IpAddr>().map(IpNet::from).or_else(|_| text.parse::<IpNet>());
        let net = net.map_err(|_| format!("{text:?} is neither an address nor a CIDR"))?;
        if net.trunc() != net {
            return Err(format!(
                "{text:?} has bits beyond its prefix; write {} or {}",
                net.trunc(),
                net.addr()
            ));
        }
        match crate::vips::unusable(net.addr()) {
            Some(kind) if net.prefix_len() == net.max_prefix_len() => {
                Err(format!("{text:?} is {kind}: clients cannot connect to it"))
            }
            _ => Ok(Net(net)),
        }
    }
}

/// A range of ports.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Ports(pub RangeInclusive<u16>);

impl FromStr for Ports {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let ends =
            text.split_once('-').and_then(|(first, last)| Some((first.parse().ok()?, last.parse().ok()?)));
        match ends {
            Some((first, last)) if first > 0 && first <= last => Ok(Ports(first..=last)),
            _ => Err(format!("{text:?} is not a range of ports, such as 1024-32767")),
        }
    }
}

/// A length of time, such as `500ms`, `10s`, `5m` or `2h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Span(pub Duration);

impl FromStr for Span {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(end);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => 0,
        };
        let span =
            number.parse::<u32>().map(|number| Duration::from_millis(u64::from(number) * milliseconds));
        span.ok()
            .filter(|span| !span.is_zero())
            .map(Span)
            .ok_or_else(|| format!("{text:?} is not a length of time, such as 500ms, 10s, 5m or 2h"))
    }
}

macro_rules! from_text {
    ($($name:ident),+) => {$(
        impl TryFrom<String> for $name {
            type Error = String;

            fn try_from(text: String) -> Result<Self, String> {
                text.parse()
            }
        }
    )+};
}
from_text!(Net, Ports, Span);

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    fn flags(line: &str) -> Result<Options, clap::Error> {
        Line::try_parse_from(["nlb"].into_iter().chain(line.split_whitespace())).map(|line| line.options)
    }

    fn complete(line: &str) -> anyhow::Result<Config> {
        flags(line)?.complete()
    }

    #[test]
    fn an_interface_is_all_it_takes() {
        let config = complete("--iface eth0").unwrap();
        assert_eq!(config.interfaces, ["eth0"]);
        assert_eq!(config.grpc, "127.0.0.1:50051".parse().unwrap());
        assert_eq!(config.snat_ports, 1024..=32_767);
        assert_eq!(config.registry.lease, Terms::default());
        assert_eq!(config.forward_mode, ForwardMode::Nat);
        assert!(config.registry.fail_open && !config.registry.accept_empty_ids);
        assert!(complete("").unwrap_err().to_string().contains("--iface"));
    }

    #[test]
    fn lists_are_repeated_or_separated_by_commas() {
        let config = complete("--iface a,b --iface c --vip 192.0.2.1,198.51.100.0/24").unwrap();
        assert_eq!(config.interfaces, ["a", "b", "c"]);
        assert_eq!(config.registry.vips.to_string(), "192.0.2.1, 198.51.100.0/24");
    }

    #[test]
    fn flags_come_before_the_file_and_the_file_before_defaults() {
        let file: Options = toml::from_str(
            "iface = ['eth1']\ngrpc = '10.0.0.1:1'\nsnat_ports = '2000-3000'\nxdp_mode = 'generic'\n\
             heartbeat_interval = '2s'\nforward_mode = 'dsr-l2'\nvip = ['192.0.2.1']\nfail_open = false",
        )
        .unwrap();
        let config = flags("--iface eth0 --xdp-mode native --fail-open").unwrap().or(file).check().unwrap();
        assert_eq!(config.interfaces, ["eth0"]);
        assert_eq!(config.xdp_mode, XdpMode::Native);
        assert!(config.registry.fail_open);
        assert_eq!(config.grpc, "10.0.0.1:1".parse().unwrap());
        assert_eq!(config.snat_ports, 2000..=3000);
        assert_eq!(config.registry.lease.interval, Duration::from_secs(2));
        assert_eq!(config.forward_mode, ForwardMode::DsrL2);
        assert_eq!(config.drain_timeout, Duration::from_secs(30));
    }

    #[test]
    fn every_flag_has_its_variable() {
        use clap::CommandFactory;
        for argument in Line::command().get_arguments().filter(|argument| argument.get_id() != "help") {
            let flag = argument.get_long().expect("every setting has a flag");
            let variable = argument.get_env().expect("every setting has a variable").to_str().unwrap();
            assert_eq!(variable, format!("NLB_{}", flag.to_uppercase().replace('-', "_")));
        }
    }

    #[test]
    fn a_mistyped_key_in_the_file_is_an_error() {
        let error = toml::from_str::<Options>("ifaces = ['eth0']").unwrap_err().to_string();
        assert!(error.contains("ifaces"), "{error}");
    }

    #[test]
    fn nonsense_is_refused_with_the_flag_and_the_reason() {
        for (line, reason) in [
            ("--iface way-too-long-a-name", "--iface"),
            ("--iface a/b", "--iface"),
            ("--iface a --vip 192.0.2.1/24", "bits beyond its prefix"),
            ("--iface a --vip example.com", "neither an address nor a CIDR"),
            ("--iface a --vip 127.0.0.1", "loopback"),
            ("--iface a --snat-ports 0-5", "not a range of ports"),
            ("--iface a --snat-ports 5-4", "not a range of ports"),
            ("--iface a --heartbeat-interval 0s", "not a length of time"),
            ("--iface a --heartbeat-interval 10", "not a length of time"),
            ("--iface a --missed-heartbeats 0", "--missed-heartbeats"),
            ("--iface a --evict-after 30s", "--evict-after"),
            ("--iface a --max-backends 65536", "--max-backends"),
            ("--iface a --max-pools 0", "--max-pools"),
            ("--iface a --max-flows 1", "--max-flows"),
            ("--iface a --xdp-mode fast", "--xdp-mode"),
            ("--iface a --config /nowhere/nlb.toml", "/nowhere/nlb.toml"),
        ] {
            let error = format!("{:#}", complete(line).unwrap_err());
            assert!(error.contains(reason), "{line}: {error}");
        }
    }
}
