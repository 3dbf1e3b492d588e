//! The next hop to an address, from the kernel's routes and neighbours.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nlb_common::abi;

/// The next hop to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub hop: abi::NextHop,
    /// Our address on that link.
    pub source: IpAddr,
    /// The longest IP packet, in bytes.
    pub mtu: u16,
    /// The prefix length of the link that the address is on; the full length for an address behind a gateway.
    pub link_prefix: u8,
    /// Whether the address is on this host, or in a container on it.
    pub local: bool,
}

/// The known next hops. An address whose MAC address is unknown is absent.
pub type Hops = BTreeMap<IpAddr, Hop>;
