//! Links as the kernel describes them, and the interface where XDP gets their packets.
//!
//! A link may be stacked on another (a VLAN device on a card) or be a port of one (a card of a bond). XDP
//! runs in drivers, so it gets such packets on another interface than the one with the addresses and routes.
//! The operator has to name the interface where XDP gets them.

use std::collections::HashMap;

use nlb_common::net::Mac;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Link {
    pub name: String,
    pub mac: Mac,
    pub mtu: u32,
    pub kind: Kind,
    /// The link that this one is stacked on, or a veth's other end, if that is in this network namespace.
    pub below: Option<u32>,
    /// The bridge or bond that this link is a port of.
    pub controller: Option<u32>,
    /// It is set up (`ip link set up`).
    pub up: bool,
    /// An XDP program is attached to its driver.
    pub native_xdp: bool,
}

/// The kind of a link, as far as the balancer distinguishes them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Veth,
    Bridge,
    Bond,
    Team,
    /// The VLAN's number.
    Vlan(u16),
    MacVlan,
    /// A macvlan device whose frames a virtual machine reads and writes.
    MacVtap,
    IpVlan,
    Tap {
        /// Its frames start with a vnet_hdr (`IFF_VNET_HDR`), as those of virtual machines do: a checksum may
        /// be unfinished, and a frame may be many segments. XDP does not get that header.
        vnet_hdr: bool,
    },
    /// A link without MAC addresses: a tunnel, or a TUN device. Only the kernel's stack can send there.
    NoMac,
    /// A card or any other link.
    Other,
}

/// Why XDP cannot serve an interface, and what to do about it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unsuitable {
    #[error("--iface {0}: there is no such interface with MAC addresses; `ip link` lists them")]
    Missing(String),
    #[error(
        "--iface {0}: loopback is served without being named; name the interfaces that lead to other hosts"
    )]
    Loopback(String),
    #[error(
        "--iface {name} is {what}; XDP receives its packets on {instead}: name {instead}, and what is behind {name} is \
         served, too"
    )]
    Stacked { name: String, what: &'static str, instead: String },
    #[error(
        "--iface {name} is {what}; XDP receives its packets on the interface below it, which is in another network \
         namespace: run the NLB there"
    )]
    Elsewhere { name: String, what: &'static str },
    #[error(
        "--iface {name} is a port of {what} {of}, which has its addresses and routes: name {instead}{remark}"
    )]
    Port { name: String, what: &'static str, of: String, instead: String, remark: &'static str },
}

impl Link {
    /// Whether packets reach the link through the kernel's stack: links to containers and virtual machines of
    /// this host, and links that XDP cannot send to.
    pub(crate) fn is_local(&self) -> bool {
        match self.kind {
            Kind::Bridge => true,
            Kind::Veth | Kind::Tap { .. } => self.controller.is_none(),
            kind => kind.stacked().is_some(),
        }
    }

    /// Whether its frames have a vnet_hdr, which XDP would lose: XDP cannot serve such a link.
    pub(crate) fn has_vnet_hdr(&self) -> bool {
        self.kind == Kind::Tap { vnet_hdr: true }
    }
}

impl Kind {
    /// The name of a kind that is stacked on another link, where XDP gets its packets.
    pub(crate) fn stacked(self) -> Option<&'static str> {
        match self {
            Kind::Vlan(_) => Some("a VLAN device"),
            Kind::MacVlan => Some("a macvlan device"),
            Kind::MacVtap => Some("a macvtap device"),
            Kind::IpVlan => Some("an ipvlan device"),
            Kind::Veth
            | Kind::Bridge
            | Kind::Bond
            | Kind::Team
            | Kind::Tap { .. }
            | Kind::NoMac
            | Kind::Other => None,
        }
    }

    /// The name of a kind that has ports, and holds the addresses and routes for them.
    pub(crate) fn with_ports(self) -> Option<&'static str> {
        match self {
            Kind::Bond => Some("the bond"),
            Kind::Team => Some("the team"),
            Kind::Bridge => Some("the bridge"),
            Kind::Veth
            | Kind::Vlan(_)
            | Kind::MacVlan
            | Kind::MacVtap
            | Kind::IpVlan
            | Kind::Tap { .. }
            | Kind::NoMac
            | Kind::Other => None,
        }
    }
}

/// The index of the interface with this name, if XDP can serve it.
pub(crate) fn suitable(name: &str, links: &HashMap<u32, Link>) -> Result<u32, Unsuitable> {
    let found = links.iter().find(|(_, link)| link.name == name && link.kind != Kind::NoMac);
    let (ifindex, link) = found.ok_or_else(|| Unsuitable::Missing(name.to_owned()))?;
    if *ifindex == nlb_common::abi::LOOPBACK {
        return Err(Unsuitable::Loopback(name.to_owned()));
    }
    let name = || name.to_owned();
    if let Some(what) = link.kind.stacked() {
        return Err(match link.below.and_then(|below| links.get(&below)) {
            Some(below) => {
                Unsuitable::Stacked { name: name(), what, instead: outermost(below, links).name.clone() }
            }
            None => Unsuitable::Elsewhere { name: name(), what },
        });
    }
    if let Some(controller) = link.controller.and_then(|controller| links.get(&controller))
        && let Some(what) = controller.kind.with_ports()
    {
        let instead = outermost(controller, links);
        let remark = if instead.kind == Kind::Bridge { ", which has generic XDP only" } else { "" };
        let (of, instead) = (controller.name.clone(), instead.name.clone());
        return Err(Unsuitable::Port { name: name(), what, of, instead, remark });
    }
    Ok(*ifindex)
}

/// Whether a link or one of its ports is a veth.
pub(crate) fn has_veth(ifindex: u32, links: &HashMap<u32, Link>) -> bool {
    veths(ifindex, links).next().is_some()
}

/// The veths among a link and its ports.
pub(crate) fn veths(ifindex: u32, links: &HashMap<u32, Link>) -> impl Iterator<Item = &Link> {
    let itself_and_ports =
        links.iter().filter(move |(index, link)| **index == ifindex || link.controller == Some(ifindex));
    itself_and_ports.map(|(_, link)| link).filter(|link| link.kind == Kind::Veth)
}

/// A link of a test, which stands alone.
#[cfg(test)]
pub(crate) fn alone(name: &str, kind: Kind) -> Link {
    Link {
        name: name.to_owned(),
        mac: Mac::NONE,
        mtu: 1500,
        kind,
        below: None,
        controller: None,
        up: true,
        native_xdp: false,
    }
}

/// The link that XDP serves instead of this one: follows stacked links down and ports up.
fn outermost<'a>(link: &'a Link, links: &'a HashMap<u32, Link>) -> &'a Link {
    let stacked_on = link.below.filter(|_| link.kind.stacked().is_some()).and_then(|below| links.get(&below));
    let port_of = || link.controller.and_then(|controller| links.get(&controller));
    let next = stacked_on.or_else(|| port_of().filter(|of| of.kind.with_ports().is_some()));
    next.map_or(link, |next| outermost(next, links))
}

#[cfg(test)]
mod tests {
    use super::*;

    const VLAN: Kind = Kind::Vlan(10);

    fn stacked(name: &str, kind: Kind, below: u32) -> Link {
        Link { below: Some(below), ..alone(name, kind) }
    }

    fn port(name: &str, controller: u32) -> Link {
        Link { controller: Some(controller), ..alone(name, Kind::Other) }
    }

    /// The error for an interface of a host with many links.
    fn refusal(name: &str) -> Option<String> {
        let links = [
            (1, alone("lo", Kind::Other)),
            (2, alone("eth0", Kind::Other)),
            (3, stacked("eth0.10", VLAN, 2)),
            (4, stacked("eth0.10.20", VLAN, 3)),
            (5, alone("bond0", Kind::Bond)),
            (6, port("eth1", 5)),
            (7, stacked("eth1.10", VLAN, 6)),
            (8, stacked("bond0.10", VLAN, 5)),
            (9, alone("br0", Kind::Bridge)),
            (10, port("eth2", 9)),
            (11, Link { controller: Some(9), ..stacked("bond0.20", VLAN, 5) }),
            (12, stacked("vf0", Kind::MacVlan, 99)),
            (13, alone("vrf0", Kind::Other)),
            (14, port("eth3", 13)),
            // The index of a veth's other end stands where a stacked link's lower link does.
            (15, stacked("veth0", Kind::Veth, 2)),
            (16, port("bond1", 9)),
            (17, port("eth4", 16)),
        ];
        let mut links = HashMap::from(links);
        links.entry(16).and_modify(|bond| bond.kind = Kind::Bond);
        suitable(name, &links).err().map(|refused| refused.to_string())
    }

    #[test]
    fn interfaces_that_xdp_cannot_serve_are_refused_with_an_alternative() {
        for (name, what, instead) in [
            ("eth0.10", "a VLAN device", "name eth0,"),
            ("eth0.10.20", "a VLAN device", "name eth0,"),
            ("eth1.10", "a VLAN device", "name bond0,"),
            ("bond0.10", "a VLAN device", "name bond0,"),
            ("bond0.20", "a VLAN device", "name bond0,"),
            ("eth1", "a port of the bond bond0", "name bond0"),
            ("eth2", "a port of the bridge br0", "name br0, which has generic XDP only"),
            ("eth4", "a port of the bond bond1", "name br0"),
            ("vf0", "a macvlan device", "in another network namespace"),
            ("lo", "loopback", "lead to other hosts"),
            ("eth9", "no such interface", "`ip link`"),
        ] {
            let message = refusal(name).unwrap_or_else(|| panic!("{name} is not refused"));
            assert!(message.contains(what) && message.contains(instead), "{name}: {message}");
        }
        for name in ["eth0", "bond0", "br0", "veth0", "eth3"] {
            assert_eq!(refusal(name), None, "{name}");
        }
    }

    #[test]
    fn a_bond_of_veths_has_veths() {
        let of_kinds = |kinds: [Kind; 3]| {
            let [own, port, other] = kinds;
            let port = Link { controller: Some(2), ..alone("port", port) };
            has_veth(2, &HashMap::from([(2, alone("own", own)), (3, port), (4, alone("other", other))]))
        };
        assert!(of_kinds([Kind::Veth, Kind::Other, Kind::Other]));
        assert!(of_kinds([Kind::Bond, Kind::Veth, Kind::Other]));
        assert!(!of_kinds([Kind::Bond, Kind::Other, Kind::Veth]));
    }

    #[test]
    fn interfaces_that_xdp_cannot_redirect_to_are_local() {
        let taps = [false, true].map(|vnet_hdr| Kind::Tap { vnet_hdr });
        for kind in [Kind::Bridge, Kind::Veth, VLAN, Kind::MacVlan, Kind::IpVlan].into_iter().chain(taps) {
            assert!(alone("link", kind).is_local(), "{kind:?}");
        }
        let port = |kind| Link { controller: Some(9), ..alone("port", kind) };
        let ports = [Kind::Veth].into_iter().chain(taps).map(port);
        for interface in [alone("eth0", Kind::Other), alone("bond0", Kind::Bond)].into_iter().chain(ports) {
            assert!(!interface.is_local(), "{interface:?}");
        }
    }
}
