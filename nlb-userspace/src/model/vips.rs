//! Which addresses may be VIPs: what the operator configured, against what a route names.

use std::collections::BTreeSet;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Destination;

/// The addresses that routes may name. If none is configured, any single address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Vips {
    addresses: BTreeSet<IpAddr>,
    prefixes: BTreeSet<IpNet>,
    /// Prefixes that outer headers take their source addresses from, in which no host is.
    taken: Vec<IpNet>,
}

impl Vips {
    /// The configured single addresses, which wildcards and prefixes stand for.
    pub fn addresses(&self) -> &BTreeSet<IpAddr> {
        &self.addresses
    }

    /// The same VIPs without those in the prefixes of the source addresses of outer headers.
    pub fn without(self, taken: impl Iterator<Item = IpNet>) -> Self {
        Vips { taken: taken.collect(), ..self }
    }

    /// All VIPs, as they were given.
    pub fn nets(&self) -> impl Iterator<Item = IpNet> + '_ {
        self.addresses.iter().map(|address| IpNet::from(*address)).chain(self.prefixes.iter().copied())
    }

    /// Whether a route may have this destination; if not, why.
    pub fn admit(&self, destination: &Destination) -> Result<(), String> {
        match destination {
            Destination::EveryVip if self.addresses.is_empty() => Err(
                "stands for every configured VIP, and none is configured; name an address, or start the NLB \
                     with --vip"
                    .into(),
            ),
            Destination::EveryVip => Ok(()),
            Destination::Address(address) if self.admits(*address) => {
                match self.taken.iter().find(|taken| taken.contains(address)) {
                    Some(taken) => Err(format!(
                        "{address} is in {taken}, which outer headers come from (--ipip-sources); name an address \
                         outside"
                    )),
                    None => virtual_address(*address),
                }
            }
            Destination::Address(address) => {
                Err(format!("{address} is not among the configured VIPs ({self}); add it with --vip"))
            }
            Destination::Prefix(prefix) if self.addresses.iter().any(|vip| prefix.contains(vip)) => Ok(()),
            Destination::Prefix(prefix) => Err(format!(
                "{prefix} stands for the configured VIPs inside it, and there is none; name an address, or start \
                 the NLB with --vip"
            )),
        }
    }

    fn admits(&self, address: IpAddr) -> bool {
        (self.addresses.is_empty() && self.prefixes.is_empty())
            || self.addresses.contains(&address)
            || self.prefixes.iter().any(|prefix| prefix.contains(&address))
    }
}

/// Whether clients can reach the NLB at this address; if not, why.
fn virtual_address(address: IpAddr) -> Result<(), String> {
    match unusable(address) {
        Some(kind) => {
            Err(format!("{address} is {kind}: clients cannot connect to it; name a unicast address"))
        }
        None => Ok(()),
    }
}

/// The kind of an address that no packet on a link is addressed to.
pub fn unusable(address: IpAddr) -> Option<&'static str> {
    match address {
        _ if address.is_unspecified() => Some("the unspecified address"),
        _ if address.is_loopback() => Some("a loopback address"),
        _ if address.is_multicast() => Some("a multicast address"),
        IpAddr::V4(v4) if v4.is_broadcast() => Some("the broadcast address"),
        IpAddr::V6(v6) if v6.to_ipv4_mapped().is_some() => Some("a v4-mapped address"),
        _ => None,
    }
}

impl FromIterator<IpNet> for Vips {
    /// A prefix of full length is a single address.
    fn from_iter<I: IntoIterator<Item = IpNet>>(nets: I) -> Self {
        let (addresses, prefixes): (Vec<_>, Vec<_>) =
            nets.into_iter().partition(|net| net.prefix_len() == net.max_prefix_len());
        Vips {
            addresses: addresses.into_iter().map(|net| net.addr()).collect(),
            prefixes: prefixes.into_iter().map(|net| net.trunc()).collect(),
            taken: Vec::new(),
        }
    }
}

impl std::fmt::Display for Vips {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses = self.addresses.iter().map(IpAddr::to_string);
        let prefixes = self.prefixes.iter().map(IpNet::to_string);
        f.write_str(&addresses.chain(prefixes).collect::<Vec<_>>().join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vips(nets: &[&str]) -> Vips {
        nets.iter().map(|net| net.parse::<IpNet>().unwrap()).collect()
    }

    fn address(text: &str) -> Destination {
        Destination::Address(text.parse().unwrap())
    }

    fn prefix(text: &str) -> Destination {
        Destination::Prefix(text.parse().unwrap())
    }

    #[test]
    fn without_configuration_any_single_address_may_be_claimed() {
        let vips = Vips::default();
        assert_eq!(vips.admit(&address("192.0.2.1")), Ok(()));
        assert_eq!(vips.admit(&address("2001:db8::1")), Ok(()));
        assert!(vips.admit(&prefix("192.0.2.0/24")).unwrap_err().contains("--vip"));
        assert!(vips.admit(&Destination::EveryVip).unwrap_err().contains("--vip"));
    }

    #[test]
    fn configuration_bounds_what_may_be_claimed() {
        let vips = vips(&["192.0.2.1/32", "198.51.100.0/24"]);
        assert_eq!(vips.admit(&address("192.0.2.1")), Ok(()));
        assert_eq!(vips.admit(&address("198.51.100.7")), Ok(()));
        assert_eq!(vips.admit(&Destination::EveryVip), Ok(()));
        assert_eq!(vips.admit(&prefix("192.0.2.0/24")), Ok(()));
        let refusal = vips.admit(&address("192.0.2.2")).unwrap_err();
        assert!(refusal.contains("192.0.2.1, 198.51.100.0/24"), "{refusal}");
    }

    #[test]
    fn a_prefix_stands_for_configured_single_addresses_only() {
        let vips = vips(&["192.0.2.1/32", "198.51.100.0/24"]);
        assert!(vips.admit(&prefix("198.51.100.0/25")).is_err());
        assert!(vips.admit(&prefix("0.0.0.0/0")).is_ok());
    }

    #[test]
    fn outer_sources_are_not_to_be_claimed() {
        let vips = Vips::default().without(["10.7.0.0/16".parse().unwrap()].into_iter());
        assert_eq!(vips.admit(&address("10.8.0.1")), Ok(()));
        let refusal = vips.admit(&address("10.7.3.1")).unwrap_err();
        assert!(refusal.contains("10.7.0.0/16") && refusal.contains("--ipip-sources"), "{refusal}");
    }

    #[test]
    fn addresses_that_no_client_can_reach_are_refused() {
        for text in [
            "0.0.0.0",
            "127.0.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "ff02::1",
            "::ffff:192.0.2.1",
        ] {
            assert!(Vips::default().admit(&address(text)).is_err(), "{text}");
        }
    }
}
