//! The registration_id, which authenticates a module's calls, and how it is compared.

use std::fmt;

/// A module's secret, which authenticates its calls. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistrationId(String);

impl RegistrationId {
    pub(super) fn new() -> Self {
        let mut bits = [0u8; 16];
        getrandom::fill(&mut bits).expect("the kernel provides random bytes");
        RegistrationId(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    pub fn is(&self, other: &str) -> bool {
        is_same_secret(&self.0, other)
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistrationId(…)")
    }
}

/// Compares in a time that does not depend on the position of the first difference.
pub(super) fn is_same_secret(one: &str, other: &str) -> bool {
    let differences = one.bytes().zip(other.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
    one.len() == other.len() && differences == 0
}
