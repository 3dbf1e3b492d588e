//! Resolves the host names of modules to addresses, and follows the names when they resolve to others.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{self, timeout};
use tracing::{info, warn};

use crate::model::endpoint::Endpoint;
use crate::model::endpoint::Host;
use crate::model::reachability::{Locality, Reach, Unreachable};
use crate::model::vips::unusable;
use crate::model::{DataAddresses, ForwardMode};
use crate::registry::Registry;

#[derive(Debug, thiserror::Error)]
pub enum Unresolved {
    #[error("{name} does not resolve: {error}; register an address, or a name that the NLB's resolver knows")]
    Lookup { name: String, error: io::Error },
    #[error(
        "{host} is {kind}, where no packet can be forwarded to; give the address by which the NLB reaches it in \
         metadata data_address"
    )]
    Unusable { host: String, kind: &'static str },
}

type Answer = Pin<Box<dyn Future<Output = io::Result<Vec<IpAddr>>> + Send>>;
type Where = Pin<Box<dyn Future<Output = Reach> + Send>>;

/// Resolves host names, and finds out how packets get to addresses.
#[derive(Clone)]
pub struct Resolver {
    lookup: Arc<dyn Fn(String) -> Answer + Send + Sync>,
    reach: Arc<dyn Fn(IpAddr) -> Where + Send + Sync>,
}

/// Why a module cannot be served at an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Unservable {
    /// Direct server return does not work there.
    NotDirectly(IpAddr, Locality),
    Unreachable(IpAddr, Unreachable),
}

impl Resolver {
    const LOOKUP_TIMEOUT: Duration = Duration::from_secs(3);

    /// Resolves like the host: /etc/hosts, then DNS.
    pub fn system() -> Self {
        Self::with(|name| async move {
            Ok(tokio::net::lookup_host((name, 0)).await?.map(|found| found.ip()).collect())
        })
    }

    pub fn with<F>(lookup: impl Fn(String) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = io::Result<Vec<IpAddr>>> + Send + 'static,
    {
        Resolver {
            lookup: Arc::new(move |name| Box::pin(lookup(name))),
            reach: Arc::new(|_| Box::pin(async { Reach::Link })),
        }
    }

    /// The same resolver with a test of addresses; without one, XDP reaches every address.
    pub fn with_reach<F>(self, reach: impl Fn(IpAddr) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Reach> + Send + 'static,
    {
        Resolver { reach: Arc::new(move |address| Box::pin(reach(address))), ..self }
    }

    /// Why a module cannot be served at its addresses in this mode. An address that no packet gets to is no
    /// obstacle where another is reached: a name may have addresses of a family that the network does not
    /// have.
    pub async fn obstacle(&self, data: DataAddresses, mode: ForwardMode) -> Option<Unservable> {
        let (mut lost, mut reached) = (None, false);
        for address in data.v4.map(IpAddr::V4).into_iter().chain(data.v6.map(IpAddr::V6)) {
            match (self.reach)(address).await {
                Reach::Unreachable(why) => lost = lost.or(Some(Unservable::Unreachable(address, why))),
                Reach::Local(locality) if mode != ForwardMode::Nat => {
                    return Some(Unservable::NotDirectly(address, locality));
                }
                Reach::Local(_) | Reach::Link => reached = true,
            }
        }
        lost.filter(|_| !reached)
    }

    /// The data addresses for these hosts. If a name has several addresses of one family, the one in use is
    /// kept, so that flows do not move needlessly.
    pub async fn resolve(&self, hosts: &[Host], in_use: DataAddresses) -> Result<DataAddresses, Unresolved> {
        let mut found = DataAddresses::default();
        for host in hosts {
            let mut candidates = self.forwardable(host).await?;
            candidates.sort();
            let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) =
                candidates.iter().partition(|address| address.is_ipv4());
            let keep = |of: &[IpAddr], current: Option<IpAddr>| {
                current.filter(|address| of.contains(address)).or(of.first().copied())
            };
            if let Some(IpAddr::V4(address)) = keep(&v4, in_use.v4.map(IpAddr::V4)) {
                found.v4.get_or_insert(address);
            }
            if let Some(IpAddr::V6(address)) = keep(&v6, in_use.v6.map(IpAddr::V6)) {
                found.v6.get_or_insert(address);
            }
        }
        Ok(found)
    }

    /// Whether the endpoint accepts connections.
    pub async fn answers(&self, endpoint: &Endpoint) -> bool {
        let Ok(addresses) = self.look_up(&endpoint.host).await else { return false };
        for address in addresses {
            let connect = TcpStream::connect(SocketAddr::new(address, endpoint.port));
            if matches!(timeout(Duration::from_secs(1), connect).await, Ok(Ok(_))) {
                return true;
            }
        }
        false
    }

    /// The addresses of a host that packets can be forwarded to; at least one.
    async fn forwardable(&self, host: &Host) -> Result<Vec<IpAddr>, Unresolved> {
        let found = self.look_up(host).await?;
        let kind = found.first().map_or(Some("a name without addresses"), |first| unusable(*first));
        let usable: Vec<IpAddr> = found.into_iter().filter(|found| unusable(*found).is_none()).collect();
        match kind {
            Some(kind) if usable.is_empty() => Err(Unresolved::Unusable { host: host.to_string(), kind }),
            _ => Ok(usable),
        }
    }

    async fn look_up(&self, host: &Host) -> Result<Vec<IpAddr>, Unresolved> {
        let name = match host {
            Host::Address(address) => return Ok(vec![*address]),
            Host::Name(name) => name,
        };
        let answer = timeout(Self::LOOKUP_TIMEOUT, (self.lookup)(name.clone())).await;
        let answer = answer.unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "no answer")));
        answer.map_err(|error| Unresolved::Lookup { name: name.clone(), error })
    }
}

/// Resolves the host names of registered modules regularly. Runs until it is dropped.
pub async fn follow(registry: Arc<Registry>, resolver: Resolver, every: Duration) -> Infallible {
    loop {
        time::sleep(every).await;
        for named in registry.named_hosts() {
            match resolver.resolve(&named.hosts, named.data).await {
                Ok(data) if data != named.data => {
                    info!(
                        instance = named.instance_id,
                        ?data,
                        "the module's host name resolves to other addresses"
                    );
                    registry.readdress(&named.instance_id, named.epoch, data);
                }
                Ok(_) => {}
                Err(why) => {
                    warn!(instance = named.instance_id, %why, "host name not resolved; the last known address stays in use");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn resolver(addresses: &'static [&'static str]) -> Resolver {
        Resolver::with(move |_| async move { Ok(addresses.iter().map(|a| a.parse().unwrap()).collect()) })
    }

    fn name() -> Vec<Host> {
        vec![Host::Name("alb-001".into())]
    }

    #[test]
    fn endpoints_are_host_and_port() {
        for good in ["alb-001:50051", "10.0.0.1:1", "[2001:db8::1]:65535", "a.b.example.:80", "my_host:80"] {
            assert!(good.parse::<Endpoint>().is_ok(), "{good}");
        }
        for portless in ["alb-001", "10.0.0.1", "[2001:db8::1]"] {
            let endpoint: Endpoint = portless.parse().unwrap();
            assert_eq!(endpoint.to_string(), format!("{portless}:50051"));
        }
        for bad in [
            "",
            ":1",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "2001:db8::1:80",
            "2001:db8::1",
            "10.0.0.256",
            "[]",
            "http://host:80",
            "a b:80",
            "-a:80",
            "10.0.0:80",
            "10.0.0.256:80",
            "*:80",
            "a..b:80",
        ] {
            assert!(bad.parse::<Endpoint>().is_err(), "{bad}");
        }
        assert_eq!("[2001:db8::1]:80".parse::<Endpoint>().unwrap().to_string(), "[2001:db8::1]:80");
    }

    #[tokio::test]
    async fn takes_one_address_of_each_family() {
        let answer = resolver(&["10.0.0.2", "2001:db8::2", "10.0.0.1"]);
        let found = answer.resolve(&name(), DataAddresses::default()).await.unwrap();
        assert_eq!(found.v4, Some("10.0.0.1".parse().unwrap()));
        assert_eq!(found.v6, Some("2001:db8::2".parse().unwrap()));
    }

    #[tokio::test]
    async fn keeps_the_address_in_use_while_the_name_still_has_it() {
        let in_use = DataAddresses { v4: Some("10.0.0.2".parse().unwrap()), v6: None };
        let found = resolver(&["10.0.0.1", "10.0.0.2"]).resolve(&name(), in_use).await.unwrap();
        assert_eq!(found, in_use);
        let found = resolver(&["10.0.0.1", "10.0.0.3"]).resolve(&name(), in_use).await.unwrap();
        assert_eq!(found.v4, Some("10.0.0.1".parse().unwrap()));
    }

    #[tokio::test]
    async fn refuses_what_cannot_be_forwarded_to() {
        let refused = resolver(&["127.0.0.1"]).resolve(&name(), DataAddresses::default()).await.unwrap_err();
        assert!(refused.to_string().contains("loopback"), "{refused}");
        let refused = resolver(&[]).resolve(&name(), DataAddresses::default()).await.unwrap_err();
        assert!(refused.to_string().contains("without addresses"), "{refused}");
    }

    #[tokio::test]
    async fn finds_addresses_where_a_module_cannot_be_served() {
        let v4 = DataAddresses { v4: Some("10.0.0.1".parse().unwrap()), v6: None };
        let both = DataAddresses { v6: Some("2001:db8::1".parse().unwrap()), ..v4 };
        let v6: IpAddr = "2001:db8::1".parse().unwrap();
        let with_v6 = |reach: Reach| {
            resolver(&[]).with_reach(move |address| {
                let reach = if address.is_ipv6() { reach.clone() } else { Reach::Link };
                async move { reach }
            })
        };
        let local = with_v6(Reach::Local(Locality::OwnHost));
        assert_eq!(local.obstacle(v4, ForwardMode::Gue).await, None);
        let found = Some(Unservable::NotDirectly(v6, Locality::OwnHost));
        assert_eq!(local.obstacle(both, ForwardMode::Gue).await, found);
        assert_eq!(local.obstacle(both, ForwardMode::Nat).await, None);

        let tunnel = Unreachable::WithoutMac { link: "tun0".into() };
        let behind = with_v6(Reach::Unreachable(tunnel.clone()));
        assert_eq!(behind.obstacle(both, ForwardMode::Nat).await, None, "the other family is reached");
        let only_v6 = DataAddresses { v4: None, ..both };
        let found = Some(Unservable::Unreachable(v6, tunnel));
        assert_eq!(behind.obstacle(only_v6, ForwardMode::Nat).await, found);

        let without = with_v6(Reach::Unreachable(Unreachable::NoRoute));
        assert_eq!(without.obstacle(both, ForwardMode::Nat).await, None, "the other family has a route");
        let found = Some(Unservable::Unreachable(v6, Unreachable::NoRoute));
        assert_eq!(without.obstacle(only_v6, ForwardMode::Nat).await, found);
    }

    #[tokio::test]
    async fn the_error_has_the_reason_of_the_resolver() {
        let resolver = Resolver::with(|_| async { Err(io::Error::other("no such host")) });
        let refused = resolver.resolve(&name(), DataAddresses::default()).await.unwrap_err();
        assert!(refused.to_string().contains("alb-001 does not resolve: no such host"), "{refused}");
    }

    #[tokio::test]
    async fn an_endpoint_answers_if_it_accepts_connections() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        // Loopback is unusable for traffic, but accepts connections.
        let endpoint = Endpoint { host: "127.0.0.1".parse().unwrap(), port };
        assert!(Resolver::system().answers(&endpoint).await);
        drop(listener);
        assert!(!Resolver::system().answers(&endpoint).await);
    }
}
