//! The model of the balancer: a plain program by docs/datapath.md, with flows in an ordered map.
//!
//! The model does not compute two facts: the backend of a new flow (`MapImage::choose`), and the flow hash in
//! flow labels, outer ports and outer sources. A SNAT port may be any that no other flow to the same backend
//! uses, so the model reads it from the packet that was sent.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;
use nlb::compile::{FlowTuple, MapImage};
use nlb::model::next_hop::Hops;
use nlb::model::{Backend, Desired, Destination, ForwardMode, Health, L4, Module, Snat};

use super::edits::{self, Frame, IcmpError};
use super::fragments::{First, Followed, Fragments};
use super::headers::{self, Exits, Fragment, Ip, Segment, Tcp};
use super::quic;
use crate::rig::{BACK_MTU, BACKEND_MAC, CLIENT_MAC, Family, GUE_PORT, OUR_BACK_MAC, OUR_MAC, families};

/// The input of the model.
pub struct World<'a> {
    pub desired: &'a Desired,
    pub hops: &'a Hops,
    pub image: &'a MapImage,
    /// Whether packets may come from this host itself.
    pub at_tc_ingress: bool,
    pub flow_hash: fn(&FlowTuple) -> u32,
}

/// The expected result of a packet.
#[derive(Debug)]
pub enum Expected {
    /// Unchanged, with one of these exits.
    Untouched(Exits),
    Sent(&'static str, Frame),
    /// An ICMP error to its sender, or a drop by the rate limit of ICMP errors.
    IcmpError(Ip, IcmpError),
}

/// The growth of a backend's counters.
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
    /// The source address and port that the backend sees.
    pub nat_source: (IpAddr, u16),
    /// Whether that address is the NLB's.
    snat: bool,
    client_fin: bool,
    backend_fin: bool,
    reset: bool,
}

#[derive(Default)]
pub struct Model {
    pub flows: BTreeMap<FlowKey, Flow>,
    /// NAT backends whose next hop has been known.
    reached: BTreeSet<IpAddr>,
    /// What backends saw of flows that were removed. A port may stay with such a flow, which may go on.
    lost: BTreeSet<(IpAddr, u16, IpAddr)>,
    pub grown: BTreeMap<Backend, Growth>,
    pub fragments: Fragments,
    /// Flows with another backend by connection id than by hash.
    pub moved: u64,
}

pub type Decision = Result<Expected, Exits>;

impl Model {
    /// Updates the model after a change of the tables. Flows of removed backends are removed.
    pub fn tables_changed(&mut self, world: &World) {
        let removed = self.flows.values().filter(|flow| !offered(world.desired, &flow.backend));
        self.lost.extend(removed.map(|flow| (flow.nat_source.0, flow.nat_source.1, flow.backend.addr)));
        self.flows.retain(|_, flow| offered(world.desired, &flow.backend));
        self.fragments.retain(|backend| offered(world.desired, backend));
        let nat: BTreeSet<IpAddr> = nat_modules(world.desired).flat_map(addresses).collect();
        self.reached.extend(nat.iter().filter(|addr| world.hops.contains_key(addr)));
        self.reached.retain(|addr| nat.contains(addr));
    }

    /// The expected result of a frame. `out` is the frame that was sent, from which the SNAT port is read.
    pub fn packet(&mut self, world: &World, frame: &[u8], out: &[u8]) -> Result<Expected, String> {
        self.grown.clear();
        let ip = match headers::ip(frame) {
            Ok(ip) => ip,
            Err(exits) => return Ok(Expected::Untouched(exits)),
        };
        // With a backend that replies to clients' addresses, any address may be of interest to the program.
        let concerns = world.desired.all_vips().contains(&ip.dst) || self.is_ours(ip.dst);
        if ![OUR_MAC, OUR_BACK_MAC].contains(&headers::destination_mac(frame)) {
            let exits: Exits = match concerns || is_transparent(world.desired, ip.src) {
                true => &["pass other_host"],
                false => &["pass not_ours", "pass other_host"],
            };
            return Ok(Expected::Untouched(exits));
        }
        let fragment = headers::fragment(frame, &ip);
        let decision = if world.desired.all_vips().contains(&ip.dst) {
            match fragment.filter(|fragment| fragment.later) {
                Some(fragment) => self.follow(world, frame, &ip, &fragment, &["drop fragment"]),
                None => self.client_packet(world, frame, &ip, out)?,
            }
        } else if self.is_ours(ip.dst) || is_transparent(world.desired, ip.src) {
            match fragment.filter(|fragment| fragment.later) {
                Some(fragment) => self.follow(world, frame, &ip, &fragment, &["pass no_flow"]),
                None => self.backend_packet(world, frame, &ip),
            }
        } else {
            Err(&["pass not_ours"][..])
        };
        if decision.as_ref().is_err_and(|exits| *exits == FRAGMENTED) {
            self.fragments.punted(&ip, fragment);
        }
        Ok(decision.unwrap_or_else(Expected::Untouched))
    }

    /// Whether this is an address of the NLB for replies.
    fn is_ours(&self, addr: IpAddr) -> bool {
        families().iter().any(|f| f.source == addr && self.reached.iter().any(|b| same_family(*b, addr)))
    }

    /// Whether no other host has this address.
    fn is_martian(&self, world: &World, src: IpAddr) -> bool {
        let own = world.desired.all_vips().contains(&src) || self.is_ours(src);
        !world.at_tc_ingress && (own || !is_one_host(src))
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
            return Ok(expired(frame, ip));
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
        let is_whole = headers::fragment(frame, ip).is_none();
        let named = if is_whole { named(world, frame, ip.dst, &segment) } else { None };
        let keeps = |flow: &&Flow| match &named {
            Some(backend) => flow.backend == *backend,
            None => stays(world.desired, flow, &segment),
        };
        let known = self.flows.get(&key).filter(keeps).cloned();
        let (backend, is_new) = match &known {
            Some(flow) => (flow.backend.clone(), false),
            None if self.is_martian(world, ip.src) => return Ok(Err(&["drop martian_source"])),
            None => {
                if !sources.iter().any(|s| s.is_none_or(|prefix| prefix.contains(&ip.src))) {
                    return Ok(Err(closed));
                }
                self.moved += u64::from(named.is_some() && named.as_ref() != world.image.choose(&tuple));
                match named.as_ref().or_else(|| world.image.choose(&tuple)) {
                    Some(backend) => (backend.clone(), true),
                    None => return Ok(refused(world.desired, frame, ip, &segment)),
                }
            }
        };
        if !world.hops.contains_key(&backend.addr) {
            return Ok(Err(punted(frame)));
        }
        if frame[6..12] == OUR_BACK_MAC {
            return Ok(Err(&["drop loop"]));
        }
        if let Some(stopped) = too_long(frame, ip, BACK_MTU - grown(&backend)) {
            return Ok(stopped);
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
        let (src, dst) = match backend.mode {
            ForwardMode::Nat => (flow.nat_source.0, backend.addr),
            ForwardMode::DsrL2 | ForwardMode::DsrIpip | ForwardMode::Gue => (ip.src, ip.dst),
        };
        let followed = Followed { backend, src, dst, tuple: Some(tuple) };
        self.fragments.remember(ip, headers::fragment(frame, ip), followed);
        Ok(forwarded(world, frame, ip, &segment, &tuple, &flow))
    }

    /// Records a new flow.
    fn open(&self, key: &FlowKey, backend: &Backend, out: &[u8], segment: &Segment) -> Result<Flow, String> {
        let flow = |nat_source, snat| Flow {
            backend: backend.clone(),
            nat_source,
            snat,
            client_fin: false,
            backend_fin: false,
            reset: false,
        };
        if backend.mode != ForwardMode::Nat {
            return Ok(flow((key.client, key.client_port), false));
        }
        let on_link = IpNet::new(backend.addr, if backend.addr.is_ipv4() { 24 } else { 64 })
            .expect("a length of the family's")
            .contains(&key.client);
        let snat = match backend.snat {
            Snat::Always => true,
            Snat::OnLink => on_link,
            Snat::Never => false,
        } || key.client == backend.addr;
        let addr = if snat { family_of(backend.addr).source } else { key.client };
        let port_at = segment.at..segment.at + 2;
        let port = out.get(port_at).map_or(0, |port| u16::from_be_bytes([port[0], port[1]]));
        // A flow that is opened again may get its former port or another one.
        let used_by_others = |port: u16| {
            self.flows.iter().any(|(other, flow)| {
                other != key
                    && other.udp == key.udp
                    && flow.nat_source == (addr, port)
                    && flow.backend.addr == backend.addr
                    && data_port(&flow.backend, other.port) == data_port(backend, key.port)
            })
        };
        let may_keep = !snat && !used_by_others(key.client_port);
        let reopened = self.flows.contains_key(key);
        let may_be_lost = self.lost.contains(&(addr, key.client_port, backend.addr));
        let right = if may_keep && !reopened && !may_be_lost {
            port == key.client_port
        } else {
            may_keep && port == key.client_port || (1024..=32_767).contains(&port) && !used_by_others(port)
        };
        if !right {
            return Err(format!("{addr} port {port} towards {} is not allowed for this flow", backend.addr));
        }
        Ok(flow((addr, port), snat))
    }

    fn backend_packet(&mut self, world: &World, frame: &[u8], ip: &Ip) -> Decision {
        const NO_FLOW: Exits = &["pass no_flow"];
        let segment = headers::segment(frame, ip).map_err(|_| NO_FLOW)?;
        // A client with one of the NLB's addresses is taken for the NLB.
        let to_us = self.is_ours(ip.dst);
        let (key, flow) = self
            .flows
            .iter_mut()
            .find(|(key, flow)| {
                flow.backend.mode == ForwardMode::Nat
                    && key.udp == (segment.l4 == L4::Udp)
                    && (flow.backend.addr, data_port(&flow.backend, key.port)) == (ip.src, segment.sport)
                    && flow.nat_source == (ip.dst, segment.dport)
                    && flow.snat == to_us
            })
            .ok_or(NO_FLOW)?;
        if ip.ttl <= 1 {
            return expired(frame, ip);
        }
        if let Some(stopped) = towards_client(frame, ip, key.client) {
            return stopped;
        }
        flow.note(segment.tcp, false);
        let growth = self.grown.entry(flow.backend.clone()).or_default();
        growth.reply_packets += 1;
        growth.reply_bytes += (ip.end - ip.l3) as u64;
        growth.resets += u64::from(segment.tcp.is_some_and(|tcp| tcp.rst));
        let (vip, client) = ((key.vip, key.port), (key.client, key.client_port));
        debug_assert!(offered(world.desired, &flow.backend));
        let reply = edits::translated(frame, ip, &segment, vip, client);
        let followed = Followed { backend: flow.backend.clone(), src: vip.0, dst: client.0, tuple: None };
        self.fragments.remember(ip, headers::fragment(frame, ip), followed);
        Ok(Expected::Sent("send reply", reply.macs(CLIENT_MAC, OUR_MAC)))
    }

    /// The result of a later fragment; `unknown` if its first was not recorded.
    fn follow(
        &mut self,
        world: &World,
        frame: &[u8],
        ip: &Ip,
        fragment: &Fragment,
        unknown: Exits,
    ) -> Decision {
        let first = self.fragments.first_of(ip, fragment).ok_or(unknown)?;
        if ip.ttl <= 1 {
            return Err(&["drop ttl_exceeded"]);
        }
        let First::Sent(followed) = first else { return Err(FRAGMENTED) };
        let growth = self.grown.entry(followed.backend.clone()).or_default();
        let bytes = (ip.end - ip.l3) as u64;
        let Some(tuple) = followed.tuple else {
            if let Some(stopped) = towards_client(frame, ip, followed.dst) {
                return stopped;
            }
            growth.reply_packets += 1;
            growth.reply_bytes += bytes;
            let reply = edits::readdressed(frame, ip, followed.src, followed.dst);
            return Ok(Expected::Sent("send reply", reply.macs(CLIENT_MAC, OUR_MAC)));
        };
        let backend = &followed.backend;
        if !world.hops.contains_key(&backend.addr) {
            return Err(punted(frame));
        }
        if frame[6..12] == OUR_BACK_MAC {
            return Err(&["drop loop"]);
        }
        if let Some(stopped) = too_long(frame, ip, BACK_MTU - grown(backend)) {
            return stopped;
        }
        growth.packets += 1;
        growth.bytes += bytes;
        sent_on(world, frame, ip, backend, &tuple, || {
            edits::readdressed(frame, ip, followed.src, followed.dst)
        })
    }
}

impl Flow {
    fn note(&mut self, tcp: Option<Tcp>, from_client: bool) {
        let Some(tcp) = tcp else { return };
        self.reset = tcp.rst;
        if from_client && tcp.opens() && !tcp.rst {
            (self.client_fin, self.backend_fin) = (false, false);
        }
        if tcp.fin && !tcp.rst {
            let side = if from_client { &mut self.client_fin } else { &mut self.backend_fin };
            *side = true;
        }
    }

    fn is_closed(&self) -> bool {
        self.reset || self.client_fin && self.backend_fin
    }
}

/// The backend for this VIP of the module that the packet's connection id names.
fn named(world: &World, frame: &[u8], vip: IpAddr, segment: &Segment) -> Option<Backend> {
    let payload = frame.get(segment.at + 8..segment.at + segment.len).filter(|_| segment.l4 == L4::Udp)?;
    let mut modules = world.desired.modules.iter();
    let (name, module) = modules.find(|(_, module)| quic::names(payload, module))?;
    let route = module.routes.iter().find(|(_, route)| route.protocol.l4() == L4::Udp)?.0;
    let mut backends = world.image.backend_ids.iter().map(|(_, backend)| &**backend);
    let serves = |backend: &&Backend| {
        let key = backend.route.as_ref();
        backend.instance_id == *name
            && key.is_some_and(|key| key.id == *route)
            && same_family(backend.addr, vip)
    };
    backends.find(serves).cloned()
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
    sent_on(world, frame, ip, backend, tuple, || {
        let to = (backend.addr, data_port(backend, tuple.port));
        edits::translated(frame, ip, segment, flow.nat_source, to)
    })
}

/// A packet that is sent to its backend; `translated` makes the frame of NAT.
fn sent_on(
    world: &World,
    frame: &[u8],
    ip: &Ip,
    backend: &Backend,
    tuple: &FlowTuple,
    translated: impl FnOnce() -> Frame,
) -> Decision {
    let sent = match backend.mode {
        ForwardMode::Nat => translated(),
        ForwardMode::DsrL2 => edits::decremented(frame, ip),
        ForwardMode::DsrIpip | ForwardMode::Gue => {
            let hash = (world.flow_hash)(tuple);
            // The upper bits of the hash select one of the 2^14 dynamic ports (RFC 6335).
            let in_udp = backend.mode == ForwardMode::Gue;
            let ports = in_udp.then_some((49_152 + (hash >> 18) as u16, GUE_PORT));
            let src = if in_udp { family_of(backend.addr).source } else { outer_source(backend.addr, hash) };
            let outer = edits::Outer { src, dst: backend.addr, ports };
            edits::wrapped(frame, ip, &outer, hash & 0xf_ffff)
        }
    };
    Ok(Expected::Sent("send forward", sent.macs(BACKEND_MAC, OUR_BACK_MAC)))
}

/// The prefixes of outer sources of dsr-ipip.
pub const IPIP_SOURCES: [&str; 2] = ["10.200.0.0/16", "fd00:200::/112"];

/// The outer source, whose last 16 bits are the hash's.
fn outer_source(backend: IpAddr, hash: u32) -> IpAddr {
    let [high, low] = (hash as u16).to_be_bytes();
    match backend {
        IpAddr::V4(_) => [10, 200, high, low].into(),
        IpAddr::V6(_) => [0xfd00, 0x200, 0, 0, 0, 0, 0, hash as u16].into(),
    }
}

/// The reason why a packet is not sent to a client, if there is one: first the kernel's routes, then its
/// neighbours.
fn towards_client(frame: &[u8], ip: &Ip, client: IpAddr) -> Option<Decision> {
    let known = client == family_of(client).client;
    if !known && !is_neighbour(client) {
        Some(Err(&["drop no_route"]))
    } else if let Some(stopped) = too_long(frame, ip, CLIENT_MTU) {
        Some(stopped)
    } else if !known {
        Some(Err(punted(frame)))
    } else if frame[6..12] == OUR_MAC {
        Some(Err(&["drop loop"]))
    } else {
        None
    }
}

/// The bytes of the outer headers towards a backend.
fn grown(backend: &Backend) -> u16 {
    let outer_ip = if backend.addr.is_ipv4() { 20 } else { 40 };
    match backend.mode {
        ForwardMode::Nat | ForwardMode::DsrL2 => 0,
        ForwardMode::DsrIpip => outer_ip,
        ForwardMode::Gue => outer_ip + 8,
    }
}

/// The result of a packet whose TTL does not allow forwarding (row 21). Later fragments and ICMP errors are
/// not answered.
fn expired(frame: &[u8], ip: &Ip) -> Decision {
    match may_be_answered(frame, ip) {
        true => Ok(Expected::IcmpError(ip.clone(), IcmpError::TtlExceeded)),
        false => Err(&["drop ttl_exceeded"]),
    }
}

/// The exit of a packet that user space fragments.
pub const FRAGMENTED: Exits = &["park fragment"];

/// The result of a packet that exceeds the MTU (row 9).
fn too_long(frame: &[u8], ip: &Ip, mtu: u16) -> Option<Decision> {
    if ip.end - ip.l3 <= mtu as usize {
        return None;
    }
    Some(if ip.may_be_fragmented {
        Err(FRAGMENTED)
    } else if !may_be_answered(frame, ip) {
        Err(&["drop too_big"])
    } else {
        Ok(Expected::IcmpError(ip.clone(), IcmpError::TooBig(mtu)))
    })
}

/// The result of a packet to a service without a backend (row 2).
fn refused(desired: &Desired, frame: &[u8], ip: &Ip, segment: &Segment) -> Decision {
    const DROPPED: Exits = &["drop no_backend"];
    match &segment.tcp {
        _ if !desired.reject || !may_be_answered(frame, ip) => Err(DROPPED),
        None => Ok(Expected::IcmpError(ip.clone(), IcmpError::PortUnreachable)),
        Some(tcp) if tcp.rst => Err(DROPPED),
        Some(tcp) => Ok(Expected::Sent("send reject", edits::reset(frame, ip, segment, tcp))),
    }
}

/// Whether the source of a packet is a single host, which may be answered.
fn may_be_answered(frame: &[u8], ip: &Ip) -> bool {
    is_one_host(ip.src) && frame[6] & 1 == 0
}

fn is_one_host(addr: IpAddr) -> bool {
    match addr {
        IpAddr::V4(v4) => !matches!(v4.octets()[0], 0 | 127 | 224..),
        IpAddr::V6(v6) => !v6.is_multicast() && !v6.is_loopback() && !v6.is_unspecified(),
    }
}

/// Whether an address may be a neighbour on the rig's link. The lowest address may: in IPv4 since Linux 5.14,
/// in IPv6 if the interface does not forward.
pub fn is_neighbour(addr: IpAddr) -> bool {
    let link = if addr.is_ipv4() { "198.51.100.1/24" } else { "2001:db8:c::1/64" };
    let link: IpNet = link.parse().expect("a prefix");
    let broadcast = addr.is_ipv4() && addr == link.broadcast();
    link.contains(&addr) && addr != link.addr() && !broadcast
}

/// The MTU of the rig's link.
const CLIENT_MTU: u16 = 1500;

/// The exit of a frame whose next hop is not known. A long frame is not punted.
fn punted(frame: &[u8]) -> Exits {
    if frame.len() > 2048 { &["drop park_full"] } else { &["park next_hop"] }
}

/// The source prefixes of a service's routes; empty if there is no service.
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

/// The backend's port for packets to `port`.
pub fn data_port(backend: &Backend, port: u16) -> u16 {
    if backend.port == 0 { port } else { backend.port }
}

fn nat_modules(desired: &Desired) -> impl Iterator<Item = &Module> {
    desired.modules.values().map(|module| &**module).filter(|module| module.mode == ForwardMode::Nat)
}

/// Whether this is a NAT backend that may see clients' addresses.
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
