//! The interfaces that `--iface` names, and their XDP programs.
//!
//! A driver that is reloaded, a card that is replaced, or a container's veth that is created again leaves an
//! interface of the same name with another index and without a program. The daemon therefore follows the
//! kernel's link events and attaches the program again. The same events report a tap whose frames get a
//! vnet_hdr, which XDP cannot serve.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use ipnet::IpNet;
use nlb_common::abi::LOOPBACK;
use tokio::time::timeout;
use tracing::warn;

use super::accepted_macs::AcceptedMacs;
use super::link::{self, Kind, Link};
use super::loader::{Balancer, XdpAttachment};
use super::netlink::Netlink;
use super::veth_peer;
use crate::config::XdpMode;
use crate::model::reachability::{Locality, Reach, Unreachable};

/// Attaching may fail while a driver still initialises, and no event reports the end of that.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);

#[derive(Clone, Debug, Default)]
pub(crate) struct XdpInterfaces(Arc<BTreeSet<String>>);

impl XdpInterfaces {
    pub(crate) fn new(interfaces: &[String]) -> Self {
        XdpInterfaces(Arc::new(interfaces.iter().cloned().collect()))
    }

    /// Whether XDP serves a link: `--iface` names it, and its frames have no vnet_hdr.
    pub(crate) fn include(&self, link: &Link) -> bool {
        self.0.contains(&link.name) && !link.has_vnet_hdr()
    }

    /// Whether packets reach a link through the kernel's stack. An interface that XDP serves never counts as
    /// local.
    pub(crate) fn is_local(&self, link: &Link) -> bool {
        !self.include(link) && link.is_local()
    }

    /// Whether any of the interfaces is a veth or has one as its port; an error if XDP cannot serve one of
    /// them.
    pub(crate) fn any_veth(&self, links: &HashMap<u32, Link>) -> anyhow::Result<bool> {
        let mut any = false;
        for name in self.0.iter() {
            any |= link::has_veth(link::suitable(name, links)?, links);
        }
        Ok(any)
    }

    /// How packets get to an address.
    pub(crate) async fn reach(&self, netlink: &Netlink, address: IpAddr) -> anyhow::Result<Reach> {
        const NO_ROUTE: Reach = Reach::Unreachable(Unreachable::NoRoute);
        let Some(route) = netlink.route(address).await? else { return Ok(NO_ROUTE) };
        if route.ifindex == LOOPBACK {
            return Ok(Reach::Local(Locality::OwnHost));
        }
        let links = netlink.links().await?;
        let Some(link) = links.get(&route.ifindex) else { return Ok(NO_ROUTE) };
        let name = link.name.clone();
        Ok(match link.kind.stacked() {
            _ if link.kind == Kind::NoMac => Reach::Unreachable(Unreachable::WithoutMac { link: name }),
            _ if !self.is_local(link) => Reach::Link,
            Some(what) => Reach::Local(Locality::Behind { name, what }),
            None => Reach::Local(Locality::OwnHost),
        })
    }
}

/// Why XDP cannot serve a tap that `--iface` names.
const VNET_HDR: &str = "its frames have a vnet_hdr with unfinished checksums and segments, as those of virtual machines do, \
                     and XDP cannot read it";

/// The balancer on the interfaces that XDP serves.
pub(crate) struct Attachments {
    interfaces: XdpInterfaces,
    balancer: Balancer,
    macs: AcceptedMacs,
    mode: XdpMode,
    /// Whether the program was loaded in the form that sends to veths.
    veths: bool,
    served: BTreeMap<String, Served>,
}

/// An interface with the balancer.
struct Served {
    ifindex: u32,
    mode: XdpMode,
    _attachment: XdpAttachment,
}

impl Attachments {
    /// Attaches to all interfaces, and returns the XDP mode of each: `None` for a tap with vnet_hdr, which TC
    /// ingress serves.
    pub(crate) fn new(
        interfaces: XdpInterfaces,
        balancer: Balancer,
        mut macs: AcceptedMacs,
        mode: XdpMode,
        links: &HashMap<u32, Link>,
        addresses: &[(u32, IpNet)],
    ) -> anyhow::Result<(Self, BTreeMap<String, Option<XdpMode>>)> {
        let veths = interfaces.any_veth(links)?;
        macs.update(|link| interfaces.include(link), links, addresses)?;
        let mut attachments =
            Attachments { interfaces, balancer, macs, mode, veths, served: BTreeMap::new() };
        let mut modes = BTreeMap::new();
        for name in attachments.interfaces.clone().0.iter() {
            let ifindex = link::suitable(name, links)?;
            if has_vnet_hdr(ifindex, links) {
                ensure!(
                    mode != XdpMode::Native,
                    "--iface {name}: {VNET_HDR}; TC ingress serves it without --iface, and XDP serves it without a vnet_hdr \
                     (qemu: vnet_hdr=off)"
                );
                modes.insert(name.clone(), None);
                continue;
            }
            let served = attach(&mut attachments.balancer, ifindex, mode, links)?;
            attachments.served.insert(name.clone(), served);
        }
        attachments.unify_modes(links)?;
        modes.extend(attachments.served.iter().map(|(name, served)| (name.clone(), Some(served.mode))));
        for Served { ifindex, mode, .. } in attachments.served.values() {
            veth_peer::check(*ifindex, *mode == XdpMode::Native, links);
        }
        Ok((attachments, modes))
    }

    /// Uses generic mode on all interfaces if one of them has no other. An interface that returns is then
    /// served in that mode, too.
    fn unify_modes(&mut self, links: &HashMap<u32, Link>) -> anyhow::Result<()> {
        let generic = self.served.iter().find(|(_, served)| served.mode == XdpMode::Generic);
        let Some((generic, _)) = generic else { return Ok(()) };
        self.mode = XdpMode::Generic;
        if self.served.values().all(|served| served.mode == XdpMode::Generic) {
            return Ok(());
        }
        warn!(
            "{generic} has no native XDP, so generic mode is used on all interfaces: what native XDP redirects to such an \
             interface is lost"
        );
        // The kernel refuses a second attachment.
        let before = std::mem::take(&mut self.served);
        let again: Vec<(String, u32)> =
            before.into_iter().map(|(name, served)| (name, served.ifindex)).collect();
        for (name, ifindex) in again {
            let served = attach(&mut self.balancer, ifindex, XdpMode::Generic, links)?;
            self.served.insert(name, served);
        }
        Ok(())
    }

    /// Attaches again to interfaces that return, and keeps their accepted MAC addresses, for as long as the
    /// daemon runs.
    pub(crate) async fn keep(mut self) -> anyhow::Result<()> {
        let (netlink, mut events) = Netlink::open()?;
        let mut logged = BTreeMap::new();
        loop {
            let links = netlink.links().await?;
            let addresses = netlink.addresses().await?;
            if let Err(error) = self.macs.update(|link| self.interfaces.include(link), &links, &addresses) {
                warn!("cannot set the MAC addresses that interfaces accept: {error:#}");
            }
            self.compare(&links, &mut logged);
            if let Ok(None) = timeout(RETRY_INTERVAL, events.recv()).await {
                return Ok(());
            }
        }
    }

    /// Compares the interfaces with the kernel's links. Each obstacle is logged once: `logged` holds those
    /// that were.
    fn compare(&mut self, links: &HashMap<u32, Link>, logged: &mut BTreeMap<String, String>) {
        let interfaces = &self.interfaces;
        self.served.retain(|name, Served { ifindex, .. }| {
            links.get(ifindex).is_some_and(|link| link.name == *name && interfaces.include(link))
        });
        for name in self.interfaces.0.iter() {
            if self.served.contains_key(name) {
                continue;
            }
            let suitable = link::suitable(name, links);
            if suitable.as_ref().is_ok_and(|ifindex| has_vnet_hdr(*ifindex, links)) {
                if logged.insert(name.clone(), VNET_HDR.to_owned()).is_none_or(|before| before != VNET_HDR) {
                    warn!("{name} is served at TC ingress instead of XDP: {VNET_HDR}");
                }
                continue;
            }
            let attached = suitable.map_err(anyhow::Error::from).and_then(|ifindex| {
                ensure!(
                    self.veths || !link::has_veth(ifindex, links),
                    "it is a veth now or has one as its port, and the program was loaded without support for veths; restart the NLB"
                );
                attach(&mut self.balancer, ifindex, self.mode, links)
            });
            match attached {
                Ok(served) => {
                    logged.remove(name);
                    veth_peer::check(served.ifindex, served.mode == XdpMode::Native, links);
                    self.served.insert(name.clone(), served);
                    warn!("{name} is back and served again");
                }
                Err(error) => {
                    let why = format!("{error:#}");
                    if logged.get(name) != Some(&why) {
                        warn!("{name} is gone, and its traffic is not served until it is back: {why}");
                        logged.insert(name.clone(), why);
                    }
                }
            }
        }
        // Interfaces that this leaves without the program are served again at the next look.
        if let Err(error) = self.unify_modes(links) {
            warn!("cannot use generic mode on all interfaces: {error:#}");
        }
    }
}

fn attach(
    balancer: &mut Balancer,
    ifindex: u32,
    mode: XdpMode,
    links: &HashMap<u32, Link>,
) -> anyhow::Result<Served> {
    let link = links.get(&ifindex).context("the link is gone")?;
    let (attachment, came_to) = balancer.attach(ifindex, &link.name, mode)?;
    // The kernel merges packets that a port receives (GRO) before generic XDP runs, unless the program is
    // attached to the port itself. The stack could split them and finish their checksums, and XDP cannot.
    if came_to == XdpMode::Generic
        && let Some(what) = link.kind.with_ports()
    {
        warn!(
            "{what} {0} is served in generic mode, where packets that its ports have merged (GRO) are lost or leave with wrong \
             checksums; turn GRO off on each port: `ethtool -K <port> gro off`",
            link.name
        );
        if link.kind == Kind::Bridge {
            warn!(
                "for nat alone, {} needs no --iface: TC ingress then serves it, with or without GRO",
                link.name
            );
        }
    }
    Ok(Served { ifindex, mode: came_to, _attachment: attachment })
}

fn has_vnet_hdr(ifindex: u32, links: &HashMap<u32, Link>) -> bool {
    links.get(&ifindex).is_some_and(Link::has_vnet_hdr)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::link::alone;

    #[test]
    fn a_named_interface_is_local_only_if_it_has_a_vnet_hdr() {
        let interfaces = XdpInterfaces::new(&["eth0".to_owned()]);
        assert!(
            interfaces.is_local(&alone("br0", Kind::Bridge))
                && interfaces.is_local(&alone("veth0", Kind::Veth))
        );
        assert!(
            !interfaces.is_local(&alone("eth0", Kind::Bridge))
                && !interfaces.is_local(&alone("eth0", Kind::Veth))
        );
        assert!(!interfaces.is_local(&alone("eth1", Kind::Other)));
        let taps = [false, true].map(|vnet_hdr| alone("eth0", Kind::Tap { vnet_hdr }));
        assert_eq!(taps.each_ref().map(|tap| interfaces.is_local(tap)), [false, true]);
        assert_eq!(taps.each_ref().map(|tap| interfaces.include(tap)), [true, false]);
    }
}
