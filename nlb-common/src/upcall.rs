//! How a question about a destination stands: asked of the modules, answered, or due to be asked (again).
//!
//! One word per destination says so. Whoever puts it there, or exchanges it when it is due, is the one who asks; so there is
//! one question however many packets come on however many CPUs. User space writes the word when nobody can handle the
//! destination. If somebody can, the destination gets a service and nothing looks at the word any more.

/// How long a question may be open, in nanoseconds. Meanwhile its packets are dropped, and clients send them again.
pub const OPEN: u64 = 5_000_000_000;

/// How long a destination is left alone that nobody can handle, or that nobody was found for in time.
pub const REST: u64 = 30_000_000_000;

/// The last bit of a word that is an answer. The others are a time: when the question is not open any more, or when the
/// answer ends.
const ANSWERED: u64 = 1;

/// What becomes of a packet to the destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// It has to wait for the answer.
    Open,
    /// It met a closed port.
    Closed,
    /// It may ask.
    Due,
}

/// The word of a question that is asked now.
#[inline(always)]
pub const fn asked(now: u64) -> u64 {
    (now + OPEN) & !ANSWERED
}

/// The word of a destination that nobody handles until then.
#[inline(always)]
pub const fn nobody(until: u64) -> u64 {
    until | ANSWERED
}

#[inline(always)]
pub const fn standing(word: u64, now: u64) -> Standing {
    let until = word & !ANSWERED;
    if word & ANSWERED != 0 {
        if now < until { Standing::Closed } else { Standing::Due }
    } else if now < until {
        Standing::Open
    } else if now < until + REST {
        // User space is slow, or gone.
        Standing::Closed
    } else {
        Standing::Due
    }
}
