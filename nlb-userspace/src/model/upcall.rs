//! Upcalls of the data path about destinations without a service, and negative entries.

use std::net::SocketAddr;

use nlb_common::upcall;

use super::destination::L4Destination;

/// A packet for a destination without a service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub destination: L4Destination,
    pub client: SocketAddr,
    /// The destination, as the kernel encodes it.
    pub key: u64,
    /// The time of the upcall by the kernel's clock, in nanoseconds.
    pub asked_at: u64,
}

/// A negative entry: the destination has no route until the given time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegativeEntry {
    pub key: u64,
    pub until: u64,
}

/// The most upcalls, or negative entries, that wait at a time.
pub const QUEUE: usize = 1024;

impl Question {
    /// The negative entry for a destination that no module can handle, or for whose route there is no room.
    pub fn refused(&self) -> NegativeEntry {
        NegativeEntry { key: self.key, until: self.asked_at + upcall::NEGATIVE_TTL }
    }

    /// The negative entry for an upcall beyond the bounds of the queue.
    pub fn throttled(&self) -> NegativeEntry {
        NegativeEntry { key: self.key, until: self.asked_at + upcall::PENDING_TTL }
    }
}
