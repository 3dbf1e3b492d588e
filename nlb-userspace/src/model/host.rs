//! The ports of this host, and those that routes for every port take.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use super::{Destination, L4, Route};

/// This host's addresses, and what listens on it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HostPorts {
    pub addresses: BTreeSet<IpAddr>,
    /// Sockets that wait for clients.
    pub listening: BTreeSet<(SocketAddr, L4)>,
    /// Ports that routes for every port leave to the host.
    pub protected: BTreeSet<u16>,
}

impl HostPorts {
    /// What these routes for every port take from this host and what they leave to it, as a sentence; `None`
    /// if no VIP of theirs is an address of this host. `vips` are those that a destination may stand for.
    pub fn taken<'a>(
        &self,
        routes: impl Iterator<Item = &'a Route>,
        vips: &BTreeSet<IpAddr>,
    ) -> Option<String> {
        let mut taken: BTreeMap<IpAddr, BTreeSet<(L4, u16)>> = BTreeMap::new();
        for route in routes.filter(|route| route.port.is_none()) {
            let l4 = route.protocol.l4();
            let covers = |address: &IpAddr| match route.destination {
                Destination::Address(vip) => vip == *address,
                Destination::EveryVip => vips.contains(address),
                Destination::Prefix(prefix) => vips.contains(address) && prefix.contains(address),
            };
            for address in self.addresses.iter().filter(|address| covers(address)) {
                let ports = taken.entry(*address).or_default();
                let waits_there = |socket: &SocketAddr| {
                    let any = socket.ip().is_unspecified() && (socket.is_ipv6() || address.is_ipv4());
                    (any || socket.ip() == *address) && !self.protected.contains(&socket.port())
                };
                let own = self.listening.iter().filter(|(socket, own)| *own == l4 && waits_there(socket));
                ports.extend(own.map(|(socket, l4)| (*l4, socket.port())));
            }
        }
        let sentences = taken.into_iter().map(|(address, ports)| {
            let ports: Vec<String> = ports.into_iter().map(|(l4, port)| format!("{port}/{l4}")).collect();
            let ports = match ports.as_slice() {
                [] => "no other port at which a program of this host listens".to_owned(),
                ports => format!("the ports {}, at which programs of this host listen", ports.join(", ")),
            };
            let kept: Vec<String> = self.protected.iter().map(u16::to_string).collect();
            format!(
                "{address} is an address of this host: the host keeps its own connections and the ports {} \
                 (--protected-ports), and the route takes {ports}",
                kept.join(", ")
            )
        });
        let sentences: Vec<String> = sentences.collect();
        (!sentences.is_empty()).then(|| sentences.join("; "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Protocol, Targets, Texts};

    fn route(destination: Destination, port: Option<u16>) -> Route {
        Route {
            protocol: Protocol::Tcp,
            source: None,
            destination,
            port,
            priority: 0,
            listen_port: None,
            targets: Targets::Implied,
            headers: Texts::new(),
            path_pattern: String::new(),
            metadata: Texts::new(),
        }
    }

    #[test]
    fn listeners_that_a_route_takes_are_named() {
        let own: IpAddr = "192.0.2.1".parse().unwrap();
        let listening = [
            ("0.0.0.0:22", L4::Tcp),
            ("0.0.0.0:80", L4::Tcp),
            ("[::]:81", L4::Tcp),
            ("192.0.2.1:82", L4::Tcp),
            ("192.0.2.9:83", L4::Tcp),
            ("0.0.0.0:84", L4::Udp),
        ];
        let host = HostPorts {
            addresses: [own, "2001:db8::1".parse().unwrap()].into(),
            listening: listening.map(|(socket, l4)| (socket.parse().unwrap(), l4)).into(),
            protected: [22].into(),
        };
        let vips = BTreeSet::from([own]);
        let taken = |destination, port| host.taken([&route(destination, port)].into_iter(), &vips);
        let text = taken(Destination::EveryVip, None).unwrap();
        assert!(text.contains("the ports 22 (--protected-ports)"), "{text}");
        assert!(
            text.ends_with("takes the ports 80/tcp, 81/tcp, 82/tcp, at which programs of this host listen"),
            "{text}"
        );
        assert_eq!(taken(Destination::Address(own), None).unwrap(), text);
        assert_eq!(taken(Destination::Address("192.0.2.2".parse().unwrap()), None), None, "not of this host");
        assert_eq!(taken(Destination::Address(own), Some(22)), None, "one port, which the caller names");
        let v6 = taken(Destination::Address("2001:db8::1".parse().unwrap()), None).unwrap();
        assert!(v6.contains("takes the ports 81/tcp, at"), "{v6}");
    }
}
