//! Desired state: what modules and operators have asked for, as plain data.
//!
//! Nothing here knows protobuf, a socket, a map or a clock. `grpc` parses messages into these types and refuses what
//! does not fit them; `registry` is their only writer; `compile` turns them into the contents of the maps. Ordered
//! collections throughout, so that equal state always compiles to equal maps.
//!
//! What operators set is kept on disk under the names it has here: whoever renames something that is `Serialize` changes
//! the format of `store`, which has a version for that.

pub mod can_handle;
pub mod clock;
pub mod destination;
pub mod endpoint;
pub mod next_hop;
pub mod prefix;
pub mod reachability;
pub mod settings;
pub mod suited;
pub mod traffic;
pub mod upcall;
pub mod vips;
pub mod weight_request;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use imbl::OrdMap;
use ipnet::IpNet;
use litemap::LiteMap;
use serde::{Deserialize, Serialize};

pub use nlb_common::net::L4;
pub use nlb_common::quic::Server;

/// Everything that has been asked for, at one revision.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Desired {
    /// Grows by one with every change; 0 is the empty state at start.
    pub revision: u64,
    /// The configured single-address VIPs, which wildcard destinations stand for.
    pub vips: BTreeSet<IpAddr>,
    /// What to do with a pool of which every backend is unhealthy: use them all (true) or none.
    pub fail_open: bool,
    /// Whether a client that no backend can serve is told so, by a TCP RST or an ICMP unreachable, or ignored.
    pub reject: bool,
    /// Whether packets to a VIP's ports without a service are dropped, or left to the kernel.
    pub drop_closed_ports: bool,
    /// Whether modules are asked about a VIP's ports that no route covers.
    pub learn_routes: bool,
    /// By instance id. The maps from here on may be large and change a little at a time, so states share what is equal.
    pub modules: OrdMap<String, Arc<Module>>,
    /// The operator's own routes, by route id; their `targets` name the modules.
    pub operator_routes: Routes,
    /// What came of asking: routes for one destination each, by id. They serve what no other route covers, by those modules
    /// that have said that they can.
    pub learned_routes: Routes,
    /// Versions whose weight was set. Empty: instance weights alone decide; otherwise a version that is not listed
    /// counts [`DEFAULT_WEIGHT`].
    pub version_weights: BTreeMap<String, u32>,
    /// By limit id.
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
}

impl Desired {
    /// Every VIP: the configured ones, and those that a route names by address.
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

/// The weight of an instance or version for which none was given.
pub const DEFAULT_WEIGHT: u32 = 100;

/// The greatest weight there is.
pub const MAX_WEIGHT: u32 = 10_000;

/// One registered module instance, as far as the data path cares.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub module_type: ModuleType,
    pub version: String,
    /// Share of new flows among the instances of its version; 0 takes none.
    pub weight: u32,
    pub health: Health,
    pub data: DataAddresses,
    pub mode: ForwardMode,
    pub snat: Snat,
    /// The port of routes that name none of their own; operators' routes included.
    pub listen_port: Option<u16>,
    /// How the QUIC connection ids that it chooses name it, if they do.
    pub quic: Option<Server>,
    pub routes: Routes,
    /// What it said of the routes that it was asked about, its own and the operator's.
    pub abilities: BTreeMap<RouteKey, Ability>,
}

impl Module {
    /// Who was not asked yet, or does not say, is able.
    pub fn ability(&self, route: &RouteKey) -> Ability {
        self.abilities.get(route).copied().unwrap_or_default()
    }
}

/// Whether a module can handle a route, and how gladly: of those that can, the highest priority gets the new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ability {
    pub can_handle: bool,
    pub priority: i32,
}

impl Default for Ability {
    fn default() -> Self {
        Ability { can_handle: true, priority: 0 }
    }
}

/// Where a module's traffic goes: at most one address of each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DataAddresses {
    pub v4: Option<std::net::Ipv4Addr>,
    pub v6: Option<std::net::Ipv6Addr>,
}

/// What counts for steering: the module's own word, its lease and an operator's drain, resolved into one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Health {
    Healthy,
    /// Takes half its weight of new flows.
    Degraded,
    /// Takes no new flows yet.
    Starting,
    /// Takes no new flows; UDP flows move at once, TCP flows live on.
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

/// How packets reach a backend.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum ForwardMode {
    /// Destination rewritten to the backend; replies come back through us (see [`Snat`]).
    #[default]
    Nat,
    /// Only MAC addresses rewritten; the module holds the VIP and answers the client directly.
    DsrL2,
    /// Wrapped in an outer IP header; the module unwraps, holds the VIP and answers the client directly.
    DsrIpip,
    /// Likewise in a UDP datagram (Generic UDP Encapsulation).
    Gue,
}

/// Whether a NATed backend sees our address as its client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Snat {
    /// Always: replies find their way back whatever the module's routes are.
    #[default]
    Always,
    /// Only for clients on the backend's own link, who would be answered directly: the module's default route is us.
    OnLink,
    /// Never.
    Never,
}

/// A rule that sends matching flows to modules.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Route {
    pub protocol: Protocol,
    /// `None` is any source.
    pub source: Option<IpNet>,
    pub destination: Destination,
    /// `None` is every port of the L4 protocol.
    pub port: Option<u16>,
    /// Higher wins.
    pub priority: i32,
    /// The module's port for this route, where it differs from the destination port.
    pub listen_port: Option<u16>,
    /// Which modules an operator's route is for. A module's own route is always for that module.
    pub targets: Targets,
    /// Kept, returned, and not matched by the data path.
    pub headers: Texts,
    pub path_pattern: String,
    pub metadata: Texts,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Destination {
    /// Every configured VIP (`*` or empty on the wire).
    EveryVip,
    /// This address, which is thereby a VIP.
    Address(IpAddr),
    /// The configured VIPs inside this prefix.
    Prefix(IpNet),
}

/// What somebody attached to something, by key. Mostly it has no entry or a few, and there may be 100,000 of them: a tree
/// would take half a KiB for the first entry.
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

/// Some instances: as small as a list, as quick to look into as a set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(from = "BTreeSet<String>")]
pub struct InstanceIds(Box<[String]>);

impl InstanceIds {
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
}

impl Protocol {
    /// The L4 protocol that carries it.
    pub fn l4(self) -> L4 {
        match self {
            Protocol::Udp | Protocol::Http3 => L4::Udp,
            _ => L4::Tcp,
        }
    }

    /// The port that a destination port of 0 stands for; `None` is every port.
    pub fn well_known_port(self) -> Option<u16> {
        match self {
            Protocol::Tcp | Protocol::Udp => None,
            Protocol::Http | Protocol::Http2 | Protocol::WebSocket | Protocol::Hls | Protocol::Dash => {
                Some(80)
            }
            Protocol::Https | Protocol::Http3 | Protocol::Rtmps => Some(443),
            Protocol::Grpc => Some(50051),
            Protocol::Mysql => Some(3306),
            Protocol::Postgres => Some(5432),
            Protocol::Mongodb => Some(27017),
            Protocol::Redis => Some(6379),
            Protocol::Rtmp => Some(1935),
        }
    }

    /// The type of module that serves it, where the protocol says so.
    pub fn implied_type(self) -> Option<ModuleType> {
        match self {
            Protocol::Tcp | Protocol::Udp => None,
            Protocol::Mysql | Protocol::Postgres | Protocol::Mongodb | Protocol::Redis => {
                Some(ModuleType::Dblb)
            }
            Protocol::Rtmp | Protocol::Rtmps | Protocol::Hls | Protocol::Dash => Some(ModuleType::Rtmp),
            _ => Some(ModuleType::Alb),
        }
    }
}

impl Route {
    /// Whether this route, as the operator's, is for that module.
    pub fn is_for(&self, instance_id: &str, module: &Module) -> bool {
        match &self.targets {
            Targets::Implied => self.protocol.implied_type().is_none_or(|t| t == module.module_type),
            Targets::Type(t) => *t == module.module_type,
            Targets::Instances(ids) => ids.contains(instance_id),
        }
    }

    /// The module's port that the route's packets go to; `None` is the one that the client addressed.
    pub fn data_port(&self, module: &Module) -> Option<u16> {
        match module.mode {
            ForwardMode::Nat => self.listen_port.or(module.listen_port).or(self.port),
            // Direct server return leaves ports alone.
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
    /// The operator's, and not the module's own.
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

/// Which of an instance's routes: its own, or one that it serves of the operator's or of those that were learned, which
/// never share an id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RouteKey {
    pub id: String,
    pub operators: bool,
}

/// One place that packets are sent to: an instance's data address and port. An instance with several routes or both
/// address families has several, so that each route can be counted and
/// limited.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Backend {
    pub instance_id: String,
    /// `None` for routes that are not counted and limited one by one, because there are too many.
    pub route: Option<RouteKey>,
    pub addr: IpAddr,
    /// 0 with a route for every port: the client's destination port is kept.
    pub port: u16,
    pub mode: ForwardMode,
    pub snat: Snat,
}

/// How much of something may pass. Every window that is given has to admit a packet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RateLimit {
    pub target: LimitTarget,
    pub unit: LimitUnit,
    /// Units in each window; 0 is no limit.
    pub per_second: u64,
    pub per_minute: u64,
    pub per_hour: u64,
    /// Units that may come at once; 0 is one second's worth of the highest of the rates.
    pub burst: u64,
    pub enabled: bool,
    pub metadata: Texts,
}

/// What a rate limit is for.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitTarget {
    /// All services together.
    All,
    /// All clients from this prefix together.
    Source(IpNet),
    /// All routes of this id together, whoever has them.
    Route(String),
    Service(IpAddr, u16, #[serde(with = "L4Name")] L4),
}

/// What runs in the kernel too knows nothing of serde.
#[derive(Serialize, Deserialize)]
#[serde(remote = "L4", rename_all = "snake_case")]
enum L4Name {
    Tcp,
    Udp,
}

/// What a rate limit counts, from clients to modules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LimitUnit {
    NewFlows,
    Packets,
    /// Of IP packets.
    Bytes,
}
