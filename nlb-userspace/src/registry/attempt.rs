//! The process that a registration comes from, and the order of its calls.
//!
//! A caller that gets no answer in time repeats its call. The first call may still be processed, before the
//! second or after it. The nonce shows that both calls come from one process, which has one registration; the
//! number shows which call is newer.

use std::fmt;

use super::secret::is_same_secret;

/// One call to register, among those of a process.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Drawn once by the process. The answer to a call with this nonce contains the registration_id, so the
    /// nonce is as secret.
    nonce: String,
    /// Grows with every call of the process.
    number: u64,
}

impl Attempt {
    pub fn new(nonce: String, number: u64) -> Self {
        Attempt { nonce, number }
    }

    pub fn is_of_same_process(&self, other: &Attempt) -> bool {
        is_same_secret(&self.nonce, &other.nonce)
    }

    /// Whether this call precedes another of the same process.
    pub fn is_before(&self, other: &Attempt) -> bool {
        self.number < other.number
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempt(…)")
    }
}
