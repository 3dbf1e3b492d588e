//! The registry: the state that modules and operators asked for, and the rules for changing it.
//!
//! [`Registry`] is the single writer. Each file beside it adds the changes of one subject.

mod abilities;
mod admission;
mod attempt;
mod deployments;
mod drains;
mod error;
#[cfg(test)]
pub(crate) mod fixtures;
mod health;
mod learned;
mod overrides;
mod persisted;
mod promotion;
mod published;
mod rate_limits;
mod rebalance;
mod record;
mod reload;
mod report;
mod restore;
mod rollouts;
mod routing;
mod secret;
mod state;
mod suitability;
#[cfg(test)]
mod tests;
mod upkeep;
mod weight_requests;
mod weights;
mod writer;

pub use admission::Admission;
pub use attempt::Attempt;
pub use deployments::{ALL, Deployments, Scope};
pub use drains::Draining;
pub use error::RegistryError;
pub use learned::{MAX_LEARNED_ROUTES, NotLearned};
pub use persisted::{GroupPolicy, PersistedRevision, PersistedRollout, PersistedState};
pub use promotion::{Moved, Promoted, RolledBack};
pub use record::{Claim, Drain, InstanceOverrides, Record, Registration};
pub use report::Report;
pub use rollouts::{Rollout, Rollouts, Split};
pub use routing::Owner;
pub use secret::RegistrationId;
pub use state::{AwaitedRegistrations, Learned, State};
pub use upkeep::Named;
pub use writer::{Commit, Registered, Registry};
