//! Which process a registration comes from, and which of its calls is the newest.
//!
//! A caller that gets no answer in time repeats its call, and the first one may be carried out all the same, before the second
//! or after it. By the nonce both are known to be of one process, which has one registration; by the number the newer one counts.

use std::fmt;

use super::secret::is_same_secret;

/// One call to register, of those that a process makes.
#[derive(Clone, PartialEq, Eq)]
pub struct Attempt {
    /// Drawn once by the process. It answers the registration_id, so it is as secret.
    nonce: String,
    /// Grows with every call.
    number: u64,
}

impl Attempt {
    pub fn new(nonce: String, number: u64) -> Self {
        Attempt { nonce, number }
    }

    pub fn is_of_same_process(&self, other: &Attempt) -> bool {
        is_same_secret(&self.nonce, &other.nonce)
    }

    /// Of two calls of one process.
    pub fn is_before(&self, other: &Attempt) -> bool {
        self.number < other.number
    }
}

impl fmt::Debug for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempt(…)")
    }
}
