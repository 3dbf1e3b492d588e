//! How a question about a destination stands: asked of the modules, answered, or due to be asked (again).
//!
//! One word per destination says so. Whoever puts it there, or exchanges it when it is due, is the one who asks; so there is
//! one question however many packets come on however many CPUs. User space writes the word when nobody can handle the
//! destination. If somebody can, the destination gets a service and nothing looks at the word any more.

/// How long a question may be open, in nanoseconds. Meanwhile its packets are dropped, and clients send them again.
pub const PENDING_TTL: u64 = 5_000_000_000;

/// How long a destination is left alone that nobody can handle, or that nobody was found for in time.
pub const NEGATIVE_TTL: u64 = 30_000_000_000;

/// The last bit of a word that is an answer. The others are a time: when the question is not open any more, or when the
/// answer ends.
const NEGATIVE: u64 = 1;

/// What becomes of a packet to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It has to wait for the answer.
    Pending,
    /// It met a closed port.
    Negative,
    /// It may ask.
    Expired,
}

/// The word of a question that is asked now.
#[inline(always)]
pub const fn pending(now: u64) -> u64 {
    (now + PENDING_TTL) & !NEGATIVE
}

/// The word of a destination that nobody handles until then.
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
        // User space is slow, or gone.
        State::Negative
    } else {
        State::Expired
    }
}
