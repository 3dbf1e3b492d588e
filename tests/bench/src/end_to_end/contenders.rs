//! The contenders, each in a lab of its own: clients on one segment, backends on another, and between them
//! the host that balances or only forwards.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{HealthStatus, ModuleInstance, ModuleType, Protocol, RegisterModuleRequest, Route};
use nlb_testkit::lab::{DefaultRoute, Host, Lab, VIP4};
use nlb_testkit::process::Process;
use nlb_testkit::programs::{self, grpc};
use serde::{Deserialize, Serialize};

use super::{backend, baselines, proxies};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// No host between client and backend.
    Direct,
    /// Frames are made and dropped at once. That cost is part of all other figures of frames, too.
    XdpDrop,
    /// A minimal XDP program that sends a packet back to its sender.
    XdpTx,
    /// A minimal XDP program that redirects a packet to the other segment.
    XdpRedirect,
    /// The kernel as a router.
    Forwarding,
    Nftables,
    Haproxy,
    Nginx,
    Nlb,
}

impl Kind {
    pub const ALL: [Kind; 9] = [
        Kind::Direct,
        Kind::XdpDrop,
        Kind::XdpTx,
        Kind::XdpRedirect,
        Kind::Forwarding,
        Kind::Nftables,
        Kind::Haproxy,
        Kind::Nginx,
        Kind::Nlb,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Direct => "direct",
            Kind::XdpDrop => "XDP_DROP",
            Kind::XdpTx => "XDP_TX",
            Kind::XdpRedirect => "XDP_REDIRECT",
            Kind::Forwarding => "forwarding",
            Kind::Nftables => "nftables",
            Kind::Haproxy => "haproxy",
            Kind::Nginx => "nginx",
            Kind::Nlb => "nlb",
        }
    }

    /// Whether it can carry connections.
    pub fn connects(self) -> bool {
        !matches!(self, Kind::XdpDrop | Kind::XdpTx)
    }

    /// Whether it forwards frames that are part of no connection of its own.
    pub fn passes_frames(self) -> bool {
        !matches!(self, Kind::Direct | Kind::Haproxy | Kind::Nginx)
    }
}

/// The service, and the port of the backends.
const VIP: SocketAddr = SocketAddr::new(IpAddr::V4(VIP4), 80);
const PORT: u16 = 8080;

const BACKENDS: usize = 2;

pub struct Contender {
    pub kind: Kind,
    /// The addresses that clients connect to in turn.
    pub targets: Vec<SocketAddr>,
    /// The balancer in user space, if there is one.
    pub proxy: Option<Process>,
    // All of these are dropped before the lab is removed.
    _daemon: Option<Process>,
    _baseline: Option<Ebpf>,
    _backends: Vec<Process>,
    pub lab: Lab,
}

impl Contender {
    pub fn start(kind: Kind) -> Result<Contender> {
        let lab = match kind {
            Kind::Direct => Lab::one_arm(1, BACKENDS),
            _ => Lab::two_arm(1, BACKENDS, DefaultRoute::Nlb),
        }?;
        tune(&lab)?;
        let backends: Vec<_> = lab.modules.iter().map(|host| SocketAddr::new(host.v4.into(), PORT)).collect();
        let _backends = backends
            .iter()
            .zip(&lab.modules)
            .map(|(at, host)| backend::start(&lab, host, *at))
            .collect::<Result<_>>()?;
        let (mut proxy, mut _daemon, mut _baseline) = (None, None, None);
        match kind {
            Kind::Direct | Kind::XdpDrop | Kind::Forwarding => {}
            Kind::XdpTx => _baseline = Some(baselines::send_back(&lab)?),
            Kind::XdpRedirect => _baseline = Some(baselines::pass_on(&lab)?),
            Kind::Nftables => proxies::nftables(&lab, VIP, &backends)?,
            Kind::Haproxy => proxy = Some(proxies::haproxy(&lab, VIP, &backends)?),
            Kind::Nginx => proxy = Some(proxies::nginx(&lab, VIP, &backends)?),
            Kind::Nlb => _daemon = Some(nlb(&lab)?),
        }
        let targets = match kind {
            Kind::Nftables | Kind::Haproxy | Kind::Nginx | Kind::Nlb => vec![VIP],
            _ => backends,
        };
        Ok(Contender { kind, targets, proxy, _daemon, _baseline, _backends, lab })
    }

    /// The hosts at which frames to the first target arrive.
    pub fn receivers(&self) -> Vec<Ipv4Addr> {
        match self.targets[0] {
            VIP => self.lab.modules.iter().map(|host| host.v4).collect(),
            _ => vec![self.lab.modules[0].v4],
        }
    }

    /// Runs `work` in the network namespace of the clients' host.
    pub fn as_client<T: Send>(&self, work: impl FnOnce(&[SocketAddr]) -> Result<T> + Send) -> Result<T> {
        let done = self.lab.clients[0].netns.run(|| work(&self.targets))?;
        done.with_context(|| format!("a client of {}", self.kind.name()))
    }
}

/// Sets hosts up as busy servers: many ports, which may be reused after a second, and the congestion control
/// that is Linux's default, whatever this kernel was built with.
fn tune(lab: &Lab) -> Result<()> {
    for host in lab.clients.iter().chain(&lab.modules).chain([&lab.nlb]) {
        host.netns.sysctl("net/ipv4/ip_local_port_range", "1024 65535")?;
        host.netns.sysctl("net/ipv4/tcp_tw_reuse", 1)?;
        // Only the initial namespace may set the default for all connections, but a route may set its own.
        for route in host.netns.ip(&["route", "show"])?.lines() {
            let route: Vec<_> = route.split_whitespace().collect();
            host.netns.ip(&[&["route", "change"], &*route, &["congctl", "cubic"]].concat())?;
        }
    }
    // A switch does not filter IP packets.
    for filter in ["iptables", "ip6tables", "arptables"] {
        let setting = format!("net/bridge/bridge-nf-call-{filter}");
        if Path::new("/proc/sys").join(&setting).exists() {
            lab.switch().sysctl(&setting, 0)?;
        }
    }
    Ok(())
}

/// The daemon on both interfaces. Backends see their clients' addresses, as behind DNAT, and reply through
/// the NLB.
fn nlb(lab: &Lab) -> Result<Process> {
    // The NLB does not start on a host whose own connections may take its ports.
    lab.nlb.netns.sysctl("net/ipv4/ip_local_port_range", "32768 60999")?;
    // The backends are no modules and send no heartbeats.
    let daemon = programs::serve(
        lab,
        "eth0,eth1",
        &["--heartbeat-interval", "10m", "--evict-after", "1h", "--xdp-mode", "native"],
    )?;
    let server = format!("http://{}", grpc(lab));
    lab.nlb.netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(async {
            let mut client = NlbServiceClient::connect(server).await?;
            for host in &lab.modules {
                let answer = client.register_module(registration(host)).await?.into_inner();
                ensure!(answer.success, "{}", answer.message);
            }
            anyhow::Ok(())
        })
    })??;
    Ok(daemon)
}

fn registration(host: &Host) -> RegisterModuleRequest {
    let metadata = [("data_address", &*host.v4.to_string()), ("forward_mode", "nat"), ("reply_path", "nlb")]
        .map(|(key, value)| (key.to_owned(), value.to_owned()));
    let routes = [Protocol::Tcp, Protocol::Udp].map(|protocol| Route {
        route_id: protocol.as_str_name().to_owned(),
        protocol: protocol.into(),
        destination_pattern: VIP4.to_string(),
        destination_port: VIP.port().into(),
        metadata: [("listen_port".to_owned(), PORT.to_string())].into(),
        ..Route::default()
    });
    let instance = ModuleInstance {
        instance_id: host.v4.to_string(),
        module_type: ModuleType::Alb.into(),
        address: format!("{}:50052", host.v4),
        health_status: HealthStatus::Healthy.into(),
        metadata: metadata.into(),
        ..ModuleInstance::default()
    };
    RegisterModuleRequest { instance: Some(instance), initial_routes: routes.into(), ..Default::default() }
}
