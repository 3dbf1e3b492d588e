//! Weights that a module asks for, and what has become of that.

use std::collections::BTreeMap;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightRequest {
    /// This weight for the instance itself, among those of its version.
    Own(u32),
    /// These weights for versions.
    Split(BTreeMap<String, u32>),
}

/// What has become of a wish.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WeightOutcome {
    /// It is in force, is no news, or was refused for good.
    Done,
    /// It cannot be fulfilled yet, for this reason.
    Waits(String),
}
