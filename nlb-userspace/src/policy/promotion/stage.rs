//! The stage of a promotion: the part of it that is persisted.

use std::collections::BTreeMap;
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::compile::maglev;

/// All new flows, in the unit of a promotion's steps.
pub(crate) const WHOLE: u32 = 100;

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stage {
    pub version: String,
    /// The version's share of new flows.
    pub percent: u32,
    pub per_step: u32,
    pub started_at: SystemTime,
    /// The other versions' shares at the start, by which they divide the rest.
    pub others: BTreeMap<String, u32>,
}

impl Stage {
    pub(super) fn grow(&mut self) {
        self.percent = (self.percent + self.per_step).min(WHOLE);
    }

    /// The split of the stage, in percent.
    pub fn weights(&self) -> BTreeMap<String, u32> {
        let shares: Vec<u64> = self.others.values().map(|share| u64::from(*share)).collect();
        let divided = maglev::divide(WHOLE - self.percent, &shares);
        let others = self.others.keys().cloned().zip(divided);
        others.chain([(self.version.clone(), self.percent)]).collect()
    }

    /// Whether a promotion can have this stage; if not, why.
    pub fn check(&self) -> Result<(), String> {
        if self.percent > WHOLE || !(1..=WHOLE).contains(&self.per_step) {
            return Err(format!(
                "the promotion of {:?} has {} % of new flows and {} % more a step, which have to be up to {WHOLE}",
                self.version, self.percent, self.per_step
            ));
        }
        Ok(())
    }
}
