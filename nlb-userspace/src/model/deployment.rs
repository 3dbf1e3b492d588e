//! A deployment: the instances whose versions share new flows with each other, and are promoted and rolled
//! back together.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The name of a deployment: what the metadata `deployment` of its instances says, or otherwise their module
/// type, such as `ALB`.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Deployment(String);

impl Deployment {
    pub fn named(name: impl Into<String>) -> Self {
        Deployment(name.into())
    }

    pub fn name(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Deployment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
