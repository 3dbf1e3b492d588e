//! Prefixes of the source addresses of outer headers.

use std::net::IpAddr;

use anyhow::{bail, ensure};
use ipnet::IpNet;
use nlb_common::sources::Sources;

use crate::model::prefix::Addr128;
use crate::model::vips::Vips;

const FLAG: &str = "--ipip-sources";

/// Addresses that no packet on a link comes from. IPv4 addresses above the multicast range are reserved.
const NOT_HOST_ADDRESSES: [(&str, &str); 5] = [
    ("0.0.0.0/8", "addresses of no host"),
    ("127.0.0.0/8", "loopback"),
    ("224.0.0.0/3", "multicast and reserved addresses"),
    ("::/8", "loopback and v4-mapped addresses"),
    ("ff00::/8", "multicast"),
];

/// At most one prefix in each family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OuterSources {
    v4: Option<IpNet>,
    v6: Option<IpNet>,
}

impl OuterSources {
    pub fn new(nets: &[IpNet], vips: &Vips) -> anyhow::Result<Self> {
        let mut sources = OuterSources::default();
        for net in nets {
            check(net, vips)?;
            let of_family = if net.addr().is_ipv4() { &mut sources.v4 } else { &mut sources.v6 };
            if let Some(other) = of_family.replace(*net) {
                bail!("{FLAG} has both {other} and {net}; name one prefix of each family");
            }
        }
        Ok(sources)
    }

    pub fn nets(&self) -> impl Iterator<Item = IpNet> {
        self.v4.into_iter().chain(self.v6)
    }

    /// The prefixes as the program has them: for outer IPv4, for outer IPv6.
    pub fn rows(&self) -> [Sources; 2] {
        [self.v4, self.v6].map(|net| {
            net.map_or(Sources::NONE, |net| {
                let prefix = Addr128::from(net);
                Sources::new(IpAddr::from(prefix.addr).into(), prefix.bits)
            })
        })
    }
}

fn check(net: &IpNet, vips: &Vips) -> anyhow::Result<()> {
    ensure!(
        net.prefix_len() < net.max_prefix_len(),
        "{FLAG} {net} is one address, which all flows would share; name a prefix that is reserved for this"
    );
    let overlaps = |other: &IpNet| other.contains(net) || net.contains(other);
    for (other, what) in NOT_HOST_ADDRESSES {
        let other = other.parse().expect("a prefix");
        ensure!(!overlaps(&other), "{FLAG} {net} has {what} ({other}) in it, which no packet may come from");
    }
    if let Some(vip) = vips.nets().find(overlaps) {
        bail!("{FLAG} {net} and --vip {vip} overlap; name a prefix of unused addresses");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use nlb_common::net::Addr;

    use super::*;

    fn sources(nets: &str, vips: &str) -> anyhow::Result<OuterSources> {
        let parse = |text: &str| -> Vec<IpNet> {
            text.split_whitespace().map(|net| net.parse().expect("a prefix")).collect()
        };
        OuterSources::new(&parse(nets), &parse(vips).into_iter().collect())
    }

    #[test]
    fn each_family_may_have_a_prefix() {
        let of = |nets: &str| sources(nets, "192.0.2.1/32 2001:db8::1/128").unwrap().rows();
        let addr = |text: &str| Addr::from(text.parse::<IpAddr>().unwrap());
        assert_eq!(of(""), [Sources::NONE; 2]);
        let both = of("fd00:7::/64 10.200.0.0/16");
        assert_eq!(both.map(|sources| sources.of(0x1234)), [addr("10.200.18.52"), addr("fd00:7::1234")]);
        assert_eq!(of("10.200.0.0/16"), [both[0], Sources::NONE]);
        assert_eq!(of("fd00:7::/64"), [Sources::NONE, both[1]]);
        assert!(!of("10.200.0.0/31")[0].are_none() && !of("fd00:7::/127")[1].are_none());
    }

    #[test]
    fn addresses_that_cannot_be_a_source_are_refused_with_the_reason() {
        for (nets, reason) in [
            ("10.200.0.1/32", "is one address"),
            ("fd00:7::1/128", "is one address"),
            ("127.1.0.0/16", "loopback"),
            ("0.0.0.0/0", "addresses of no host"),
            ("64.0.0.0/2", "loopback"),
            ("239.1.0.0/16", "multicast"),
            ("240.0.0.0/8", "reserved"),
            ("::/64", "loopback"),
            ("ff02::/64", "multicast"),
            ("192.0.2.0/24", "--vip 192.0.2.1/32 overlap"),
            ("198.51.100.128/25", "--vip 198.51.100.0/24 overlap"),
            ("10.200.0.0/16 10.201.0.0/16", "both 10.200.0.0/16 and 10.201.0.0/16"),
        ] {
            let refused = sources(nets, "192.0.2.1/32 198.51.100.0/24").unwrap_err().to_string();
            assert!(refused.contains(FLAG) && refused.contains(reason), "{nets}: {refused}");
        }
    }
}
