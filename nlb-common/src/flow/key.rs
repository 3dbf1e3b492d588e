//! What a flow is looked up by: the addresses and ports of its packets in one direction, as three words, which is how
//! the table compares them.

use crate::net::{Addr, Be16, L4};

/// What a flow is looked up by.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub(super) [u64; 3]);

/// The kinds of keys, which never match each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// Client to VIP; the address is the client's, the ports are client and service, the local id is the VIP's.
    Forward = 1,
    /// Backend to one of our source addresses; the address is the backend's, the ports are the backend's and ours, the
    /// local id is the source address's.
    Reply = 2,
    /// Backend to the client's own address, through us; as `Reply`, but the local id is a hash of the client's address.
    /// The forward entry settles whether it really is that client.
    TransparentReply = 3,
}

impl Key {
    #[inline(always)]
    pub const fn new(
        remote: Addr,
        remote_port: Be16,
        local_port: Be16,
        local: u16,
        l4: L4,
        d: Direction,
    ) -> Self {
        let rest = remote_port.word() as u64
            | (local_port.word() as u64) << 16
            | (local as u64) << 32
            | (l4 as u64) << 48
            | (d as u64) << 56;
        Key([remote.hi, remote.lo, rest])
    }

    #[inline(always)]
    pub const fn remote(&self) -> Addr {
        Addr { hi: self.0[0], lo: self.0[1] }
    }

    #[inline(always)]
    pub const fn remote_port(&self) -> Be16 {
        Be16::from_bytes((self.0[2] as u16).to_ne_bytes())
    }

    #[inline(always)]
    pub const fn local_port(&self) -> Be16 {
        Be16::from_bytes(((self.0[2] >> 16) as u16).to_ne_bytes())
    }

    #[inline(always)]
    pub const fn local(&self) -> u16 {
        (self.0[2] >> 32) as u16
    }

    /// The IANA number of the L4 protocol.
    #[inline(always)]
    pub const fn protocol(&self) -> u8 {
        (self.0[2] >> 48) as u8
    }

    #[inline(always)]
    pub const fn is_forward(&self) -> bool {
        (self.0[2] >> 56) as u8 == Direction::Forward as u8
    }
}
