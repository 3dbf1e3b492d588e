//! Prefixes of both address families, in the form of the maps.

use ipnet::IpNet;
use nlb_common::net::Addr;
use nlb_common::prefix::V4;

/// A prefix in v4-mapped bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Addr128 {
    pub addr: [u8; 16],
    pub bits: u8,
}

impl From<IpNet> for Addr128 {
    fn from(net: IpNet) -> Self {
        match net {
            IpNet::V4(net) => {
                Addr128 { addr: net.network().to_ipv6_mapped().octets(), bits: V4 + net.prefix_len() }
            }
            IpNet::V6(net) => Addr128 { addr: net.network().octets(), bits: net.prefix_len() },
        }
    }
}

impl Addr128 {
    /// Whether it is a prefix of IPv4 addresses.
    pub fn is_v4(&self) -> bool {
        self.bits >= V4 && Addr::v6(self.addr).is_v4()
    }

    /// Whether the prefix contains an address. IPv6 prefixes contain no IPv4 addresses, although those are
    /// v4-mapped.
    pub fn covers(&self, addr: Addr) -> bool {
        self.is_v4() == addr.is_v4() && Addr::v6(self.addr).shares_prefix(addr, self.bits)
    }

    /// The prefix of this length that contains it.
    pub fn cut(&self, bits: u8) -> Addr128 {
        Addr128 { addr: Addr::v6(self.addr).prefix(bits).v6_bytes(), bits }
    }

    /// The last address of the prefix.
    pub fn last(&self) -> [u8; 16] {
        let behind = u128::MAX.checked_shr(self.bits.into()).unwrap_or(0);
        (u128::from_be_bytes(self.addr) | behind).to_be_bytes()
    }
}
