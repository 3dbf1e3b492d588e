//! Hosts and ports as modules give them: by address or by name.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

/// A host as it was given.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Host {
    Address(IpAddr),
    Name(String),
}

/// host:port, where a module's gRPC server listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    pub host: Host,
    pub port: u16,
}

/// gRPC's customary port, for addresses without one.
const GRPC_PORT: u16 = 50051;

impl FromStr for Host {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(address) = text.trim_start_matches('[').trim_end_matches(']').parse() {
            return Ok(Host::Address(address));
        }
        let label = |label: &str| {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
            (1..=63).contains(&label.len()) && label.chars().all(inner) && !label.starts_with('-')
        };
        let labels = text.strip_suffix('.').unwrap_or(text);
        // A mistyped IPv4 address must not become a DNS query.
        let numeric =
            labels.split('.').next_back().is_some_and(|last| last.bytes().all(|b| b.is_ascii_digit()));
        if labels.len() > 253 || numeric || !labels.split('.').all(label) {
            return Err(format!("{text:?} is neither an IP address nor a host name"));
        }
        Ok(Host::Name(text.to_owned()))
    }
}

impl FromStr for Endpoint {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wanted = || format!("{text:?} is not host:port, such as alb-001:50051 or [2001:db8::1]:50051");
        let bracketed = text.starts_with('[') && text.ends_with(']');
        let Some((host, port)) = text.rsplit_once(':').filter(|_| !bracketed) else {
            return Ok(Endpoint { host: text.parse()?, port: GRPC_PORT });
        };
        if host.contains(':') && !(host.starts_with('[') && host.ends_with(']')) {
            return Err(wanted());
        }
        match port.parse() {
            Ok(0) => Err(format!("the port in {text:?} must be 1 to 65535")),
            Ok(port) => Ok(Endpoint { host: host.parse()?, port }),
            Err(_) => Err(wanted()),
        }
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            Host::Address(address) => address.fmt(f),
            Host::Name(name) => f.write_str(name),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}
