//! The balancer as a plain program: what docs/datapath.md says of a packet, with flows in an ordered map and nothing fast
//! about it.
//!
//! Two things are taken as given: where a new flow goes (`MapImage::choose`), and the flow hash in flow labels. A SNAT port
//! may be any of the range that no other flow shows to the same backend, so it is read off the packet that was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nlb::compile::{FlowTuple, Hops, MapImage};
use nlb::model::{Backend, Desired, Destination, ForwardMode, Health, L4, Module, Snat};

use super::edits::{self, Frame};
use super::headers::{self, Exits, Ip, Segment, Tcp};
use crate::rig::{BACK_MTU, BACKEND_MAC, CLIENT_MAC, Family, OUR_BACK_MAC, OUR_MAC, families};

/// What the model is told and does not decide itself.
pub struct World<'a> {
    pub desired: &'a Desired,
    pub hops: &'a Hops,
    pub image: &'a MapImage,
    pub flow_label: fn(&FlowTuple) -> u32,
}

/// What has to come of a packet.
#[derive(Debug)]
pub enum Expected {
    /// Untouched, by one of these exits.
    Untouched(Exits),
    Sent(&'static str, Frame),
    /// An ICMP error or, at times, nothing, since their rate is limited.
    Unreachable(Ip),
}

/// How much a backend's counters have to grow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Growth {
    pub new_flows: u64,
    pub packets: u64,
    pub bytes: u64,
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub resets: u64,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FlowKey {
    pub client: IpAddr,
    pub client_port: u16,
    pub vip: IpAddr,
    pub port: u16,
    pub udp: bool,
}

#[derive(Clone, Debug)]
pub struct Flow {
    pub backend: Backend,
    /// What the backend sees: an address, ours or the client's, and a port.
    pub shown: (IpAddr, u16),
    client_fin: bool,
    backend_fin: bool,
    reset: bool,
}

#[derive(Default)]
pub struct Model {
    pub flows: BTreeMap<FlowKey, Flow>,
    /// NAT backends to which a way was known once.
    reached: BTreeSet<IpAddr>,
    pub grown: BTreeMap<Backend, Growth>,
}

type Decision = Result<Expected, Exits>;

impl Model {
    /// The tables have changed. Flows of backends that are gone go with them.
    pub fn tables_changed(&mut self, world: &World) {
        self.flows.retain(|_, flow| offered(world.desired, &flow.backend));
        let nat: BTreeSet<IpAddr> = nat_modules(world.desired).flat_map(addresses).collect();
        self.reached.extend(nat.iter().filter(|addr| world.hops.contains_key(addr)));
        self.reached.retain(|addr| nat.contains(addr));
    }

    /// What has to come of a frame. `out` is what did come of it, for the port in it.
    pub fn packet(&mut self, world: &World, frame: &[u8], out: &[u8]) -> Result<Expected, String> {
        self.grown.clear();
        let ip = match headers::ip(frame) {
            Ok(ip) => ip,
            Err(exits) => return Ok(Expected::Untouched(exits)),
        };
        // A VIP that no route leads to is an address like any other.
        let served = !world.desired.modules.is_empty();
        let decision = if served && world.desired.all_vips().contains(&ip.dst) {
            self.client_packet(world, frame, &ip, out)?
        } else if self.is_ours(ip.dst) || is_transparent(world.desired, ip.src) {
            self.backend_packet(world, frame, &ip)
        } else {
            Err(&["pass not_ours"][..])
        };
        Ok(decision.unwrap_or_else(Expected::Untouched))
    }

    /// Whether replies come to this address.
    fn is_ours(&self, addr: IpAddr) -> bool {
        families().iter().any(|f| f.source == addr && self.reached.iter().any(|b| same_family(*b, addr)))
    }

    fn client_packet(
        &mut self,
        world: &World,
        frame: &[u8],
        ip: &Ip,
        out: &[u8],
    ) -> Result<Decision, String> {
        let segment = match headers::segment(frame, ip) {
            Ok(segment) => segment,
            Err(exits) => return Ok(Err(exits)),
        };
        let closed: Exits =
            if world.desired.drop_closed_ports { &["drop closed_port"] } else { &["pass closed_port"] };
        let sources = services(world.desired, ip.dst, segment.dport, segment.l4);
        if sources.is_empty() {
            return Ok(Err(closed));
        }
        if ip.ttl <= 1 {
            return Ok(Err(&["drop ttl_exceeded"]));
        }
        let tuple = FlowTuple {
            client: ip.src,
            client_port: segment.sport,
            vip: ip.dst,
            port: segment.dport,
            l4: segment.l4,
        };
        let key = FlowKey {
            client: ip.src,
            client_port: segment.sport,
            vip: ip.dst,
            port: segment.dport,
            udp: segment.l4 == L4::Udp,
        };
        let known = self.flows.get(&key).filter(|flow| stays(world.desired, flow, &segment)).cloned();
        let (backend, is_new) = match &known {
            Some(flow) => (flow.backend.clone(), false),
            None => {
                if !sources.iter().any(|s| s.is_none_or(|prefix| prefix.contains(&ip.src))) {
                    return Ok(Err(closed));
                }
                match world.image.choose(&tuple) {
                    Some(backend) => (backend.clone(), true),
                    None => return Ok(refused(world.desired, frame, ip, &segment)),
                }
            }
        };
        if !world.hops.contains_key(&backend.addr) {
            return Ok(Err(waits(frame)));
        }
        if frame[6..12] == OUR_BACK_MAC {
            return Ok(Err(&["drop loop"]));
        }
        let mut flow = match known {
            Some(flow) => flow,
            None => self.open(&key, &backend, out, &segment)?,
        };
        flow.note(segment.tcp, true);
        self.flows.insert(key.clone(), flow.clone());
        let growth = self.grown.entry(backend.clone()).or_default();
        growth.new_flows += u64::from(is_new);
        growth.packets += 1;
        growth.bytes += (ip.end - ip.l3) as u64;
        Ok(forwarded(world, frame, ip, &segment, &tuple, &flow))
    }

    /// A flow that is not on record yet.
    fn open(&self, key: &FlowKey, backend: &Backend, out: &[u8], segment: &Segment) -> Result<Flow, String> {
        let flow = |shown| Flow {
            backend: backend.clone(),
            shown,
            client_fin: false,
            backend_fin: false,
            reset: false,
        };
        if backend.mode != ForwardMode::Nat {
            return Ok(flow((key.client, key.client_port)));
        }
        let on_link = IpNet::new(backend.addr, if backend.addr.is_ipv4() { 24 } else { 64 })
            .expect("a length of the family's")
            .contains(&key.client);
        let hidden = match backend.snat {
            Snat::Always => true,
            Snat::OnLink => on_link,
            Snat::Never => false,
        } || key.client == backend.addr;
        let addr = if hidden { family_of(backend.addr).source } else { key.client };
        let port_at = segment.at..segment.at + 2;
        let port = out.get(port_at).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
        // The flow's own former port may or may not be given again: whether that life of it is over is not said.
        let shown_by_others = |port: u16| {
            self.flows.iter().any(|(other, flow)| {
                other != key
                    && other.udp == key.udp
                    && flow.shown == (addr, port)
                    && flow.backend.addr == backend.addr
                    && data_port(&flow.backend, other.port) == data_port(backend, key.port)
            })
        };
        let may_keep = !hidden && !shown_by_others(key.client_port);
        let reopened = self.flows.contains_key(key);
        let right = if may_keep && !reopened {
            port == key.client_port
        } else {
            may_keep && port == key.client_port || (1024..=32_767).contains(&port) && !shown_by_others(port)
        };
        if !right {
            return Err(format!("{addr} port {port} towards {} is not one to give this flow", backend.addr));
        }
        Ok(flow((addr, port)))
    }

    fn backend_packet(&mut self, world: &World, frame: &[u8], ip: &Ip) -> Decision {
        const NO_FLOW: Exits = &["pass no_flow"];
        let segment = headers::segment(frame, ip).map_err(|_| NO_FLOW)?;
        let (key, flow) = self
            .flows
            .iter_mut()
            .find(|(key, flow)| {
                flow.backend.mode == ForwardMode::Nat
                    && key.udp == (segment.l4 == L4::Udp)
                    && (flow.backend.addr, data_port(&flow.backend, key.port)) == (ip.src, segment.sport)
                    && flow.shown == (ip.dst, segment.dport)
            })
            .ok_or(NO_FLOW)?;
        if ip.ttl <= 1 {
            return Err(&["drop ttl_exceeded"]);
        }
        let family = family_of(key.client);
        if key.client != family.client {
            return Err(if is_neighbour(key.client) { waits(frame) } else { &["drop no_route"] });
        }
        if frame[6..12] == OUR_MAC {
            return Err(&["drop loop"]);
        }
        flow.note(segment.tcp, false);
        let growth = self.grown.entry(flow.backend.clone()).or_default();
        growth.reply_packets += 1;
        growth.reply_bytes += (ip.end - ip.l3) as u64;
        growth.resets += u64::from(segment.tcp.is_some_and(|tcp| tcp.rst));
        let (vip, client) = ((key.vip, key.port), (key.client, key.client_port));
        debug_assert!(offered(world.desired, &flow.backend));
        let reply = edits::translated(frame, ip, &segment, vip, client);
        Ok(Expected::Sent("send reply", reply.macs(CLIENT_MAC, OUR_MAC)))
    }
}

impl Flow {
    fn note(&mut self, tcp: Option<Tcp>, from_client: bool) {
        let Some(tcp) = tcp else { return };
        self.reset = tcp.rst;
        if tcp.fin && !tcp.rst {
            let side = if from_client { &mut self.client_fin } else { &mut self.backend_fin };
            *side = true;
        }
    }

    fn is_closed(&self) -> bool {
        self.reset || self.client_fin && self.backend_fin
    }
}

fn stays(desired: &Desired, flow: &Flow, segment: &Segment) -> bool {
    let module = &desired.modules[&flow.backend.instance_id];
    let draining = matches!(module.health, Health::Stopping | Health::Unhealthy);
    match segment.tcp {
        None => !draining,
        Some(tcp) => !tcp.opens() || !draining && !flow.is_closed(),
    }
}

fn forwarded(
    world: &World,
    frame: &[u8],
    ip: &Ip,
    segment: &Segment,
    tuple: &FlowTuple,
    flow: &Flow,
) -> Decision {
    let backend = &flow.backend;
    let sent = match backend.mode {
        ForwardMode::Nat => {
            let to = (backend.addr, data_port(backend, tuple.port));
            edits::translated(frame, ip, segment, flow.shown, to)
        }
        ForwardMode::DsrL2 => edits::aged(frame, ip),
        ForwardMode::DsrIpip => {
            let outer = if backend.addr.is_ipv4() { 20 } else { 40 };
            if ip.end - ip.l3 + outer > BACK_MTU as usize {
                return Err(&["drop too_big"]);
            }
            let label = (world.flow_label)(tuple);
            edits::wrapped(frame, ip, family_of(backend.addr).source, backend.addr, label)
        }
    };
    Ok(Expected::Sent("send forward", sent.macs(BACKEND_MAC, OUR_BACK_MAC)))
}

/// A packet to a service that has nobody for it (row 2).
fn refused(desired: &Desired, frame: &[u8], ip: &Ip, segment: &Segment) -> Decision {
    const DROPPED: Exits = &["drop no_backend"];
    match &segment.tcp {
        _ if !desired.reject => Err(DROPPED),
        None => Ok(Expected::Unreachable(ip.clone())),
        Some(tcp) if tcp.rst || ip.v6 && segment.at != ip.next => Err(DROPPED),
        Some(tcp) => Ok(Expected::Sent("send reject", edits::reset(frame, ip, segment, tcp))),
    }
}

/// Whether an address is one to look for on the rig's link. IPv4's lowest is (since Linux 5.14), and so is IPv6's where the
/// interface does not forward.
fn is_neighbour(addr: IpAddr) -> bool {
    let link = if addr.is_ipv4() { "198.51.100.1/24" } else { "2001:db8:c::1/64" };
    let link: IpNet = link.parse().expect("a prefix");
    let broadcast = addr.is_ipv4() && addr == link.broadcast();
    link.contains(&addr) && addr != link.addr() && !broadcast
}

/// The longest frame that can wait for a next hop.
fn waits(frame: &[u8]) -> Exits {
    if frame.len() > 2048 { &["drop park_full"] } else { &["park next_hop"] }
}

/// The sources that the routes of a service are for; none if there is no service.
fn services(desired: &Desired, vip: IpAddr, port: u16, l4: L4) -> Vec<Option<IpNet>> {
    let routes = desired.modules.values().flat_map(|module| module.routes.values());
    let fits = routes.filter(|route| {
        route.protocol.l4() == l4
            && route.port.is_none_or(|p| p == port)
            && match route.destination {
                Destination::EveryVip => desired.vips.contains(&vip),
                Destination::Address(addr) => addr == vip,
                Destination::Prefix(prefix) => prefix.contains(&vip),
            }
    });
    fits.map(|route| route.source).collect()
}

fn offered(desired: &Desired, backend: &Backend) -> bool {
    let Some(module) = desired.modules.get(&backend.instance_id) else { return false };
    let route = backend.route.as_ref().and_then(|key| module.routes.get(&key.id));
    route.is_some_and(|route| {
        (module.mode, module.snat) == (backend.mode, backend.snat)
            && addresses(module).any(|addr| addr == backend.addr)
            && route.data_port(module).unwrap_or(0) == backend.port
    })
}

/// The backend's port for what was addressed to `port`.
pub fn data_port(backend: &Backend, port: u16) -> u16 {
    if backend.port == 0 { port } else { backend.port }
}

fn nat_modules(desired: &Desired) -> impl Iterator<Item = &Module> {
    desired.modules.values().map(|module| &**module).filter(|module| module.mode == ForwardMode::Nat)
}

/// Whether this is a backend that may answer clients by their own addresses.
fn is_transparent(desired: &Desired, addr: IpAddr) -> bool {
    nat_modules(desired).any(|module| module.snat != Snat::Always && addresses(module).any(|a| a == addr))
}

fn addresses(module: &Module) -> impl Iterator<Item = IpAddr> + use<> {
    let (v4, v6) = (module.data.v4, module.data.v6);
    v4.map(IpAddr::from).into_iter().chain(v6.map(IpAddr::from))
}

pub fn family_of(addr: IpAddr) -> Family {
    families()[usize::from(addr.is_ipv6())]
}

fn same_family(a: IpAddr, b: IpAddr) -> bool {
    a.is_ipv4() == b.is_ipv4()
}
