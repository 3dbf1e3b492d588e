//! Requests to the kernel about links, addresses, routes and neighbours (rtnetlink, RFC 3549).

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::Context;
use futures_util::TryStreamExt as _;
use futures_util::stream::StreamExt as _;
use ipnet::IpNet;
use nlb_common::net::Mac;
use rtnetlink::packet_core::Nla as _;
use rtnetlink::packet_route::address::AddressAttribute;
use rtnetlink::packet_route::link::{
    InfoData, InfoKind, InfoVlan, LinkAttribute, LinkFlags, LinkInfo, LinkMessage, LinkXdp,
};
use rtnetlink::packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use rtnetlink::packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteMetric, RouteType};
use rtnetlink::{Handle, MulticastGroup, RouteMessageBuilder};
use tokio::sync::mpsc;

use super::link::{Kind, Link};

/// A connection to the kernel's routing subsystem.
pub(crate) struct Netlink {
    handle: Handle,
}

/// The route to an address.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RouteTo {
    pub ifindex: u32,
    /// The router; `None` if the address is on the same link.
    pub gateway: Option<IpAddr>,
    pub source: Option<IpAddr>,
    /// The route's own MTU (`ip route ... mtu`), or what the kernel has learned of the path.
    pub mtu: Option<u32>,
}

/// An entry of the kernel's neighbour table.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Neighbour {
    /// `None` for a neighbour that did not answer.
    pub mac: Option<Mac>,
    /// The host's configuration (`nud permanent`), or a link without resolution (`noarp`): the kernel uses
    /// the entry as it is, and so does the daemon. A request to resolve it would end that state.
    pub is_fixed: bool,
}

impl Netlink {
    /// Opens the connection. The receiver gets an event when links, addresses, routes, rules or neighbours
    /// change; one event may stand for several changes.
    pub(crate) fn open() -> anyhow::Result<(Self, mpsc::Receiver<()>)> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv4Rule,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv6Route,
            MulticastGroup::Ipv6Rule,
        ];
        let (connection, handle, mut messages) =
            rtnetlink::new_multicast_connection(&groups).context("opening a netlink socket")?;
        tokio::spawn(connection);
        let (sender, events) = mpsc::channel(1);
        tokio::spawn(async move {
            while messages.next().await.is_some() {
                // A full channel holds an event that was not received yet, which covers this change too.
                let _ = sender.try_send(());
            }
        });
        Ok((Netlink { handle }, events))
    }

    /// Links by index.
    pub(crate) async fn links(&self) -> anyhow::Result<HashMap<u32, Link>> {
        let mut links = HashMap::new();
        let mut answers = self.handle.link().get().execute();
        while let Some(message) = answers.try_next().await.context("listing links")? {
            let ifindex = message.header.index;
            links.insert(ifindex, parse_link(message));
        }
        Ok(links)
    }

    /// The host's addresses with the prefixes of their links.
    pub(crate) async fn addresses(&self) -> anyhow::Result<Vec<(u32, IpNet)>> {
        let mut nets = Vec::new();
        let mut answers = self.handle.address().get().execute();
        while let Some(message) = answers.try_next().await.context("listing addresses")? {
            let address = message.attributes.iter().find_map(|attribute| match attribute {
                AddressAttribute::Address(addr) => Some(*addr),
                _ => None,
            });
            if let Some(net) = address.and_then(|addr| IpNet::new(addr, message.header.prefix_len).ok()) {
                nets.push((message.header.index, net));
            }
        }
        Ok(nets)
    }

    /// The kernel's neighbours, by link and address.
    pub(crate) async fn neighbours(&self) -> anyhow::Result<HashMap<(u32, IpAddr), Neighbour>> {
        let mut neighbours = HashMap::new();
        let mut answers = self.handle.neighbours().get().execute();
        while let Some(message) = answers.try_next().await.context("listing neighbours")? {
            if let Some((addr, neighbour)) = parse_neighbour(&message) {
                neighbours.insert((message.header.ifindex, addr), neighbour);
            }
        }
        Ok(neighbours)
    }

    /// The route that the kernel selects, by loopback if it ends on this host; `None` if there is no route.
    pub(crate) async fn route(&self, to: IpAddr) -> anyhow::Result<Option<RouteTo>> {
        self.choose(to, None).await
    }

    /// The route of packets from an address of this host, for which policy rules may differ.
    pub(crate) async fn route_from(&self, from: IpAddr, to: IpAddr) -> anyhow::Result<Option<RouteTo>> {
        self.choose(to, Some(from)).await
    }

    async fn choose(&self, to: IpAddr, from: Option<IpAddr>) -> anyhow::Result<Option<RouteTo>> {
        let whole = |address: IpAddr| if address.is_ipv4() { 32 } else { 128 };
        let mut question = RouteMessageBuilder::<IpAddr>::new().destination_prefix(to, whole(to))?;
        if let Some(from) = from {
            question = question.source_prefix(from, whole(from))?;
        }
        let question = question.build();
        let mut answers = self.handle.route().get(question).execute();
        match answers.try_next().await {
            Ok(answer) => Ok(answer.and_then(|message| parse_route(&message))),
            // Such as "Network unreachable".
            Err(rtnetlink::Error::NetlinkError(_)) => Ok(None),
            Err(error) => Err(error).context(format!("asking for the route to {to}")),
        }
    }

    /// Asks the kernel to resolve or confirm a neighbour's MAC address. The neighbour must not be fixed.
    pub(crate) async fn resolve(&self, ifindex: u32, addr: IpAddr) -> anyhow::Result<()> {
        let request = self
            .handle
            .neighbours()
            .add(ifindex, addr)
            .state(NeighbourState::None)
            .flags(NeighbourFlags::Use)
            .replace();
        request.execute().await.with_context(|| format!("requesting neighbour resolution of {addr}"))
    }
}

fn parse_link(message: LinkMessage) -> Link {
    let (mut mac, mut elsewhere) = (None, false);
    let mut link = Link {
        name: String::new(),
        mac: Mac::NONE,
        mtu: 0,
        kind: Kind::Other,
        below: None,
        controller: None,
        up: message.header.flags.contains(LinkFlags::Up),
        native_xdp: false,
    };
    for attribute in message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Address(bytes) => mac = <[u8; 6]>::try_from(bytes).ok().map(Mac::new),
            LinkAttribute::Mtu(mtu) => link.mtu = mtu,
            LinkAttribute::Link(ifindex) => link.below = Some(ifindex),
            LinkAttribute::LinkNetNsId(_) => elsewhere = true,
            LinkAttribute::Controller(ifindex) => link.controller = Some(ifindex),
            LinkAttribute::Xdp(programs) => {
                link.native_xdp = programs.iter().any(|program| matches!(program, LinkXdp::DrvProgId(_)));
            }
            LinkAttribute::LinkInfo(details) => {
                link.kind = kind(&details);
            }
            _ => {}
        }
    }
    link.below = link.below.filter(|_| !elsewhere);
    match mac {
        Some(mac) => Link { mac, ..link },
        // The addresses of tunnels are shorter or longer.
        None => Link { kind: Kind::NoMac, ..link },
    }
}

fn kind(details: &[LinkInfo]) -> Kind {
    let name = details.iter().find_map(|detail| match detail {
        LinkInfo::Kind(name) => Some(name),
        _ => None,
    });
    match name {
        Some(InfoKind::Veth) => Kind::Veth,
        Some(InfoKind::Bridge) => Kind::Bridge,
        Some(InfoKind::Bond) => Kind::Bond,
        Some(InfoKind::Team) => Kind::Team,
        Some(InfoKind::Vlan) => Kind::Vlan(vlan_id(details)),
        Some(InfoKind::MacVlan) => Kind::MacVlan,
        Some(InfoKind::MacVtap) => Kind::MacVtap,
        Some(InfoKind::IpVlan | InfoKind::IpVtap) => Kind::IpVlan,
        // A TUN device has no MAC address.
        Some(InfoKind::Tun) => Kind::Tap { vnet_hdr: has_vnet_hdr(details) },
        _ => Kind::Other,
    }
}

fn vlan_id(details: &[LinkInfo]) -> u16 {
    let ids = details.iter().filter_map(|detail| match detail {
        LinkInfo::Data(InfoData::Vlan(vlan)) => Some(vlan),
        _ => None,
    });
    let id = ids.flatten().find_map(|attribute| match attribute {
        InfoVlan::Id(id) => Some(*id),
        _ => None,
    });
    id.unwrap_or_default()
}

/// Whether a tap's frames have a vnet_hdr, an attribute that the library does not parse.
fn has_vnet_hdr(details: &[LinkInfo]) -> bool {
    const IFLA_TUN_VNET_HDR: u16 = 5;
    let mut attributes = details.iter().filter_map(|detail| match detail {
        LinkInfo::Data(InfoData::Tun(attributes)) => Some(attributes),
        _ => None,
    });
    attributes.any(|attributes| {
        attributes.iter().any(|attribute| {
            let mut value = vec![0; attribute.value_len()];
            attribute.emit_value(&mut value);
            attribute.kind() == IFLA_TUN_VNET_HDR && value != [0]
        })
    })
}

/// `None` for a neighbour whose resolution is in progress.
fn parse_neighbour(message: &NeighbourMessage) -> Option<(IpAddr, Neighbour)> {
    use NeighbourState as S;
    let state = message.header.state;
    if !matches!(state, S::Reachable | S::Stale | S::Delay | S::Probe | S::Permanent | S::Noarp | S::Failed) {
        return None;
    }
    let (mut addr, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(a)) => addr = Some(IpAddr::from(*a)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(a)) => addr = Some(IpAddr::from(*a)),
            NeighbourAttribute::LinkLayerAddress(bytes) => {
                mac = <[u8; 6]>::try_from(bytes.as_slice()).ok().map(Mac::new);
            }
            _ => {}
        }
    }
    let is_fixed = matches!(state, S::Permanent | S::Noarp);
    match state {
        S::Failed => Some((addr?, Neighbour { mac: None, is_fixed })),
        _ if is_fixed => Some((addr?, Neighbour { mac, is_fixed })),
        _ => Some((addr?, Neighbour { mac: Some(mac?), is_fixed })),
    }
}

fn parse_route(message: &RouteMessage) -> Option<RouteTo> {
    if !matches!(message.header.kind, RouteType::Unicast | RouteType::Local) {
        return None;
    }
    let ip = |address: &RouteAddress| match address {
        RouteAddress::Inet(a) => Some(IpAddr::from(*a)),
        RouteAddress::Inet6(a) => Some(IpAddr::from(*a)),
        _ => None,
    };
    let (mut ifindex, mut gateway, mut source, mut mtu) = (None, None, None, None);
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => ifindex = Some(*index),
            RouteAttribute::Gateway(address) => gateway = ip(address),
            RouteAttribute::PrefSource(address) => source = ip(address),
            RouteAttribute::Metrics(metrics) => {
                mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(RouteTo { ifindex: ifindex?, gateway, source, mtu })
}
