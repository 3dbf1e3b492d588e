//! The state of an upcall about a destination: pending, negative, or expired.
//!
//! The state is one word for each destination. The CPU that inserts it, or exchanges it when it is expired,
//! raises the upcall, so there is one upcall however many packets come on however many CPUs. User space
//! writes a negative state if no module can handle the destination. If one can, the destination gets a
//! service, and the state is not read any more.

/// How long an upcall may be pending, in nanoseconds. Its packets are dropped meanwhile; clients retransmit
/// them.
pub const PENDING_TTL: u64 = 5_000_000_000;

/// How long a destination is negative, because no module can handle it, or because none answered in time.
pub const NEGATIVE_TTL: u64 = 30_000_000_000;

/// The flag of a negative state, the last bit. The other bits are the time at which the state ends.
const NEGATIVE: u64 = 1;

/// The state of the upcall, which decides about packets to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Modules are being asked: a packet is dropped.
    Pending,
    /// No module can handle the destination: a packet is treated as one to a closed port.
    Negative,
    /// A packet raises an upcall.
    Expired,
}

/// The state of an upcall that is raised now.
#[inline(always)]
pub const fn pending(now: u64) -> u64 {
    (now + PENDING_TTL) & !NEGATIVE
}

/// The negative state that ends at `until`.
#[inline(always)]
pub const fn negative(until: u64) -> u64 {
    until | NEGATIVE
}

#[inline(always)]
pub const fn state(word: u64, now: u64) -> State {
    let until = word & !NEGATIVE;
    if word & NEGATIVE != 0 {
        if now < until { State::Negative } else { State::Expired }
    } else if now < until {
        State::Pending
    } else if now < until + NEGATIVE_TTL {
        // User space has not answered in time: the destination counts as negative for a while.
        State::Negative
    } else {
        State::Expired
    }
}
