//! The kernel's own tunnels receive what the balancer sends: ipip, sit and ip6tnl the packets of dsr-ipip,
//! and with fou ("foo over UDP") those of gue. The kernels of distributions have these tunnels, others may
//! not.

use std::net::{SocketAddr, UdpSocket};
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::ifaddrs::getifaddrs;
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, bind, send, socket};
use nlb::model::ForwardMode;
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::process::MAX_WAIT;

use crate::dsr::rig_of_one_family;
use crate::packet::{Packet, Transport, UdpChecksum};
use crate::rig::{GUE_PORT, families};

#[test]
#[ignore = "needs a kernel with ipip; `cargo xtask verify --kernel 6.12` boots one"]
fn the_kernels_ip_tunnels_receive_every_pair_of_families() -> Result<()> {
    every_pair_arrives(ForwardMode::DsrIpip, &ModuleHost::new("ipip")?)
}

#[test]
#[ignore = "needs a kernel with fou; `cargo xtask verify --kernel 6.12` boots one"]
fn the_kernels_fou_receives_every_pair_of_families() -> Result<()> {
    let host = ModuleHost::new("fou")?;
    host.decapsulate_gue()?;
    every_pair_arrives(ForwardMode::Gue, &host)?;

    let [_, v6] = families();
    let mut rig = rig_of_one_family(ForwardMode::Gue, &v6)?;
    for client in families() {
        let mut wrong = rig.run(&client.udp())?.frame;
        wrong[54 + 6] ^= 0x55;
        host.send(&wrong)?;
        // The datagram after the wrong one is the first that arrives.
        let next = client.udp().with(|p| p.payload = b"the next datagram".to_vec());
        host.send(&rig.run(&next)?.frame)?;
        host.receives(&next).context("a wrong outer checksum is not detected")?;
    }
    Ok(())
}

fn every_pair_arrives(mode: ForwardMode, host: &ModuleHost) -> Result<()> {
    for (backend, underlay) in families().iter().zip(["IPv4", "IPv6"]) {
        let mut rig = rig_of_one_family(mode, backend)?;
        for (client, inner) in families().iter().zip(["IPv4", "IPv6"]) {
            let mut datagrams = vec![("with a checksum", client.udp())];
            if client.vip.is_ipv4() {
                let none = Transport::Udp { checksum: UdpChecksum::Zero };
                datagrams.push(("without a checksum", client.udp().with(|p| p.l4 = none)));
            }
            for (what, datagram) in datagrams {
                let frame = rig.run(&datagram)?.frame;
                host.send(&frame)?;
                host.receives(&datagram).with_context(|| format!("{inner} in {underlay}, {what}"))?;
            }
        }
    }
    Ok(())
}

/// A module's host whose kernel decapsulates, and a cable to it.
struct ModuleHost {
    cable: OwnedFd,
    services: [UdpSocket; 2],
    host: Namespace,
    _sender: Namespace,
}

impl ModuleHost {
    /// A host that decapsulates IP in IP.
    fn new(name: &str) -> Result<ModuleHost> {
        let name = |end| format!("nlb-{}-{name}-{end}", std::process::id());
        let (sender, host) = (Namespace::create(name("sender"))?, Namespace::create(name("host"))?);
        sender.cable("eth0", &host, "eth0")?;
        host.ip(&["link", "set", "eth0", "address", "02:00:00:00:00:b1"])?;
        for family in families() {
            host.add_address("eth0", family.backend, if family.vip.is_ipv4() { 24 } else { 64 })?;
            host.add_address("lo", family.vip, if family.vip.is_ipv4() { 32 } else { 128 })?;
        }
        let [v4, v6] = families().map(|family| (family.backend.to_string(), family.source.to_string()));
        for (tunnel, (local, remote)) in [("ipip", &v4), ("sit", &v4), ("ip6tnl", &v6)] {
            let ends = ["local", local, "remote", remote];
            let mode: &[&str] = if tunnel == "ip6tnl" { &["mode", "any"] } else { &[] };
            host.ip(&[&["link", "add", "tunnel", "type", tunnel], mode, &ends].concat())?;
            host.ip(&["link", "set", "tunnel", "name", &format!("{tunnel}-nlb"), "up"])?;
        }
        let open = |family: crate::rig::Family| -> Result<UdpSocket> {
            let socket = UdpSocket::bind(SocketAddr::new(family.vip, 53))?;
            socket.set_read_timeout(Some(MAX_WAIT))?;
            Ok(socket)
        };
        let [v4, v6] = families();
        let services = host.run(|| -> Result<_> { Ok([open(v4)?, open(v6)?]) })??;
        let cable = sender.run(cable_end)??;
        Ok(ModuleHost { cable, services, host, _sender: sender })
    }

    fn decapsulate_gue(&self) -> Result<()> {
        // The kernel does not load this module on demand.
        output(Command::new("modprobe").arg("fou"))?;
        let port = GUE_PORT.to_string();
        for family in ["-4", "-6"] {
            self.host.ip(&[family, "fou", "add", "port", &port, "gue"])?;
        }
        Ok(())
    }

    fn send(&self, frame: &[u8]) -> Result<()> {
        send(self.cable.as_raw_fd(), frame, MsgFlags::empty()).context("sending a frame").map(drop)
    }

    /// Checks that the next datagram that arrives is this one, unchanged.
    fn receives(&self, datagram: &Packet) -> Result<()> {
        let mut received = [0; 64];
        let service = &self.services[usize::from(datagram.dst.is_ipv6())];
        let (len, from) = service.recv_from(&mut received).context("no datagram arrives")?;
        ensure!(from == SocketAddr::new(datagram.src, datagram.sport), "a datagram from {from}");
        ensure!(received[..len] == datagram.payload, "a datagram with {:?}", &received[..len]);
        Ok(())
    }
}

/// A socket whose frames go over the cable unchanged.
fn cable_end() -> Result<OwnedFd> {
    let socket = socket(AddressFamily::Packet, SockType::Raw, SockFlag::SOCK_CLOEXEC, None)?;
    let eth0 = getifaddrs()?
        .filter(|interface| interface.interface_name == "eth0")
        .find_map(|interface| interface.address?.as_link_addr().copied())
        .context("eth0 is not there")?;
    bind(socket.as_raw_fd(), &eth0)?;
    Ok(socket)
}
