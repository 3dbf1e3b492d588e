//! The interfaces that XDP serves, by name.
//!
//! A name outlives what bears it: a driver that is loaded anew, a card that is pulled out, or a container's cable that is made
//! again leaves an interface with the same name and another index, without our program. The kernel's notes about links are
//! therefore followed, and the program is attached again. So it is noticed, too, when a tap comes to be none that XDP can serve.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use nlb_common::abi::LOOPBACK;
use tokio::time::timeout;
use tracing::warn;

use super::link::{self, Kind, Link};
use super::loader::{Balancer, Served};
use super::netlink::Netlink;
use crate::config::XdpMode;
use crate::model::reachability::Locality;

/// Attaching may fail while a driver is still at its beginnings, and nobody says when that is over.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

/// Names of interfaces.
#[derive(Clone, Debug, Default)]
pub struct XdpInterfaces(Arc<BTreeSet<String>>);

impl XdpInterfaces {
    pub fn new(interfaces: &[String]) -> Self {
        XdpInterfaces(Arc::new(interfaces.iter().cloned().collect()))
    }

    /// Whether XDP serves a link: it is named, and XDP can.
    pub fn include(&self, link: &Link) -> bool {
        self.0.contains(&link.name) && !link.has_vnet_hdr()
    }

    /// Whether packets go to a link through the kernel's stack. One that XDP serves is meant to be a wire, whatever it is.
    pub fn is_local(&self, link: &Link) -> bool {
        !self.include(link) && link.is_local()
    }

    /// Whether any of them is a veth or has one as its port; an error if one cannot be served.
    pub fn any_veth(&self, links: &HashMap<u32, Link>) -> anyhow::Result<bool> {
        let mut any = false;
        for name in self.0.iter() {
            any |= link::has_veth(link::suitable(name, links)?, links);
        }
        Ok(any)
    }

    /// Whether an address is reached through the kernel's stack, and why.
    pub async fn locality(&self, netlink: &Netlink, address: IpAddr) -> anyhow::Result<Option<Locality>> {
        let Some(route) = netlink.route(address).await? else { return Ok(None) };
        if route.ifindex == LOOPBACK {
            return Ok(Some(Locality::OwnHost));
        }
        let links = netlink.links().await?;
        let link = links.get(&route.ifindex).filter(|link| self.is_local(link));
        Ok(link.map(|link| match link.kind.stacked() {
            Some(what) => Locality::Behind { name: link.name.clone(), what },
            None => Locality::OwnHost,
        }))
    }
}

/// Why a tap that is named is no wire.
const VNET_HDR: &str = "its frames come with notes on unfinished checksums and segments, as those of virtual machines do, which XDP \
                     does not have";

/// The balancer at work on wires.
pub struct Attachments {
    interfaces: XdpInterfaces,
    balancer: Balancer,
    mode: XdpMode,
    /// Whether the program was loaded so that veths take what it sends.
    veths: bool,
    served: BTreeMap<String, (u32, Served)>,
}

impl Attachments {
    /// Attaches to all of them; the answer says the modes that came of it, by interface. What is no wire has none.
    pub fn new(
        interfaces: XdpInterfaces,
        mut balancer: Balancer,
        mode: XdpMode,
        links: &HashMap<u32, Link>,
    ) -> anyhow::Result<(Self, BTreeMap<String, Option<XdpMode>>)> {
        let veths = interfaces.any_veth(links)?;
        let (mut served, mut modes) = (BTreeMap::new(), BTreeMap::new());
        for name in interfaces.0.iter() {
            let ifindex = link::suitable(name, links)?;
            if has_vnet_hdr(ifindex, links) {
                ensure!(
                    mode != XdpMode::Native,
                    "--iface {name}: {VNET_HDR}; it is served without being named, through the kernel's stack, or as a wire if \
                     its frames come without (qemu: vnet_hdr=off)"
                );
                modes.insert(name.clone(), None);
                continue;
            }
            let (attached, came_to) = attach(&mut balancer, ifindex, mode, links)?;
            served.insert(name.clone(), (ifindex, attached));
            modes.insert(name.clone(), Some(came_to));
        }
        Ok((Attachments { interfaces, balancer, mode, veths, served }, modes))
    }

    /// Attaches again to what was gone and is back, for as long as the daemon runs.
    pub async fn keep(mut self) -> anyhow::Result<()> {
        let (netlink, mut events) = Netlink::open()?;
        let mut said = BTreeMap::new();
        loop {
            self.compare(&netlink.links().await?, &mut said);
            if let Ok(None) = timeout(RETRY_INTERVAL, events.recv()).await {
                return Ok(());
            }
        }
    }

    /// What stands in the way of each interface is `said` once.
    fn compare(&mut self, links: &HashMap<u32, Link>, said: &mut BTreeMap<String, String>) {
        let interfaces = &self.interfaces;
        self.served.retain(|name, (ifindex, _)| {
            links.get(ifindex).is_some_and(|link| link.name == *name && interfaces.include(link))
        });
        for name in self.interfaces.0.iter() {
            if self.served.contains_key(name) {
                continue;
            }
            let suitable = link::suitable(name, links);
            if suitable.as_ref().is_ok_and(|ifindex| has_vnet_hdr(*ifindex, links)) {
                if said.insert(name.clone(), VNET_HDR.to_owned()).is_none_or(|before| before != VNET_HDR) {
                    warn!("{name} is served at TC ingress instead of XDP: {VNET_HDR}");
                }
                continue;
            }
            let attached = suitable.map_err(anyhow::Error::from).and_then(|ifindex| {
                ensure!(
                    self.veths || !link::has_veth(ifindex, links),
                    "it is a veth now, or has one as its port, which the program was not loaded for; start the NLB again"
                );
                let (attached, _) = attach(&mut self.balancer, ifindex, self.mode, links)?;
                Ok((ifindex, attached))
            });
            match attached {
                Ok(attached) => {
                    said.remove(name);
                    self.served.insert(name.clone(), attached);
                    warn!("{name} is back and served again");
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if said.get(name) != Some(&why) {
                        warn!(
                            "{name} is gone, and so is the traffic that passes it, until it is back: {why}"
                        );
                        said.insert(name.clone(), why);
                    }
                }
            }
        }
    }
}

fn attach(
    balancer: &mut Balancer,
    ifindex: u32,
    mode: XdpMode,
    links: &HashMap<u32, Link>,
) -> anyhow::Result<(Served, XdpMode)> {
    let link = links.get(&ifindex).context("the link is gone")?;
    let (served, came_to) = balancer.attach(ifindex, &link.name, mode)?;
    // The kernel merges what a port takes in before generic mode sees it, unless the program is on the port itself. It counts on
    // the stack to take that apart again and to finish the checksums.
    if came_to == XdpMode::Generic
        && let Some(what) = link.kind.with_ports()
    {
        warn!(
            "{what} {0} is served in generic mode, where packets that its ports have merged (GRO) are lost or leave with wrong \
             checksums: `ethtool -K <port> gro off` for each port",
            link.name
        );
        if link.kind == Kind::Bridge {
            warn!(
                "for nat alone {} needs no name: it is served through the kernel's stack then, merged or not",
                link.name
            );
        }
    }
    Ok((served, came_to))
}

fn has_vnet_hdr(ifindex: u32, links: &HashMap<u32, Link>) -> bool {
    links.get(&ifindex).is_some_and(Link::has_vnet_hdr)
}

#[cfg(test)]
mod tests {
    use nlb_common::net::Mac;

    use super::*;

    #[test]
    fn what_is_named_is_a_wire_unless_xdp_would_lose_notes_on_its_frames() {
        let interfaces = XdpInterfaces::new(&["eth0".to_owned()]);
        let (mac, mtu, below, controller) = (Mac::NONE, 1500, None, None);
        let link = |name: &str, kind| Link { name: name.to_owned(), mac, mtu, kind, below, controller };
        assert!(
            interfaces.is_local(&link("br0", Kind::Bridge))
                && interfaces.is_local(&link("veth0", Kind::Veth))
        );
        assert!(
            !interfaces.is_local(&link("eth0", Kind::Bridge))
                && !interfaces.is_local(&link("eth0", Kind::Veth))
        );
        assert!(!interfaces.is_local(&link("eth1", Kind::Other)));
        let taps = [false, true].map(|vnet_hdr| link("eth0", Kind::Tap { vnet_hdr }));
        assert_eq!(taps.each_ref().map(|tap| interfaces.is_local(tap)), [false, true]);
        assert_eq!(taps.each_ref().map(|tap| interfaces.include(tap)), [true, false]);
    }
}
