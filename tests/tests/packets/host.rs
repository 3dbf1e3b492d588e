//! What routes for every port leave to this host, where the VIP is an address of its own.

use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::Arc;

use anyhow::{Context, Result};
use nix::sys::socket::{self, AddressFamily, SockFlag, SockType, SockaddrStorage};
use nlb::model::{ForwardMode, Protocol, Route};
use nlb_common::protocol::{ETH_LEN, IPV4_LEN, IPV6_LEN};

use crate::packet::{ACK, Packet, SYN, Transport};
use crate::rig::{Family, Rig, families};

/// A rig whose module serves every port of both VIPs, the first of which is an address of the host.
fn rig(family: &Family, mode: ForwardMode) -> Result<Rig> {
    let mut rig = Rig::new(mode)?;
    let tcp = rig.route("m1", "tcp").clone();
    let every = |protocol| Route { protocol, port: None, ..tcp.clone() };
    let routes = [("every-tcp", Protocol::Tcp), ("every-udp", Protocol::Udp)];
    rig.module("m1").routes =
        routes.map(|(id, protocol)| (id.to_owned(), Arc::new(every(protocol)))).into_iter().collect();
    rig.apply()?;
    rig.host.protect([22, 50051].into_iter())?;
    rig.host.set_addresses([family.vip].into())?;
    Ok(rig)
}

fn verdict(rig: &mut Rig, packet: &Packet) -> Result<String> {
    let counted = rig.run(packet)?.counted;
    assert_eq!(counted.values().sum::<u64>(), 1, "{counted:?}");
    counted.into_keys().next().context("no counter")
}

const HOST: &str = "pass host";
const TAKEN: &str = "send forward";

#[test]
fn row_38_protected_ports_stay_with_the_host() -> Result<()> {
    for family in families() {
        let mut rig = rig(&family, ForwardMode::DsrL2)?;
        for (port, expected) in [(22, HOST), (50051, HOST), (23, TAKEN), (80, TAKEN)] {
            for packet in [family.syn(), family.ack(), family.udp()] {
                let packet = packet.with(|p| (p.dport, p.sport) = (port, 41_000 + port % 1000));
                assert_eq!(verdict(&mut rig, &packet)?, expected, "{port}: {packet:?}");
            }
        }
        let elsewhere = family.syn().with(|p| (p.dst, p.dport) = (family.vip2, 22));
        assert_eq!(verdict(&mut rig, &elsewhere)?, TAKEN, "no address of the host's");
        rig.route("m1", "every-tcp").port = Some(22);
        rig.apply()?;
        let named = family.syn().with(|p| p.dport = 22);
        assert_eq!(verdict(&mut rig, &named)?, TAKEN, "a route names the port");
    }
    Ok(())
}

#[test]
fn row_38_connections_of_the_host_stay_and_listeners_are_taken() -> Result<()> {
    for family in families() {
        let mut rig = rig(&family, ForwardMode::Nat)?;
        for address in [family.vip, family.client] {
            rig.namespace().add_address("lo", address, if address.is_ipv4() { 32 } else { 128 })?;
        }
        rig.enter()?;
        let listener = TcpListener::bind(SocketAddr::new(family.client, 0))?;
        let connection = connect(family.vip, listener.local_addr()?)?;
        let of = |packet: Packet, own: SocketAddr, remote: SocketAddr| {
            packet.with(|p| (p.sport, p.dport) = (remote.port(), own.port()))
        };
        let own = of(family.ack(), connection.local_addr()?, connection.peer_addr()?);
        assert_eq!(verdict(&mut rig, &own)?, HOST, "a connection that the host opened");
        let strange = own.with(|p| p.sport ^= 1);
        assert_eq!(verdict(&mut rig, &strange)?, TAKEN, "of no connection");

        let server = TcpListener::bind(SocketAddr::new(family.vip, 0))?;
        let syn = family.syn().with(|p| p.dport = server.local_addr().expect("it is bound").port());
        assert_eq!(verdict(&mut rig, &syn)?, TAKEN, "what merely listens");

        let (connected, waiting) = (
            UdpSocket::bind(SocketAddr::new(family.vip, 0))?,
            UdpSocket::bind(SocketAddr::new(family.vip, 0))?,
        );
        let remote = SocketAddr::new(family.client, 5353);
        connected.connect(remote)?;
        assert_eq!(verdict(&mut rig, &of(family.udp(), connected.local_addr()?, remote))?, HOST);
        assert_eq!(verdict(&mut rig, &of(family.udp(), waiting.local_addr()?, remote))?, TAKEN);
    }
    Ok(())
}

/// The host's only address is the source towards modules, too.
#[test]
fn row_38_replies_to_an_address_that_is_a_vip_are_translated_back() -> Result<()> {
    for family in families() {
        let mut rig = rig(&family, ForwardMode::Nat)?;
        rig.know(family.backend, family.vip);
        rig.apply()?;
        let frame = rig.run(&family.syn())?.frame;
        let tcp = ETH_LEN + if family.vip.is_ipv4() { IPV4_LEN } else { IPV6_LEN };
        let translated_port = u16::from_be_bytes([frame[tcp], frame[tcp + 1]]);
        let forwarded = family.syn().with(|p| {
            (p.src, p.dst, p.sport) = (family.vip, family.backend, translated_port);
            p.dport = u16::from_be_bytes([frame[tcp + 2], frame[tcp + 3]]);
        });
        let answer = family.answer(&forwarded, Transport::Tcp { flags: SYN | ACK, seq: 7 });
        assert_eq!(verdict(&mut rig, &answer)?, "send reply", "{answer:?}");
    }
    Ok(())
}

/// A connection from this address, which the standard library cannot choose.
fn connect(from: IpAddr, to: SocketAddr) -> Result<TcpStream> {
    let family = if from.is_ipv4() { AddressFamily::Inet } else { AddressFamily::Inet6 };
    let socket = socket::socket(family, SockType::Stream, SockFlag::empty(), None)?;
    socket::bind(socket.as_raw_fd(), &SockaddrStorage::from(SocketAddr::new(from, 0)))?;
    socket::connect(socket.as_raw_fd(), &SockaddrStorage::from(to))?;
    Ok(socket.into())
}
