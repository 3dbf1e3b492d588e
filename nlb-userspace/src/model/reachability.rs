//! Where an address is, seen from the NLB.

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
