//! Weight requests of modules, and their outcomes.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightRequest {
    /// A weight for the instance itself, among those of its version.
    Own(u32),
    /// Weights for versions.
    Split(BTreeMap<String, u32>),
}

/// The outcome of a weight request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightOutcome {
    /// The request is in force, repeats the last one, or was refused for good.
    Done,
    /// The request cannot be applied yet, for this reason.
    Waits(String),
}
