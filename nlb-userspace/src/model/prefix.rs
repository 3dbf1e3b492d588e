//! Prefixes of both address families, in the form that the maps have them.

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

    /// Prefixes of IPv6 do not cover addresses of IPv4, which are held inside them.
    pub fn covers(&self, addr: Addr) -> bool {
        self.is_v4() == addr.is_v4() && Addr::v6(self.addr).shares_prefix(addr, self.bits)
    }

    /// The prefix of this length around it.
    pub fn cut(&self, bits: u8) -> Addr128 {
        Addr128 { addr: Addr::v6(self.addr).prefix(bits).v6_bytes(), bits }
    }

    /// The last address that it covers.
    pub fn last(&self) -> [u8; 16] {
        let behind = u128::MAX.checked_shr(self.bits.into()).unwrap_or(0);
        (u128::from_be_bytes(self.addr) | behind).to_be_bytes()
    }
}
