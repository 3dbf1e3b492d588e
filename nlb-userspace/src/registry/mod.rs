//! The registry: what modules and operators have asked for, and the rules by which that changes.
//!
//! [`Registry`] is the single writer. Each file beside it adds the changes of one subject.

mod ability;
mod admission;
mod attempt;
mod drains;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod kept;
mod learned;
mod overrides;
mod promotion;
mod published;
mod rate_limits;
mod rebalance;
mod record;
mod refusal;
mod report;
mod restore;
mod routing;
mod secret;
mod state;
mod suitability;
#[cfg(test)]
mod tests;
mod upkeep;
mod weights;
mod wishes;
mod writer;

pub use admission::Admission;
pub use attempt::Attempt;
pub use drains::Draining;
pub use kept::{GroupPolicy, Keep, Kept};
pub use learned::{MOST_LEARNED, NotLearned};
pub use promotion::{Promoted, RolledBack};
pub use record::{Claim, Drain, Record, Registration, Steering};
pub use refusal::Refusal;
pub use report::Report;
pub use routing::Owner;
pub use secret::RegistrationId;
pub use state::{Awaited, Learned, Split, State};
pub use upkeep::Named;
pub use writer::{Commit, Registered, Registry};
