//! How packets get from the NLB to an address, if they do.

use std::collections::BTreeMap;
use std::net::IpAddr;

/// How packets get to an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reach {
    /// By a link that XDP sends to.
    Link,
    Local(Locality),
    Unreachable(Unreachable),
}

/// Where an address is that is reached through the kernel's stack, and why a module there cannot answer
/// clients directly.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Locality {
    #[error(
        "on the NLB's own host, where no reply reaches a client directly: the host would drop it as a packet of its own with a \
         forged source"
    )]
    OwnHost,
    #[error(
        "behind {name}, {what}, where packets go through the kernel's stack: it would send them to the VIP's neighbour \
         rather than the module's"
    )]
    Behind { name: String, what: &'static str },
}

/// Why no packet gets to an address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unreachable {
    #[error("the kernel has no route there (`ip route get`)")]
    NoRoute,
    #[error(
        "the route leads to {link}, a link without MAC addresses (a tunnel or TUN device), which the NLB cannot send to; give \
         an address on an Ethernet link in metadata data_address"
    )]
    WithoutMac { link: String },
    #[error("{neighbour} on {link} does not answer ARP or neighbour discovery")]
    Silent { neighbour: IpAddr, link: String },
}

/// The addresses that no packet gets to, and why.
pub(crate) type UnreachableAddresses = BTreeMap<IpAddr, Unreachable>;
