//! A destination of packets without a route.

use std::fmt;
use std::net::{IpAddr, SocketAddr};

use super::{Destination, L4, Protocol, Route, RouteKey, Targets, Texts};

/// VIP, port and protocol that packets are addressed to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct L4Destination {
    pub vip: IpAddr,
    pub port: u16,
    pub l4: L4,
}

impl fmt::Display for L4Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", SocketAddr::new(self.vip, self.port), self.l4)
    }
}

impl L4Destination {
    pub fn route_id(&self) -> String {
        format!("learned:{self}")
    }

    pub fn key(&self) -> RouteKey {
        RouteKey { id: self.route_id(), operators: true }
    }

    pub fn route(&self) -> Route {
        Route {
            protocol: match self.l4 {
                L4::Tcp => Protocol::Tcp,
                L4::Udp => Protocol::Udp,
            },
            source: None,
            destination: Destination::Address(self.vip),
            port: Some(self.port),
            priority: 0,
            listen_port: None,
            targets: Targets::Implied,
            headers: Texts::new(),
            path_pattern: String::new(),
            metadata: [("learned".to_owned(), "true".to_owned())].into_iter().collect(),
        }
    }
}
