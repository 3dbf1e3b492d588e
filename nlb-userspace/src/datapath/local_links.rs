//! Local links: those that lead to this host itself, to its containers and virtual machines, and to whatever
//! XDP cannot send to, such as VLAN devices.
//!
//! XDP processes what arrives on the interfaces. Modules and clients on the NLB's own host are behind
//! loopback, bridges, veths and taps, where the TC ingress program processes their packets. Such links come
//! and go with containers' networks, so the daemon follows the kernel's link events.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use nlb_common::abi::{LOOPBACK, local_link};
use tracing::{info, warn};

use super::interfaces::XdpInterfaces;
use super::link::{Kind, Link};
use super::loader::{TcAttachment, TcIngress};
use super::maps::bpf::{FibGeneration, LocalLinks};
use super::netlink::Netlink;

/// Keeps the TC ingress program attached to every local link, for as long as the daemon runs.
pub(crate) async fn run(
    interfaces: XdpInterfaces,
    mut tc_ingress: TcIngress,
    mut local: LocalLinks,
    fib_generation: Arc<FibGeneration>,
) -> anyhow::Result<()> {
    let (netlink, mut events) = Netlink::open()?;
    let mut attachments = BTreeMap::new();
    let mut known_vlans = BTreeSet::new();
    let mut starting = true;
    loop {
        let links = netlink.links().await?;
        let is_handled = |ifindex: u32, link: &Link| {
            ifindex == LOOPBACK || interfaces.include(link) || interfaces.is_local(link)
        };
        attachments.retain(|ifindex, (was_xdp, _): &mut (bool, TcAttachment)| {
            // A tap's frames may get or lose their vnet_hdr while the link exists.
            let stays = links
                .get(ifindex)
                .is_some_and(|link| is_handled(*ifindex, link) && interfaces.include(link) == *was_xdp);
            if !stays {
                local.remove(local_link(*ifindex, 0));
            }
            stays
        });
        for (ifindex, link) in links.iter().filter(|(ifindex, link)| is_handled(**ifindex, link)) {
            if attachments.contains_key(ifindex) {
                continue;
            }
            let is_xdp = interfaces.include(link);
            let attached = tc_ingress.attach(&link.name).and_then(|attached| {
                if is_xdp { Ok(attached) } else { local.insert(local_link(*ifindex, 0)).map(|()| attached) }
            });
            match attached {
                Ok(attached) => {
                    info!("attached nlb_tc to {} (tc ingress)", link.name);
                    attachments.insert(*ifindex, (is_xdp, attached));
                }
                Err(error) if starting && (is_xdp || *ifindex == LOOPBACK) => return Err(error),
                // It may be gone again.
                Err(error) => warn!(
                    "cannot attach nlb_tc to {}; modules and clients behind it are not served: {error:#}",
                    link.name
                ),
            }
        }
        let vlans = vlans(&links);
        known_vlans.difference(&vlans).for_each(|vlan| local.remove(*vlan));
        for vlan in vlans.difference(&known_vlans) {
            if let Err(error) = local.insert(*vlan) {
                warn!("cannot list a VLAN: {error:#}");
            }
        }
        known_vlans = vlans;
        // Cached next hops may lead to a link that is local now, or avoid one that no longer is.
        fib_generation.count();
        starting = false;
        if events.recv().await.is_none() {
            return Ok(());
        }
    }
}

/// The VLANs for which this host has devices, by the interface where XDP gets their frames: the one below, or
/// its ports.
fn vlans(links: &HashMap<u32, Link>) -> BTreeSet<u64> {
    let mut vlans = BTreeSet::new();
    for link in links.values() {
        let (Kind::Vlan(id), Some(below)) = (link.kind, link.below) else { continue };
        vlans.insert(local_link(below, id));
        let ports = links.iter().filter(|(_, port)| port.controller == Some(below));
        vlans.extend(ports.map(|(port, _)| local_link(*port, id)));
    }
    vlans
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::datapath::link::alone;

    #[test]
    fn vlans_end_on_the_interface_below_and_on_its_ports() {
        let link = |kind, below, controller| Link { below, controller, ..alone("", kind) };
        let links = HashMap::from([
            (2, link(Kind::Other, None, None)),
            (3, link(Kind::Vlan(10), Some(2), None)),
            (4, link(Kind::Vlan(20), Some(2), None)),
            (5, link(Kind::Bond, None, None)),
            (6, link(Kind::Other, None, Some(5))),
            (7, link(Kind::Vlan(30), Some(5), None)),
            (8, link(Kind::MacVlan, Some(2), None)),
            // The link below it is in another network namespace.
            (9, link(Kind::Vlan(40), None, None)),
        ]);
        let expected = [(2, 10), (2, 20), (5, 30), (6, 30)].map(|(ifindex, id)| local_link(ifindex, id));
        assert_eq!(vlans(&links), BTreeSet::from(expected));
    }
}
