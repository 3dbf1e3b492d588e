//! The settings of the daemon, complete and consistent: what is given, and defaults for the rest.

use anyhow::{anyhow, bail, ensure};
use nlb_common::gue;
use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::{AcceptMac, Mode, Net, Options, OuterSources, Ports, Span, XdpMode};
use crate::model::settings::LeaseConfig;
use crate::model::settings::OutlierConfig;
use crate::model::settings::PromotionConfig;
use crate::model::settings::Settings;
use crate::model::settings::TableSizes;
use crate::model::snat::SnatAddresses;
use crate::model::vips::Vips;

/// The daemon's settings, complete and consistent.
#[derive(Clone, Debug)]
pub struct Config {
    pub state_dir: PathBuf,
    /// Start without what operators set.
    pub ignore_state: bool,
    pub interfaces: Vec<String>,
    pub xdp_mode: XdpMode,
    /// Destination MAC addresses that interfaces accept beside their own.
    pub accept_mac: Vec<AcceptMac>,
    /// Ports that routes for every port leave to this host.
    pub protected_ports: BTreeSet<u16>,
    pub grpc: SocketAddr,
    pub snat_ports: RangeInclusive<u16>,
    pub snat_addresses: SnatAddresses,
    pub gue_port: u16,
    /// The outer sources of dsr-ipip.
    pub ipip_sources: OuterSources,
    pub flows: Flows,
    /// The memory for the metrics of the last hour.
    pub metrics_history_bytes: usize,
    pub limits: TableSizes,
    pub registry: Settings,
}

/// The flow table's size, and the idle times after which flows may be removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Flows {
    pub max: u32,
    /// TCP before its handshake is complete.
    pub opening: Duration,
    pub established: Duration,
    /// TCP after both FINs or a RST.
    pub closing: Duration,
    pub udp: Duration,
    /// The rest of a source port after its connection.
    pub time_wait: Duration,
}

impl Options {
    /// The settings with their defaults, if they are consistent.
    pub(super) fn check(self) -> anyhow::Result<Config> {
        let state_dir = self.state_dir();
        let interfaces = self.iface.unwrap_or_default();
        ensure!(!interfaces.is_empty(), "no interface to balance on; name one with --iface");
        if let Some(name) = interfaces.iter().find(|name| !is_interface_name(name)) {
            bail!("--iface {name:?} is not the name of an interface; `ip link` lists them");
        }
        let accept_mac = self.accept_mac.unwrap_or_default();
        if let Some(accept) = accept_mac.iter().find(|accept| !interfaces.contains(&accept.interface)) {
            bail!("--accept-mac {accept}: --iface does not name {}", accept.interface);
        }
        let span =
            |given: Option<Span>, default: u64| given.map_or(Duration::from_secs(default), |span| span.0);
        let lease = LeaseConfig {
            interval: span(self.heartbeat_interval, 10),
            missed: self.missed_heartbeats.unwrap_or(3),
            evict_after: span(self.evict_after, 300),
        };
        ensure!(lease.missed > 0, "--missed-heartbeats must be at least 1");
        ensure!(
            lease.interval.checked_mul(lease.missed).is_some_and(|lapse| lapse < lease.evict_after),
            "--evict-after must be longer than --missed-heartbeats times --heartbeat-interval"
        );
        let promotion = PromotionConfig {
            step: span(self.promotion_step, 30),
            max_error_percent: self.promotion_max_error_percent.unwrap_or(5),
        };
        ensure!(promotion.max_error_percent <= 100, "--promotion-max-error-percent must be 0 to 100");
        let resets = OutlierConfig {
            max_percent: self.max_reset_percent.unwrap_or(50),
            back_off: span(self.reset_back_off, 10),
        };
        ensure!(resets.max_percent <= 100, "--max-reset-percent must be 0 to 100");
        let limits = TableSizes {
            backends: self.max_backends.unwrap_or(4096),
            services: self.max_services.unwrap_or(4096),
            pools: self.max_pools.unwrap_or(1024),
            addresses: self.max_vips.unwrap_or(1024),
            rate_limits: self.max_rate_limits.unwrap_or(16_384),
            source_prefixes: self.max_source_prefixes.unwrap_or(1 << 20),
            counted_routes: self.max_counted_routes.unwrap_or(256),
        };
        let TableSizes { backends, services, pools, addresses, rate_limits, .. } = limits;
        let least = [backends, services, pools, addresses, rate_limits].into_iter().min();
        ensure!(
            least != Some(0),
            "--max-backends, --max-services, --max-pools, --max-vips and --max-rate-limits must be at least 1"
        );
        let max_flows = self.max_flows.unwrap_or(1 << 20);
        ensure!((1024..=1 << 26).contains(&max_flows), "--max-flows must be 1024 to {}", 1 << 26);
        let gue_port = self.gue_port.unwrap_or(gue::PORT);
        ensure!(gue_port != 0, "--gue-port must be 1 to 65535");
        let nets = |given: Option<Vec<Net>>| given.unwrap_or_default().into_iter().map(|net| net.0);
        let vips: Vips = nets(self.vip).collect();
        let ipip_sources = OuterSources::new(&nets(self.ipip_sources).collect::<Vec<_>>(), &vips)?;
        let vips = vips.without(ipip_sources.nets());
        let metrics_history_bytes = self.metrics_history_bytes.unwrap_or(64 << 20);
        ensure!(
            (1 << 20..=1 << 36).contains(&metrics_history_bytes),
            "--metrics-history-bytes must be {} to {}",
            1 << 20,
            1_u64 << 36
        );
        // What a few gigabytes of memory hold.
        let (max_modules, max_routes) = (self.max_modules.unwrap_or(1024), self.max_routes.unwrap_or(8192));
        ensure!((1..=1 << 16).contains(&max_modules), "--max-modules must be 1 to {}", 1 << 16);
        ensure!((1..=1 << 20).contains(&max_routes), "--max-routes must be 1 to {}", 1 << 20);
        ensure!(limits.source_prefixes <= 1 << 24, "--max-source-prefixes must be at most {}", 1 << 24);
        Ok(Config {
            state_dir,
            ignore_state: self.ignore_state.unwrap_or(false),
            interfaces,
            xdp_mode: self.xdp_mode.unwrap_or_default(),
            accept_mac,
            protected_ports: self.protected_ports.map_or([22, 68, 546].into(), BTreeSet::from_iter),
            grpc: self.grpc.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 50051))),
            snat_ports: self.snat_ports.map_or(1024..=32_767, |ports| ports.0),
            snat_addresses: SnatAddresses::new(self.snat_address.unwrap_or_default())
                .map_err(|error| anyhow!("--snat-address: {error}"))?,
            gue_port,
            ipip_sources,
            flows: Flows {
                max: max_flows,
                opening: span(self.idle_opening, 60),
                established: span(self.idle_established, 7200),
                closing: span(self.idle_closing, 10),
                udp: span(self.idle_udp, 120),
                time_wait: span(self.snat_rest, 60),
            },
            metrics_history_bytes,
            limits,
            registry: Settings {
                vips,
                fail_open: self.fail_open.unwrap_or(true),
                reject: self.reject.unwrap_or(false),
                drop_closed_ports: self.drop_closed_ports.unwrap_or(false),
                learn_routes: self.learn_routes.unwrap_or(false),
                lease,
                promotion,
                resets,
                max_modules,
                max_routes,
                limits,
                accept_empty_ids: self.accept_empty_ids.unwrap_or(false),
                forward_mode: self.forward_mode.unwrap_or(Mode::Nat).into(),
                drain_timeout: span(self.drain_timeout, 30),
            },
        })
    }
}

impl Config {
    /// The protected ports, and the daemon's own.
    pub fn kept_ports(&self) -> BTreeSet<u16> {
        self.protected_ports.iter().copied().chain([self.grpc.port()]).collect()
    }
}

/// Whether the kernel accepts the name.
fn is_interface_name(name: &str) -> bool {
    (1..=15).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.chars().all(|c| c.is_ascii_graphic() && c != '/' && c != ':')
}

impl From<&Config> for Options {
    /// Every setting, defaults included.
    fn from(config: &Config) -> Options {
        let (registry, limits, flows) = (&config.registry, &config.limits, &config.flows);
        Options {
            config: None,
            state_dir: None,
            ignore_state: None,
            iface: Some(config.interfaces.clone()),
            vip: Some(registry.vips.nets().map(Net).collect()),
            xdp_mode: Some(config.xdp_mode),
            accept_mac: Some(config.accept_mac.clone()),
            protected_ports: Some(config.protected_ports.iter().copied().collect()),
            grpc: Some(config.grpc),
            forward_mode: Some(registry.forward_mode.into()),
            snat_ports: Some(Ports(config.snat_ports.clone())),
            snat_address: Some(config.snat_addresses.iter().collect()),
            gue_port: Some(config.gue_port),
            ipip_sources: Some(config.ipip_sources.nets().map(Net).collect()),
            heartbeat_interval: Some(Span(registry.lease.interval)),
            missed_heartbeats: Some(registry.lease.missed),
            evict_after: Some(Span(registry.lease.evict_after)),
            drain_timeout: Some(Span(registry.drain_timeout)),
            promotion_step: Some(Span(registry.promotion.step)),
            promotion_max_error_percent: Some(registry.promotion.max_error_percent),
            max_reset_percent: Some(registry.resets.max_percent),
            reset_back_off: Some(Span(registry.resets.back_off)),
            fail_open: Some(registry.fail_open),
            reject: Some(registry.reject),
            drop_closed_ports: Some(registry.drop_closed_ports),
            learn_routes: Some(registry.learn_routes),
            accept_empty_ids: Some(registry.accept_empty_ids),
            max_modules: Some(registry.max_modules),
            max_routes: Some(registry.max_routes),
            max_backends: Some(limits.backends),
            max_services: Some(limits.services),
            max_pools: Some(limits.pools),
            max_source_prefixes: Some(limits.source_prefixes),
            max_counted_routes: Some(limits.counted_routes),
            max_rate_limits: Some(limits.rate_limits),
            max_vips: Some(limits.addresses),
            max_flows: Some(flows.max),
            idle_opening: Some(Span(flows.opening)),
            idle_established: Some(Span(flows.established)),
            idle_closing: Some(Span(flows.closing)),
            snat_rest: Some(Span(flows.time_wait)),
            idle_udp: Some(Span(flows.udp)),
            metrics_history_bytes: Some(config.metrics_history_bytes),
        }
    }
}
