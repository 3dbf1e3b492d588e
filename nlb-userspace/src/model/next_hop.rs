//! The next hop to an address, as the kernel's routes and neighbours have it.

use std::collections::BTreeMap;
use std::net::IpAddr;

use nlb_common::abi;

/// What the kernel's routes and neighbours say of the way to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hop {
    pub hop: abi::NextHop,
    /// Our address on that way.
    pub source: IpAddr,
    /// The largest IP packet, in bytes.
    pub mtu: u16,
    /// The prefix length of the link that the address is on; the full length if it is behind a gateway.
    pub link_prefix: u8,
    /// It ends on this host, or in a container on it.
    pub local: bool,
}

/// The ways that are known. An address without a MAC yet is absent.
pub type Hops = BTreeMap<IpAddr, Hop>;
