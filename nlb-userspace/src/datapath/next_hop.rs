//! Next hops towards backends and clients, from the kernel's own routes and neighbours, kept up to date.
//!
//! The data path sends packets past the kernel's stack, so the kernel would forget neighbours that only the
//! balancer uses, and would not detect that one has moved. The daemon therefore confirms the neighbours in
//! use every few seconds, as the kernel does for those that it uses itself. A neighbour that the kernel has
//! forgotten stays in use while it is resolved again; only one that does not answer is removed. Permanent
//! neighbours are the host's configuration: the daemon uses them as they are.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;
use nlb_common::abi::{LOOPBACK, NextHop};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::interfaces::XdpInterfaces;
use super::link::Kind;
use super::netlink::Netlink;
use super::path_mtu::PathMtus;
use super::tunnel_errors::TunnelError;
use crate::config::OuterSources;
use crate::model::next_hop::{Hop, Hops};
use crate::model::reachability::{Unreachable, UnreachableAddresses};
use crate::model::{Desired, ForwardMode};

/// How often neighbours in use are confirmed.
const CONFIRM: Duration = Duration::from_secs(10);

/// How long the next hop of a punted packet's destination is kept.
const REQUEST_TTL: Duration = Duration::from_secs(5);

/// How long the daemon waits for the end of a burst of changes.
const SETTLE: Duration = Duration::from_millis(2);

/// What next hops are looked up for, and what is heard about their paths.
pub(crate) struct Inputs {
    pub desired: watch::Receiver<Arc<Desired>>,
    /// Next hops of punted packets.
    pub asked: mpsc::Receiver<IpAddr>,
    pub tunnel_errors: mpsc::Receiver<TunnelError>,
    /// The outer sources of dsr-ipip, if they vary.
    pub outer_sources: OuterSources,
}

/// What is found out about the addresses.
pub(crate) struct Outputs {
    pub hops: watch::Sender<Arc<Hops>>,
    /// Of modules' data addresses only.
    pub unreachable: watch::Sender<Arc<UnreachableAddresses>>,
}

/// Publishes the next hops of all modules' data addresses, and of those in `asked`, until `desired` is
/// dropped.
pub(crate) async fn run(inputs: Inputs, outputs: Outputs, interfaces: XdpInterfaces) -> anyhow::Result<()> {
    let Outputs { hops, unreachable } = outputs;
    let Inputs { mut desired, mut asked, mut tunnel_errors, outer_sources } = inputs;
    let (netlink, mut events) = Netlink::open()?;
    let mut path_mtus = PathMtus::default();
    let mut temporary: BTreeMap<IpAddr, Instant> = BTreeMap::new();
    let mut confirm = tokio::time::interval(CONFIRM);
    loop {
        let mut confirm_all = false;
        let mut fresh = None;
        tokio::select! {
            changed = desired.changed() => if changed.is_err() { return Ok(()) },
            Some(addr) = asked.recv() => {
                temporary.insert(addr, Instant::now() + REQUEST_TTL);
                fresh = Some(addr);
            }
            Some(error) = tunnel_errors.recv() => {
                let known = hops.borrow().get(&error.module).copied();
                let is_ours = |hop: &Hop| hop.source == error.source || outer_sources.nets().any(|net| net.contains(&error.source));
                let (is_tunnel, least) = tunnel(&desired.borrow(), error.module);
                let Some(hop) = known.filter(|hop| is_tunnel && is_ours(hop)) else { continue };
                // Errors that change nothing cost nothing more: anybody can send them.
                if !path_mtus.take(&error, hop.hop, least) {
                    continue;
                }
            }
            Some(()) = events.recv() => tokio::time::sleep(SETTLE).await,
            _ = confirm.tick() => confirm_all = true,
        }
        temporary.retain(|_, until| *until > Instant::now());
        let (backends, vips) = {
            let desired = desired.borrow_and_update();
            (data_addresses(&desired), desired.all_vips())
        };
        path_mtus.retain(|addr| tunnel(&desired.borrow(), *addr).0);
        let wanted = backends.iter().chain(temporary.keys()).copied().collect();
        let (old, failed) = (hops.borrow().clone(), unreachable.borrow().clone());
        let remembered = |addr: IpAddr| old.get(&addr).filter(|_| backends.contains(&addr));
        if let Some(client) = fresh.filter(|addr| old.contains_key(addr))
            && let Err(error) = resolve_from_vips(&netlink, client, &vips).await
        {
            debug!("{error:#}");
        }
        let known = Known { vips: &vips, path_mtus: &path_mtus, failed: &failed, remembered };
        let confirm = |addr| confirm_all || fresh == Some(addr);
        match resolve_next_hops(&netlink, &interfaces, &wanted, known, confirm).await {
            Ok((found, mut without)) => {
                without.retain(|addr, _| backends.contains(addr));
                if replace(&hops, found) {
                    debug!("next hops: {:?}", hops.borrow());
                }
                replace(&unreachable, without);
            }
            Err(error) => warn!("next hops could not be read from the kernel: {error:#}"),
        }
    }
}

/// Whether a module has tunnels to this address, and the smallest path MTU of them that counts: a client's
/// IPv6 packets cannot be shorter than 1,280 bytes (RFC 8200 section 5), so with less they would all be too
/// long.
fn tunnel(desired: &Desired, address: IpAddr) -> (bool, u16) {
    const WITH_IPV6_INSIDE: u16 = 1280 + 40 + 8;
    let is_tunnel = desired.modules.values().any(|module| {
        matches!(module.mode, ForwardMode::DsrIpip | ForwardMode::Gue)
            && (module.data.v4.map(IpAddr::from) == Some(address)
                || module.data.v6.map(IpAddr::from) == Some(address))
    });
    let v6 = desired.all_vips().iter().any(IpAddr::is_ipv6);
    (is_tunnel, if v6 { WITH_IPV6_INSIDE } else { 0 })
}

/// Publishes a value if it is another than before; returns whether it is.
fn replace<T: PartialEq>(to: &watch::Sender<Arc<T>>, value: T) -> bool {
    to.send_if_modified(|old| {
        let changed = **old != value;
        if changed {
            *old = Arc::new(value);
        }
        changed
    })
}

/// Resolves the neighbours on the routes from each VIP to a client. A packet that is punted although the next
/// hop is known takes another route: policy rules may route packets from a VIP differently from this host's
/// own. The program then finds the neighbours by its own FIB look-up.
async fn resolve_from_vips(netlink: &Netlink, client: IpAddr, vips: &BTreeSet<IpAddr>) -> anyhow::Result<()> {
    let mut neighbours = BTreeSet::new();
    for vip in vips.iter().filter(|vip| vip.is_ipv4() == client.is_ipv4()) {
        // The kernel has no route from a VIP that this host does not hold.
        if let Some(route) = netlink.route_from(*vip, client).await? {
            neighbours.insert((route.ifindex, route.gateway.unwrap_or(client)));
        }
    }
    let known = netlink.neighbours().await?;
    for to in neighbours {
        if !known.get(&to).is_some_and(|neighbour| neighbour.is_fixed) {
            netlink.resolve(to.0, to.1).await?;
        }
    }
    Ok(())
}

fn data_addresses(desired: &Desired) -> BTreeSet<IpAddr> {
    let modules = desired.modules.values();
    modules.flat_map(|m| [m.data.v4.map(IpAddr::from), m.data.v6.map(IpAddr::from)]).flatten().collect()
}

/// What is known without the kernel.
struct Known<'a, F> {
    vips: &'a BTreeSet<IpAddr>,
    path_mtus: &'a PathMtus,
    /// The addresses that were unreachable before.
    failed: &'a UnreachableAddresses,
    /// The next hop of before, which stays where the kernel has forgotten a neighbour.
    remembered: F,
}

/// The next hops of `wanted`, and why some have none. Unknown neighbours are resolved, and so are those that
/// `confirm` selects; the results arrive as events.
async fn resolve_next_hops<'a>(
    netlink: &Netlink,
    interfaces: &XdpInterfaces,
    wanted: &BTreeSet<IpAddr>,
    known: Known<'a, impl Fn(IpAddr) -> Option<&'a Hop>>,
    confirm: impl Fn(IpAddr) -> bool,
) -> anyhow::Result<(Hops, UnreachableAddresses)> {
    let Known { vips, path_mtus, failed, remembered } = known;
    let (mut hops, mut unreachable) = (Hops::new(), UnreachableAddresses::new());
    if wanted.is_empty() {
        return Ok((hops, unreachable));
    }
    let links = netlink.links().await?;
    let addresses = netlink.addresses().await?;
    let neighbours = netlink.neighbours().await?;
    for addr in wanted {
        let route = netlink.route(*addr).await?;
        let Some((route, link)) = route.and_then(|route| Some((route, links.get(&route.ifindex)?))) else {
            unreachable.insert(*addr, Unreachable::NoRoute);
            continue;
        };
        if link.kind == Kind::NoMac {
            unreachable.insert(*addr, Unreachable::WithoutMac { link: link.name.clone() });
            continue;
        }
        let next = route.gateway.unwrap_or(*addr);
        let ours = || addresses.iter().filter(|(ifindex, _)| *ifindex == route.ifindex).map(|(_, net)| *net);
        let whole = if addr.is_ipv4() { 32 } else { 128 };
        let link_prefix = match route.gateway {
            Some(_) => whole,
            None => {
                ours().filter(|net| net.contains(addr)).map(|net| net.prefix_len()).max().unwrap_or(whole)
            }
        };
        let mtu = link.mtu.min(route.mtu.unwrap_or(u32::MAX)).min(u16::MAX.into()) as u16;
        if route.ifindex == LOOPBACK || interfaces.is_local(link) {
            // The kernel's stack, which resolves neighbours itself, carries packets there.
            if let Some(source) = source(ours(), next, route.source, vips) {
                let hop = NextHop::without_macs(route.ifindex);
                hops.insert(*addr, Hop { hop, source, mtu, link_prefix, local: true });
            }
            continue;
        }
        let neighbour = neighbours.get(&(route.ifindex, next)).copied();
        let is_known = neighbour.is_some_and(|neighbour| neighbour.mac.is_some());
        let is_fixed = neighbour.is_some_and(|neighbour| neighbour.is_fixed);
        if !is_fixed && (!is_known || confirm(*addr)) {
            // The kernel refuses this for links without neighbours, such as tunnels, which have no MAC
            // addresses to send to either.
            if let Err(error) = netlink.resolve(route.ifindex, next).await {
                debug!("{error:#}");
            }
        }
        let mac = match neighbour {
            Some(known) => {
                if known.mac.is_none() {
                    let (neighbour, link) = (next, link.name.clone());
                    unreachable.insert(*addr, Unreachable::Silent { neighbour, link });
                }
                known.mac
            }
            // The kernel asks a neighbour that did not answer once more.
            None if matches!(failed.get(addr), Some(Unreachable::Silent { neighbour, .. }) if *neighbour == next) =>
            {
                unreachable.extend(failed.get(addr).map(|why| (*addr, why.clone())));
                None
            }
            None => remembered(*addr).filter(|hop| hop.hop.ifindex == route.ifindex).map(|hop| hop.hop.dst()),
        };
        let (Some(mac), Some(source)) = (mac, source(ours(), next, route.source, vips)) else { continue };
        let hop = NextHop::new(mac, link.mac, route.ifindex);
        let mtu = path_mtus.of(*addr, hop).map_or(mtu, |path| path.min(mtu));
        hops.insert(*addr, Hop { hop, source, mtu, link_prefix, local: false });
    }
    Ok((hops, unreachable))
}

/// Our address towards a next hop: the kernel's choice, unless that is a VIP. A host that holds its VIPs may
/// prefer one as a source, but backends reach the NLB at its own address: they list that address as a
/// tunnel's peer, and their packets to a VIP count as those of a client.
fn source(
    ours: impl Iterator<Item = IpNet>,
    next: IpAddr,
    chosen: Option<IpAddr>,
    vips: &BTreeSet<IpAddr>,
) -> Option<IpAddr> {
    if chosen.is_none_or(|source| !vips.contains(&source)) {
        return chosen;
    }
    let near = ours.filter(|net| net.contains(&next) && !vips.contains(&net.addr()));
    near.max_by_key(IpNet::prefix_len).map(|net| net.addr()).or(chosen)
}
