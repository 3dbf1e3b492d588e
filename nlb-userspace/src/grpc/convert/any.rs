//! Random clients, for route requests that name none: the answers to many requests follow the weights.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

/// A client of this family within `source`, or anywhere if that is `None`.
pub(crate) fn client(source: Option<IpNet>, v6: bool) -> IpAddr {
    let source = source.filter(|net| net.addr().is_ipv6() == v6).unwrap_or(anywhere(v6));
    match source {
        IpNet::V4(net) => {
            let host = u32::from_ne_bytes(random()) & net.hostmask().to_bits();
            Ipv4Addr::from_bits(net.network().to_bits() | host).into()
        }
        IpNet::V6(net) => {
            let host = u128::from_ne_bytes(random()) & net.hostmask().to_bits();
            Ipv6Addr::from_bits(net.network().to_bits() | host).into()
        }
    }
}

/// An ephemeral port, as clients use.
pub(crate) fn port() -> u16 {
    32_768 | u16::from_ne_bytes(random())
}

/// A large part of all unicast addresses.
fn anywhere(v6: bool) -> IpNet {
    let net = match v6 {
        false => IpNet::new(Ipv4Addr::new(128, 0, 0, 0).into(), 2),
        true => IpNet::new(Ipv6Addr::new(0x2000, 0, 0, 0, 0, 0, 0, 0).into(), 3),
    };
    net.expect("a prefix is no longer than its address")
}

fn random<const LENGTH: usize>() -> [u8; LENGTH] {
    let mut bytes = [0; LENGTH];
    getrandom::fill(&mut bytes).expect("the kernel provides random bytes");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_come_from_within_the_source() {
        for source in ["198.51.100.0/24", "198.51.100.7/32", "2001:db8::/64", "0.0.0.0/0"] {
            let net: IpNet = source.parse().unwrap();
            for _ in 0..100 {
                assert!(net.contains(&client(Some(net), net.addr().is_ipv6())), "{source}");
            }
        }
        let other_family = client("198.51.100.0/24".parse().ok(), true);
        assert!(other_family.is_ipv6());
        let clients: std::collections::BTreeSet<IpAddr> = (0..100).map(|_| client(None, false)).collect();
        assert!(clients.len() > 90, "clients differ");
    }
}
