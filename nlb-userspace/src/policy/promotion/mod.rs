//! Promoting a version: its share of new flows grows in steps, and is rolled back if its error rate is too
//! high.
//!
//! [`Promotion`] is the state machine, which depends on neither the registry nor the data path: its arguments
//! are counters and the time, and [`Next`] is its decision. `controllers::promotion_watcher` is the task that
//! drives it.

mod errors;
mod stage;

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::model::clock::Now;
use crate::model::settings::PromotionConfig;
use errors::Errors;
pub(crate) use errors::{Counters, RollbackReason};
pub(crate) use stage::{Stage, WHOLE};

/// How fast a version is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    AtOnce,
    /// The share grows by this many percent of new flows with each step; 1 to 100.
    Steps(u32),
}

/// A running promotion.
#[derive(Clone, Debug)]
pub struct Promotion {
    stage: Stage,
    /// When the next step is due; with all new flows, when the promotion is complete.
    due: Instant,
    errors: Errors,
    /// No instance of the version has taken new flows since the daemon started.
    awaited: bool,
}

/// The decision about a promotion.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Wait,
    /// The version's share has grown; [`Promotion::weights`] has the new split.
    Step,
    /// The version has all new flows, and its last step is over.
    Complete,
    /// The error rate is too high: the former split has to be restored.
    RollBack(RollbackReason),
}

impl Promotion {
    /// Starts with the first step, from the versions' shares. `counters` are those of the version's
    /// instances; only what is added to them counts.
    pub fn begin(
        version: &str,
        pace: Pace,
        mut shares: BTreeMap<String, u32>,
        counters: BTreeMap<String, Counters>,
        config: &PromotionConfig,
        now: Now,
    ) -> Self {
        let own = shares.remove(version).unwrap_or(0);
        let total = u64::from(own) + shares.values().map(|share| u64::from(*share)).sum::<u64>();
        let before = match total {
            0 => 0,
            // At most WHOLE, so it fits.
            _ => (u64::from(own) * u64::from(WHOLE) / total) as u32,
        };
        let per_step = match pace {
            Pace::AtOnce => WHOLE,
            Pace::Steps(percent) => percent,
        };
        let stage = Stage {
            version: version.to_owned(),
            percent: (before + per_step).min(WHOLE),
            per_step,
            started_at: now.wall,
            others: shares,
        };
        let errors = Errors::since(counters);
        Promotion { stage, due: now.at + config.step, errors, awaited: false }
    }

    /// Resumes a promotion of a former daemon, once instances of the version take new flows: the stage then
    /// lasts a whole step, and what was counted earlier does not count.
    pub fn resume(stage: Stage, config: &PromotionConfig, now: Now) -> Self {
        Promotion { stage, due: now.at + config.step, errors: Errors::resumed(), awaited: true }
    }

    /// The state that is persisted to resume the promotion.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Continues at another pace, from the version's share, with the first step now.
    pub fn change_pace(&mut self, pace: Pace, config: &PromotionConfig, now: Now) {
        self.stage.per_step = match pace {
            Pace::AtOnce => WHOLE,
            Pace::Steps(percent) => percent,
        };
        self.stage.grow();
        self.due = now.at + config.step;
    }

    pub fn version(&self) -> &str {
        &self.stage.version
    }

    /// The version's share of new flows.
    pub fn percent(&self) -> u32 {
        self.stage.percent
    }

    pub fn started_at(&self) -> SystemTime {
        self.stage.started_at
    }

    /// The split for now, in percent.
    pub fn weights(&self) -> BTreeMap<String, u32> {
        self.stage.weights()
    }

    /// Evaluates the version's counters, by instance; only instances that take new flows are listed.
    pub fn evaluate(
        &mut self,
        counters: BTreeMap<String, Counters>,
        config: &PromotionConfig,
        now: Instant,
    ) -> Next {
        match (counters.is_empty(), self.awaited) {
            (true, true) => {
                self.due = now + config.step;
                return Next::Wait;
            }
            (true, false) => return Next::RollBack(RollbackReason::Absent),
            (false, _) => self.awaited = false,
        }
        self.errors.add(counters);
        if let Some(failing) = self.errors.beyond(config.max_error_percent) {
            return Next::RollBack(failing);
        }
        if now < self.due {
            return Next::Wait;
        }
        if self.stage.percent == WHOLE {
            return Next::Complete;
        }
        self.stage.grow();
        self.due = now + config.step;
        Next::Step
    }
}
