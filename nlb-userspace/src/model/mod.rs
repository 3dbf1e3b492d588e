//! The desired state: what modules and operators asked for, as plain data.
//!
//! These types depend on no protobuf, socket, map or clock. `grpc` parses messages into them and refuses what
//! does not fit; `registry` is their only writer; `compile` turns them into the contents of the maps.
//! Collections are ordered, so that equal states compile to equal maps.
//!
//! What operators set is persisted under the names it has here: renaming something that is `Serialize`
//! changes the format of `store`, which has a version for that.

pub mod can_handle;
pub mod clock;
pub mod deployment;
pub mod destination;
pub(crate) mod endpoint;
pub mod host;
pub mod next_hop;
pub mod prefix;
pub(crate) mod reachability;
pub mod settings;
pub mod snat;
pub(crate) mod suited;
pub mod traffic;
pub mod upcall;
pub mod vips;
pub(crate) mod weight_request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};

pub use deployment::Deployment;
pub use nlb_common::net::L4;
pub use nlb_common::quic::Server;

/// The desired state at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grows by one with every change; 0 is the empty state at the start.
    pub revision: u64,
    /// The configured single-address VIPs, which wildcard destinations stand for.
    pub vips: BTreeSet<IpAddr>,
    /// Whether a pool with only unhealthy backends uses them all (true) or none.
    pub fail_open: bool,
    /// Whether clients that no backend can serve get a TCP RST or an ICMP unreachable, or no answer.
    pub reject: bool,
    /// Whether packets to a VIP's ports without a service are dropped, or passed to the kernel.
    pub drop_closed_ports: bool,
    /// Whether modules are asked about a VIP's ports that no route covers.
    pub learn_routes: bool,
    /// By instance id. This map and those below may be large and change little at a time, so states share
    /// equal parts.
    pub modules: OrdMap<String, Arc<Module>>,
    /// The operator's own routes, by route id; their `targets` name the modules.
    pub operator_routes: Routes,
    /// Learned routes by id, for one destination each. They serve what no other route covers, by the modules
    /// that can handle it.
    pub learned_routes: Routes,
    /// The weights of versions, by deployment: of those that have had one of their own.
    pub splits: BTreeMap<Deployment, VersionWeights>,
    /// The weights of versions of all other deployments together; empty, unless an earlier release of the NLB
    /// kept some for the whole fleet.
    pub version_weights: VersionWeights,
    /// By limit id.
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
}

impl Desired {
    /// The weights of versions that apply to a deployment.
    pub fn weights_of(&self, deployment: &Deployment) -> &VersionWeights {
        self.splits.get(deployment).unwrap_or(&self.version_weights)
    }

    /// All VIPs: the configured ones, and those that a route names by address.
    pub fn all_vips(&self) -> BTreeSet<IpAddr> {
        let modules = self.modules.values().flat_map(|module| module.routes.values());
        let named =
            modules.chain(self.operator_routes.values()).filter_map(|route| match route.destination {
                Destination::Address(addr) => Some(addr),
                _ => None,
            });
        self.vips.iter().copied().chain(named).collect()
    }
}

/// The weights of the versions that have one. If empty, instance weights alone decide; otherwise other
/// versions count [`DEFAULT_WEIGHT`].
pub type VersionWeights = BTreeMap<String, u32>;

/// The weight of an instance or version for which none was given.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The greatest weight.
pub const MAX_WEIGHT: u32 = 10_000;

/// One registered instance of a module, as far as the data path is concerned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub module_type: ModuleType,
    pub deployment: Deployment,
    pub version: String,
    /// The share of new flows among the instances of its version; 0 means none.
    pub weight: u32,
    pub health: Health,
    pub data: DataAddresses,
    pub mode: ForwardMode,
    pub snat: Snat,
    /// The port for routes without a port of their own, including operators' routes.
    pub listen_port: Option<u16>,
    /// The most flows that it has at a time; 0 means unlimited.
    pub max_connections: u32,
    /// How QUIC connection ids that the module chooses name it, if they do.
    pub quic: Option<Server>,
    pub routes: Routes,
    /// Its CanHandle answers, about its own routes and the operator's.
    pub abilities: BTreeMap<RouteKey, Ability>,
}

impl Module {
    /// A module without an answer can handle the route.
    pub fn ability(&self, route: &RouteKey) -> Ability {
        self.abilities.get(route).copied().unwrap_or_default()
    }
}

/// Whether a module can handle a route, and with which priority: the highest priority gets the new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ability {
    pub can_handle: bool,
    pub priority: i32,
}

impl Default for Ability {
    fn default() -> Self {
        Ability { can_handle: true, priority: 0 }
    }
}

/// The addresses of a module's traffic: at most one of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataAddresses {
    pub v4: Option<std::net::Ipv4Addr>,
    pub v6: Option<std::net::Ipv6Addr>,
}

/// The health that decides on new flows, combined from all health signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Healthy,
    /// Takes half its weight of new flows.
    Degraded,
    /// Takes no new flows yet.
    Starting,
    /// Takes no new flows; UDP flows move at once, TCP flows stay.
    Unhealthy,
    /// Draining: as `Unhealthy`, and never part of a pool that fails open.
    Stopping,
}

impl Health {
    pub fn takes_new_flows(self) -> bool {
        matches!(self, Health::Healthy | Health::Degraded)
    }
}

/// The contract's module types.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ModuleType {
    Alb,
    Dblb,
    Ailb,
    Rtmp,
    Nlb,
}

impl ModuleType {
    pub const ALL: [ModuleType; 5] =
        [ModuleType::Alb, ModuleType::Dblb, ModuleType::Ailb, ModuleType::Rtmp, ModuleType::Nlb];

    /// The contract's name without the enum's prefix.
    pub fn name(self) -> &'static str {
        match self {
            ModuleType::Alb => "ALB",
            ModuleType::Dblb => "DBLB",
            ModuleType::Ailb => "AILB",
            ModuleType::Rtmp => "RTMP",
            ModuleType::Nlb => "NLB",
        }
    }
}

impl From<ModuleType> for Deployment {
    fn from(module_type: ModuleType) -> Self {
        Deployment::named(module_type.name())
    }
}

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForwardMode {
    /// The destination is rewritten to the backend; replies come back through the NLB (see [`Snat`]).
    #[default]
    Nat,
    /// Only MAC addresses are rewritten; the module holds the VIP and answers the client directly.
    DsrL2,
    /// An outer IP header is added; the module removes it, holds the VIP and answers the client directly.
    DsrIpip,
    /// Likewise with outer IP and UDP headers (Generic UDP Encapsulation).
    Gue,
}

/// Whether a NAT backend sees our address as that of its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Snat {
    /// Always: replies come back whatever the module's routes are.
    #[default]
    Always,
    /// Only for clients on the backend's own link, which it would answer directly: the module's default route
    /// is the NLB.
    OnLink,
    /// Never.
    Never,
}

/// The key in a route's metadata by which its UDP flows follow changes of the pool.
pub const UDP_REBALANCE: &str = "udp_rebalance";

/// A rule that sends matching flows to modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub protocol: Protocol,
    /// `None` means any source.
    pub source: Option<IpNet>,
    pub destination: Destination,
    /// `None` means every port of the L4 protocol.
    pub port: Option<u16>,
    /// Higher wins.
    pub priority: i32,
    /// The module's port for this route, if it differs from the destination port.
    pub listen_port: Option<u16>,
    /// The modules that an operator's route is for. A module's own route is always for that module.
    pub targets: Targets,
    /// Stored and returned, but not matched by the data path.
    pub headers: Texts,
    pub path_pattern: String,
    pub metadata: Texts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Every configured VIP (`*` or empty in a message).
    EveryVip,
    /// This address, which thereby is a VIP.
    Address(IpAddr),
    /// The configured VIPs inside this prefix.
    Prefix(IpNet),
}

/// Texts attached to an object, by key. Most objects have few or none, and there may be 100,000 of them: a
/// tree would take half a KiB for the first entry.
pub type Texts = LiteMap<String, String>;

/// The modules that an operator's route is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Targets {
    /// Every module of the type that the protocol implies; for plain TCP and UDP, every module.
    #[default]
    Implied,
    Type(ModuleType),
    Instances(InstanceIds),
}

/// A set of instances: as small as a list, and as quick to search as a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeSet<String>")]
pub struct InstanceIds(Box<[String]>);

impl InstanceIds {
    pub fn iter(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(String::as_str)
    }

    pub fn contains(&self, instance_id: &str) -> bool {
        self.0.binary_search_by(|id| id.as_str().cmp(instance_id)).is_ok()
    }
}

impl From<BTreeSet<String>> for InstanceIds {
    fn from(ids: BTreeSet<String>) -> Self {
        InstanceIds(ids.into_iter().collect())
    }
}

/// The contract's application protocols.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Tcp,
    Udp,
    Http,
    Https,
    Http2,
    Http3,
    Grpc,
    WebSocket,
    Mysql,
    Postgres,
    Mongodb,
    Redis,
    Rtmp,
    Rtmps,
    Hls,
    Dash,
    Srt,
    WebRtc,
    Whip,
    Whep,
}

impl Protocol {
    /// The L4 protocol that carries it.
    pub fn l4(self) -> L4 {
        match self {
            Protocol::Udp | Protocol::Http3 | Protocol::Srt | Protocol::WebRtc => L4::Udp,
            _ => L4::Tcp,
        }
    }

    /// The port that a destination port of 0 stands for, if there is one. For plain TCP and UDP it is every
    /// port.
    pub fn well_known_port(self) -> Option<u16> {
        match self {
            Protocol::Tcp | Protocol::Udp | Protocol::Srt | Protocol::WebRtc => None,
            Protocol::Http | Protocol::Http2 | Protocol::WebSocket | Protocol::Hls | Protocol::Dash => {
                Some(80)
            }
            // WHIP and WHEP run over HTTPS (RFC 9725).
            Protocol::Https | Protocol::Http3 | Protocol::Rtmps | Protocol::Whip | Protocol::Whep => {
                Some(443)
            }
            Protocol::Grpc => Some(50051),
            Protocol::Mysql => Some(3306),
            Protocol::Postgres => Some(5432),
            Protocol::Mongodb => Some(27017),
            Protocol::Redis => Some(6379),
            Protocol::Rtmp => Some(1935),
        }
    }

    /// Whether a destination port of 0 may stand for every port.
    pub fn may_have_every_port(self) -> bool {
        matches!(self, Protocol::Tcp | Protocol::Udp)
    }

    /// The type of module that serves it, if the protocol implies one.
    pub fn implied_type(self) -> Option<ModuleType> {
        match self {
            Protocol::Tcp | Protocol::Udp => None,
            Protocol::Mysql | Protocol::Postgres | Protocol::Mongodb | Protocol::Redis => {
                Some(ModuleType::Dblb)
            }
            Protocol::Rtmp
            | Protocol::Rtmps
            | Protocol::Hls
            | Protocol::Dash
            | Protocol::Srt
            | Protocol::WebRtc
            | Protocol::Whip
            | Protocol::Whep => Some(ModuleType::Rtmp),
            _ => Some(ModuleType::Alb),
        }
    }
}

impl Route {
    /// Whether its UDP flows go to another module when new flows do.
    pub fn rebalances_udp(&self) -> bool {
        self.metadata.get(UDP_REBALANCE).is_some_and(|value| value == "true")
    }

    /// Whether this route, as the operator's, is for that module.
    pub fn is_for(&self, instance_id: &str, module: &Module) -> bool {
        match &self.targets {
            Targets::Implied => self.protocol.implied_type().is_none_or(|t| t == module.module_type),
            Targets::Type(t) => *t == module.module_type,
            Targets::Instances(ids) => ids.contains(instance_id),
        }
    }

    /// The module's port that the route's packets go to; `None` means the one that the client addressed.
    pub fn data_port(&self, module: &Module) -> Option<u16> {
        match module.mode {
            ForwardMode::Nat => self.listen_port.or(module.listen_port).or(self.port),
            // Direct server return does not change ports.
            ForwardMode::DsrL2 | ForwardMode::DsrIpip | ForwardMode::Gue => self.port,
        }
    }
}

/// Routes by route id.
pub type Routes = OrdMap<String, Arc<Route>>;

/// A route as one module serves it.
#[derive(Clone, Copy, Debug)]
pub struct Served<'a> {
    pub id: &'a String,
    pub route: &'a Route,
    /// Whether it is the operator's, and not the module's own.
    pub operators: bool,
}

impl Served<'_> {
    pub fn key(&self) -> RouteKey {
        RouteKey { id: self.id.clone(), operators: self.operators }
    }
}

impl Module {
    /// The module's own routes by id, then those of the operator that are for it.
    pub fn served<'a>(
        &'a self,
        instance_id: &'a str,
        operators: &'a Routes,
    ) -> impl Iterator<Item = Served<'a>> {
        let own = self.routes.iter().map(|(id, route)| Served { id, route, operators: false });
        let operators = operators.iter().filter(move |(_, route)| route.is_for(instance_id, self));
        own.chain(operators.map(|(id, route)| Served { id, route, operators: true }))
    }
}

/// The key of a route of an instance: its own, or one of the operator's or learned routes, which never share
/// an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    pub id: String,
    pub operators: bool,
}

/// A data address and port of an instance. An instance with several routes or with both address families has
/// several, so that each route can be counted and limited.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub instance_id: String,
    /// `None` for routes that are not counted individually, because there are too many.
    pub route: Option<RouteKey>,
    pub addr: IpAddr,
    /// 0 for a route for every port: the client's destination port is kept.
    pub port: u16,
    pub mode: ForwardMode,
    pub snat: Snat,
}

/// A rate limit. Every window that is given has to admit a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub target: LimitTarget,
    pub unit: LimitUnit,
    /// Units in each window; 0 means no limit.
    pub per_second: u64,
    pub per_minute: u64,
    pub per_hour: u64,
    /// Units that may come at once; 0 means one second's worth of the highest rate.
    pub burst: u64,
    pub enabled: bool,
    pub metadata: Texts,
}

/// The target of a rate limit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitTarget {
    /// All services together.
    All,
    /// All clients of this prefix together.
    Source(IpNet),
    /// All routes of this id together, of any owner.
    Route(String),
    Service(IpAddr, u16, #[serde(with = "L4Name")] L4),
}

/// Code that also runs in the kernel does not use serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "L4", rename_all = "snake_case")]
enum L4Name {
    Tcp,
    Udp,
}

/// The unit of a rate limit, from clients to modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    NewFlows,
    Packets,
    /// Bytes of IP packets.
    Bytes,
}
