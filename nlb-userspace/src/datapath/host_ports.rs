//! This host's own traffic beside routes for every port: its addresses, and what listens on it.
//!
//! Where a VIP is an address of this host, such a route leaves the host's connections and the protected ports
//! to it (`nlb-ebpf/src/host.rs`). Other ports at which programs of this host listen are taken.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use tracing::warn;

use super::maps::bpf::HostTraffic;
use super::netlink::Netlink;
use crate::model::L4;
use crate::model::host::HostPorts;

/// Keeps the host's addresses in the map, for as long as the daemon runs.
pub(crate) async fn run(mut traffic: HostTraffic) -> anyhow::Result<()> {
    let (netlink, mut events) = Netlink::open()?;
    loop {
        let addresses = netlink.addresses().await?.into_iter().map(|(_, net)| net.addr());
        if let Err(error) = traffic.set_addresses(addresses.collect()) {
            warn!("cannot protect all of this host's addresses from routes for every port: {error:#}");
        }
        if events.recv().await.is_none() {
            return Ok(());
        }
    }
}

/// The host's addresses and listeners now.
pub(crate) fn read(protected: &BTreeSet<u16>) -> io::Result<HostPorts> {
    let addresses = nix::ifaddrs::getifaddrs()?.filter_map(|interface| {
        let address = interface.address?;
        let v4 = address.as_sockaddr_in().map(|address| IpAddr::V4(address.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|address| IpAddr::V6(address.ip())))
    });
    let mut ports =
        HostPorts { addresses: addresses.collect(), protected: protected.clone(), ..Default::default() };
    for (l4, name) in [(L4::Tcp, "tcp"), (L4::Udp, "udp")] {
        for file in [format!("/proc/net/{name}"), format!("/proc/net/{name}6")] {
            match fs::read_to_string(&file) {
                Ok(table) => ports.listening.extend(listening(&table, l4).map(|address| (address, l4))),
                // A kernel without this family.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
    }
    Ok(ports)
}

/// The addresses of sockets that wait for clients in such a table of the kernel: TCP sockets that listen, and
/// UDP sockets that are not connected.
fn listening(table: &str, l4: L4) -> impl Iterator<Item = SocketAddr> + '_ {
    // `TCP_LISTEN`. UDP sockets that are not connected have the state `TCP_CLOSE`.
    let state = if l4 == L4::Tcp { "0A" } else { "07" };
    table.lines().skip(1).filter_map(move |line| {
        let mut columns = line.split_whitespace().skip(1);
        let (local, _, is) = (columns.next()?, columns.next()?, columns.next()?);
        (is == state).then(|| address(local)).flatten()
    })
}

/// An address as in those tables: 32-bit words of the host's byte order and the port, in hexadecimal digits.
fn address(text: &str) -> Option<SocketAddr> {
    let (ip, port) = text.split_once(':')?;
    let words =
        ip.as_bytes().chunks(8).map(|digits| u32::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
    let bytes: Vec<u8> =
        words.collect::<Option<Vec<u32>>>()?.into_iter().flat_map(u32::to_ne_bytes).collect();
    let ip = match bytes.len() {
        4 => IpAddr::V4(Ipv4Addr::from(<[u8; 4]>::try_from(bytes).ok()?)),
        _ => IpAddr::V6(Ipv6Addr::from(<[u8; 16]>::try_from(bytes).ok()?)),
    };
    Some(SocketAddr::new(ip, u16::from_str_radix(port, 16).ok()?))
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream, UdpSocket};

    use super::*;

    #[test]
    fn sockets_that_wait_for_clients_are_found() {
        let tcp = ["127.0.0.1:0", "[::1]:0"].map(|any| TcpListener::bind(any).unwrap());
        let (waiting, connected) =
            (UdpSocket::bind("127.0.0.1:0").unwrap(), UdpSocket::bind("127.0.0.1:0").unwrap());
        connected.connect(waiting.local_addr().unwrap()).unwrap();
        let client = TcpStream::connect(tcp[0].local_addr().unwrap()).unwrap();

        let ports = read(&BTreeSet::from([22])).unwrap();
        for listener in &tcp {
            assert!(ports.listening.contains(&(listener.local_addr().unwrap(), L4::Tcp)), "{ports:?}");
        }
        assert!(ports.listening.contains(&(waiting.local_addr().unwrap(), L4::Udp)), "{ports:?}");
        assert!(!ports.listening.contains(&(connected.local_addr().unwrap(), L4::Udp)), "{ports:?}");
        assert!(!ports.listening.contains(&(client.local_addr().unwrap(), L4::Tcp)), "{ports:?}");
        assert!(ports.addresses.contains(&Ipv4Addr::LOCALHOST.into()));
    }
}
