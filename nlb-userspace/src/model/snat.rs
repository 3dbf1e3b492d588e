//! The source addresses of SNAT that an operator sets. Several have several times the ports.

use std::net::IpAddr;

use nlb_common::abi::{SNAT_SOURCES, SnatSource, SnatSources};

/// At most [`SNAT_SOURCES`] of each family, in the order in which they were given.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnatAddresses(Vec<IpAddr>);

impl SnatAddresses {
    /// The error says which address is wrong, and why.
    pub fn new(addresses: Vec<IpAddr>) -> Result<Self, String> {
        let addresses: Vec<IpAddr> = addresses.iter().map(IpAddr::to_canonical).collect();
        for (place, addr) in addresses.iter().enumerate() {
            let is_special = match addr {
                // RFC 6890: "this network", and the reserved addresses up to the broadcast address.
                IpAddr::V4(addr) => addr.octets()[0] == 0 || addr.octets()[0] >= 240,
                // A link-local address is one of a link only.
                IpAddr::V6(addr) => addr.is_unspecified() || addr.is_unicast_link_local(),
            };
            if is_special || addr.is_multicast() || addr.is_loopback() {
                return Err(format!("{addr} is not the address of one host"));
            }
            if addresses[..place].contains(addr) {
                return Err(format!("{addr} is named twice"));
            }
            let before = addresses[..place].iter().filter(|other| other.is_ipv4() == addr.is_ipv4());
            if before.count() == SNAT_SOURCES {
                return Err(format!("{addr} is beyond the {SNAT_SOURCES} addresses of a family"));
            }
        }
        Ok(SnatAddresses(addresses))
    }

    pub fn iter(&self) -> impl Iterator<Item = IpAddr> {
        self.0.iter().copied()
    }

    /// Those of the same family as `addr`.
    pub fn for_backend(&self, addr: IpAddr) -> impl Iterator<Item = IpAddr> {
        self.iter().filter(move |source| source.is_ipv4() == addr.is_ipv4())
    }

    /// The addresses with their ids, which are the first ones in every image.
    fn with_ids(&self) -> impl Iterator<Item = (u16, IpAddr)> {
        (1..).zip(self.iter())
    }

    /// The constants of the programs: for IPv4, for IPv6.
    pub fn rows(&self) -> [SnatSources; 2] {
        [true, false].map(|v4| {
            let mut sources = SnatSources::NONE;
            let of_family = self.with_ids().filter(|(_, addr)| addr.is_ipv4() == v4);
            for (row, (id, addr)) in sources.addrs.iter_mut().zip(of_family) {
                *row = SnatSource { addr: addr.into(), id, _pad: [0; 3] };
                sources.count += 1;
            }
            sources
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn addresses(given: &[&str]) -> Result<SnatAddresses, String> {
        SnatAddresses::new(given.iter().map(|addr| addr.parse().expect("an address")).collect())
    }

    #[test]
    fn rows_have_the_addresses_of_one_family_each() {
        let [v4, v6] = addresses(&["10.0.0.1", "fd00::1", "10.0.0.2"]).unwrap().rows();
        let ids =
            |sources: SnatSources| sources.addrs[..sources.count as usize].iter().map(|row| row.id).collect();
        assert_eq!((ids(v4), ids(v6)), (vec![1, 3], vec![2]));
        assert_eq!(v4.addrs[1].addr, "10.0.0.2".parse::<IpAddr>().unwrap().into());
    }

    #[test]
    fn addresses_that_backends_cannot_answer_to_are_refused() {
        for wrong in
            ["0.0.0.1", "::", "127.0.0.1", "::1", "224.0.0.1", "ff02::1", "255.255.255.255", "fe80::1"]
        {
            let error = addresses(&["10.0.0.1", wrong]).unwrap_err();
            assert_eq!(error, format!("{wrong} is not the address of one host"));
        }
        assert_eq!(addresses(&["10.0.0.1", "::ffff:10.0.0.1"]).unwrap_err(), "10.0.0.1 is named twice");
        let many: Vec<String> = (1..=17).map(|n| format!("10.0.0.{n}")).collect();
        let mut many: Vec<&str> = many.iter().map(String::as_str).collect();
        assert_eq!(addresses(&many).unwrap_err(), "10.0.0.17 is beyond the 16 addresses of a family");
        many[16] = "fd00::1";
        assert!(addresses(&many).is_ok());
    }
}
