//! Questions that the data path raises about destinations without a service, and the answers to them.

use std::net::SocketAddr;

use nlb_common::upcall;

use super::destination::L4Destination;

/// A packet that wants to go where no service is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Question {
    pub destination: L4Destination,
    pub client: SocketAddr,
    /// The destination, as the kernel names it.
    pub key: u64,
    /// By the kernel's clock, in nanoseconds.
    pub asked_at: u64,
}

/// What the kernel is told of a destination that has no route: that it is closed, until then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NegativeEntry {
    pub key: u64,
    pub until: u64,
}

/// Questions, or answers, that may wait at a time.
pub const QUEUE: usize = 1024;

impl Question {
    /// Nobody can handle it, or there is no room for its route.
    pub fn refused(&self) -> NegativeEntry {
        NegativeEntry { key: self.key, until: self.asked_at + upcall::NEGATIVE_TTL }
    }

    /// Too much was asked at a time.
    pub fn throttled(&self) -> NegativeEntry {
        NegativeEntry { key: self.key, until: self.asked_at + upcall::PENDING_TTL }
    }
}
