//! The key of a flow: the addresses and ports of its packets in one direction, in three words, which the
//! table compares.

use crate::net::{Addr, Be16, L4};

/// The key of an entry.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub(super) [u64; 3]);

/// The kinds of keys; keys of different kinds never match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Direction {
    /// From the client to the VIP: the client's address, the ports of client and service, the VIP's id.
    Forward = 1,
    /// From the backend to our source address: the backend's address, the ports of the backend and ours, the
    /// id of the source address.
    Reply = 2,
    /// From the backend to the client's own address, through us: as `Reply`, but with a hash of the client's
    /// address in place of the id. The forward entry shows whether it is that client.
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
