//! Decisions about scaling: which instances form a group, what load it has, and how many instances that
//! needs.

pub(crate) mod load;
pub(crate) mod policy;

use serde::{Deserialize, Serialize};

use crate::model::{Module, ModuleType};

/// The key of a group of instances that scale together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GroupKey {
    pub module_type: ModuleType,
    pub version: String,
}

impl GroupKey {
    pub fn of(module: &Module) -> Self {
        GroupKey { module_type: module.module_type, version: module.version.clone() }
    }

    pub fn has(&self, module: &Module) -> bool {
        module.module_type == self.module_type && module.version == self.version
    }
}
