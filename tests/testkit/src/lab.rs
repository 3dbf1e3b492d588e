//! Test networks made of namespaces, which are removed when dropped.
//!
//! ```text
//! one-arm:   client   client   nlb   module   module        two-arm:   client        gateway (optional)
//!               |        |      |       |        |                        |             |         |
//!            ---+--------+------+-------+--------+--- LAN              ---+----- nlb ---+-- front |
//!                                                                               |                 |
//!                                                                      back ----+----- module ----+
//! ```
//!
//! On one host, as with containers, the NLB's host has a bridge with the modules behind it. Their veths keep
//! their default offloads. The clients are on a segment as above.
//!
//! A segment is a bridge in a namespace of its own, apart from the host's network. Namespaces and files are
//! named `nlb-<pid>-<n>-...`. The next lab removes those of a process that was killed.

use std::fs::{self, File};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result};

use crate::netns::{self, Namespace};
use crate::process::Process;

/// The VIPs, which the NLB's host has on its front side.
pub const VIP4: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 100);
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0xfd77, 0, 0, 0, 0, 0, 0, 0x100);

const FAMILY: &str = "nlb";
/// The names of the segments' bridges.
const LAN: &str = "lan";
const FRONT: &str = "front";
const BACK: &str = "back";
/// The last byte of the NLB's addresses.
const NLB: u8 = 1;
/// The directory of labs' logs and other files. Only root can write it.
const FILES: &str = "/run/nlb-lab";

#[derive(Debug)]
pub struct Lab {
    pub clients: Vec<Host>,
    pub nlb: Host,
    pub modules: Vec<Host>,
    /// The modules' own default gateway, if the lab has one.
    pub gateway: Option<Host>,
    /// The segments of the NLB's `eth0`, `eth1`.
    segments: &'static [&'static str],
    site: Site,
}

/// A host of the lab: its namespace, and its address in each family on `eth0`.
#[derive(Debug)]
pub struct Host {
    pub netns: Namespace,
    pub v4: Ipv4Addr,
    pub v6: Ipv6Addr,
}

/// The default route of the modules in a two-arm lab.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DefaultRoute {
    /// By the NLB: all replies cross it.
    Nlb,
    /// By a gateway: replies cross the NLB only if it translates their source.
    Gateway,
}

impl Lab {
    /// All hosts on one segment; the NLB has the interface `eth0` alone.
    pub fn one_arm(clients: usize, modules: usize) -> Result<Lab> {
        let site = Site::new()?;
        let lan = site.segment(LAN, 0)?;
        let nlb = lan.host("nlb", NLB)?;
        let clients = lan.hosts("client", clients, 10)?;
        let modules = lan.hosts("module", modules, 20)?;
        add_vips(&nlb)?;
        Ok(Lab { clients, nlb, modules, gateway: None, segments: &[LAN], site })
    }

    /// The NLB routes between the clients' segment (`eth0`) and the modules' (`eth1`).
    pub fn two_arm(clients: usize, modules: usize, default_route: DefaultRoute) -> Result<Lab> {
        let site = Site::new()?;
        let front = site.segment(FRONT, 0)?;
        let back = site.segment(BACK, 1)?;
        let nlb = site.router("nlb", NLB, &front, &back)?;
        let clients = front.hosts("client", clients, 10)?;
        let modules = back.hosts("module", modules, 20)?;
        let gateway = match default_route {
            DefaultRoute::Nlb => None,
            DefaultRoute::Gateway => Some(site.router("gateway", 254, &front, &back)?),
        };
        for client in &clients {
            client.add_default_routes(nlb.v4.into(), nlb.v6.into())?;
        }
        let way_out = if gateway.is_some() { 254 } else { 1 };
        for module in &modules {
            module.add_default_routes(back.v4(way_out).into(), back.v6(way_out).into())?;
        }
        add_vips(&nlb)?;
        Ok(Lab { clients, nlb, modules, gateway, segments: &[FRONT, BACK], site })
    }

    /// The modules are in containers of the NLB's host, on its bridge `br0`; clients are on the segment of
    /// its `eth0`.
    pub fn same_host(clients: usize, modules: usize) -> Result<Lab> {
        let site = Site::new()?;
        let front = site.segment(FRONT, 0)?;
        let nlb = front.host("nlb", NLB)?;
        let clients = front.hosts("client", clients, 10)?;
        let modules = site.containers(&nlb, 1, modules)?;
        // The strictest check of sources (RFC 3704) that distributions set.
        nlb.netns.sysctl("net/ipv4/conf/all/rp_filter", 1)?;
        add_vips(&nlb)?;
        Ok(Lab { clients, nlb, modules, gateway: None, segments: &[FRONT], site })
    }

    /// Removes the NLB's interface to a segment, and returns its MAC address.
    pub fn unplug(&self, interface: &str) -> Result<String> {
        let mac = self.nlb.netns.mac(interface)?;
        self.nlb.netns.ip(&["link", "delete", interface])?;
        Ok(mac)
    }

    /// Creates an interface like the one that was removed.
    pub fn plug(&self, interface: &str, mac: &str) -> Result<()> {
        let number = if interface == "eth0" { 0 } else { 1 };
        let segment = Segment { site: &self.site, bridge: self.segments[number], number: number as u8 };
        segment.attach(&self.nlb.netns, interface, "nlb", NLB)?;
        self.nlb.netns.ip(&["link", "set", interface, "address", mac])?;
        if number == 0 { add_vips(&self.nlb) } else { Ok(()) }
    }

    /// Adds a cable from the NLB to the segment of its `eth0`, to a port of this name. It has no addresses.
    pub fn cable(&self, interface: &str, port: &str) -> Result<()> {
        self.nlb.netns.cable(interface, self.switch(), port)?;
        self.connect(port)
    }

    /// Makes an interface of the switch a port of the segment of the NLB's `eth0`.
    pub fn connect(&self, port: &str) -> Result<()> {
        self.switch().ip(&["link", "set", port, "master", self.segments[0]]).map(drop)
    }

    /// Adds the addresses of the NLB's first `eth0` to the interface that replaced it.
    pub fn add_addresses(&self) -> Result<()> {
        self.nlb.netns.add_address("eth0", self.nlb.v4.into(), 24)?;
        self.nlb.netns.add_address("eth0", self.nlb.v6.into(), 64)?;
        add_vips(&self.nlb)
    }

    /// The namespace of the segments' ports.
    pub fn switch(&self) -> &Namespace {
        &self.site.switch
    }

    /// Sets the MTU of every link.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let hosts = self.clients.iter().chain(&self.modules).chain([&self.nlb]).chain(&self.gateway);
        // A bridge has the least MTU of its ports.
        for netns in hosts.map(|host| &host.netns).chain([&self.site.switch]) {
            for link in netns.ip(&["-br", "link", "show", "type", "veth"])?.lines() {
                let name = link.split(['@', ' ']).next().context("a link without a name")?;
                netns.ip(&["link", "set", name, "mtu", &mtu.to_string()])?;
            }
        }
        Ok(())
    }

    /// The name, unique among all labs.
    pub fn name(&self) -> &str {
        &self.site.name
    }

    /// A directory that is removed with the lab.
    pub fn files(&self) -> PathBuf {
        Path::new(FILES).join(&self.site.name)
    }

    /// Starts a command on one of the hosts; see [`Process::start`].
    pub fn start(&self, name: &str, command: &mut Command) -> Result<Process> {
        Process::start(command, self.files().join(format!("{name}.log")))
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = remove_files(&self.site.name) {
            eprintln!("files of lab {} are left behind: {error:#}", self.site.name);
        }
    }
}

impl Host {
    /// Adds a VIP for direct server return: the host accepts its packets and answers no ARP request for it.
    pub fn add_vip_without_arp(&self, vip: IpAddr) -> Result<()> {
        self.netns.sysctl("net/ipv4/conf/all/arp_ignore", 1)?;
        self.netns.sysctl("net/ipv4/conf/all/arp_announce", 2)?;
        self.netns.add_address("lo", vip, host_prefix(vip))
    }

    fn add_default_routes(&self, v4: IpAddr, v6: IpAddr) -> Result<()> {
        self.netns.add_default_route(v4)?;
        self.netns.add_default_route(v6)
    }
}

/// The name of a lab, and the namespace of its bridges.
#[derive(Debug)]
struct Site {
    name: String,
    switch: Namespace,
}

impl Site {
    fn new() -> Result<Site> {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        remove_leftovers().context("removing what an earlier run left behind")?;
        let name = format!("{FAMILY}-{}-{}", id(), COUNT.fetch_add(1, Ordering::Relaxed));
        let files = Path::new(FILES).join(&name);
        fs::create_dir_all(&files)
            .with_context(|| format!("creating {} (this needs root)", files.display()))?;
        let switch = Namespace::create(format!("{name}-switch"))?;
        Ok(Site { name, switch })
    }

    /// Namespaces on a bridge of a host that forwards for them, as a container engine creates.
    fn containers(&self, host: &Host, number: u8, count: usize) -> Result<Vec<Host>> {
        const BRIDGE: &str = "br0";
        let (v4, v6) = (network_v4(number), network_v6(number));
        host.netns.ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        host.netns.ip(&["link", "set", BRIDGE, "up"])?;
        host.netns.add_address(BRIDGE, v4(1).into(), 24)?;
        host.netns.add_address(BRIDGE, v6(1).into(), 64)?;
        host.netns.sysctl("net/ipv4/ip_forward", 1)?;
        host.netns.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        (20..)
            .take(count)
            .enumerate()
            .map(|(i, at)| {
                let netns = Namespace::create(format!("{}-module{i}", self.name))?;
                let port = format!("veth{i}");
                host.netns.ip(&[
                    "link",
                    "add",
                    &port,
                    "master",
                    BRIDGE,
                    "type",
                    "veth",
                    "peer",
                    "name",
                    "eth0",
                    "netns",
                    netns.name(),
                ])?;
                host.netns.ip(&["link", "set", &port, "up"])?;
                netns.ip(&["link", "set", "eth0", "up"])?;
                let container = Host { netns, v4: v4(at), v6: v6(at) };
                container.netns.add_address("eth0", container.v4.into(), 24)?;
                container.netns.add_address("eth0", container.v6.into(), 64)?;
                container.add_default_routes(v4(1).into(), v6(1).into())?;
                Ok(container)
            })
            .collect()
    }

    fn segment(&self, bridge: &'static str, number: u8) -> Result<Segment<'_>> {
        self.switch.ip(&["link", "add", bridge, "type", "bridge", "mcast_snooping", "0"])?;
        self.switch.ip(&["link", "set", bridge, "up"])?;
        Ok(Segment { site: self, bridge, number })
    }

    /// A host on two segments that forwards between them.
    fn router(&self, name: &str, number: u8, front: &Segment, back: &Segment) -> Result<Host> {
        let host = front.host(name, number)?;
        back.attach(&host.netns, "eth1", name, number)?;
        host.netns.sysctl("net/ipv4/ip_forward", 1)?;
        host.netns.sysctl("net/ipv6/conf/all/forwarding", 1)?;
        Ok(host)
    }
}

/// An Ethernet segment with the networks 10.77.n.0/24 and fd77:0:0:n::/64.
struct Segment<'a> {
    site: &'a Site,
    bridge: &'static str,
    number: u8,
}

impl Segment<'_> {
    fn hosts(&self, kind: &str, count: usize, first: u8) -> Result<Vec<Host>> {
        (first..)
            .take(count)
            .enumerate()
            .map(|(i, number)| self.host(&format!("{kind}{i}"), number))
            .collect()
    }

    fn host(&self, name: &str, number: u8) -> Result<Host> {
        let netns = Namespace::create(format!("{}-{name}", self.site.name))?;
        self.attach(&netns, "eth0", name, number)?;
        Ok(Host { netns, v4: self.v4(number), v6: self.v6(number) })
    }

    fn attach(&self, host: &Namespace, interface: &str, name: &str, number: u8) -> Result<()> {
        let port = format!("{}-{name}", self.bridge);
        host.cable(interface, &self.site.switch, &port)?;
        self.site.switch.ip(&["link", "set", &port, "master", self.bridge])?;
        host.add_address(interface, self.v4(number).into(), 24)?;
        host.add_address(interface, self.v6(number).into(), 64)
    }

    fn v4(&self, number: u8) -> Ipv4Addr {
        network_v4(self.number)(number)
    }

    fn v6(&self, number: u8) -> Ipv6Addr {
        network_v6(self.number)(number)
    }
}

fn network_v4(network: u8) -> impl Fn(u8) -> Ipv4Addr {
    move |host| Ipv4Addr::new(10, 77, network, host)
}

fn network_v6(network: u8) -> impl Fn(u8) -> Ipv6Addr {
    move |host| Ipv6Addr::new(0xfd77, 0, 0, network.into(), 0, 0, 0, host.into())
}

/// Adds the VIPs to the NLB's host, whose kernel answers ARP and neighbour discovery for them.
fn add_vips(nlb: &Host) -> Result<()> {
    for vip in [VIP4.into(), VIP6.into()] {
        nlb.netns.add_address("eth0", vip, host_prefix(vip))?;
    }
    Ok(())
}

fn host_prefix(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn remove_leftovers() -> Result<()> {
    fs::create_dir_all(FILES).with_context(|| format!("creating {FILES} (this needs root)"))?;
    // Labs of several processes start at a time: one that finds a namespace half removed would fail.
    let directory = File::open(FILES).with_context(|| format!("opening {FILES}"))?;
    directory.lock().with_context(|| format!("locking {FILES}"))?;
    netns::remove_leftovers(FAMILY)?;
    for entry in Path::new(FILES).read_dir().into_iter().flatten() {
        let name = entry?.file_name();
        let Some(name) = name.to_str() else { continue };
        if netns::owner(name, FAMILY).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            remove_files(name)?;
        }
    }
    Ok(())
}

fn remove_files(lab: &str) -> Result<()> {
    let directory = Path::new(FILES).join(lab);
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    Ok(())
}
