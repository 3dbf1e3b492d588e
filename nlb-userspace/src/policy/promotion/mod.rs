//! Promoting a version: its share of new flows grows in steps while it proves itself, and is taken back if it errs.
//!
//! [`Promotion`] is the state machine, which knows neither the registry nor the data path: it is shown counters and the
//! time, and says what is to be done. [`watch`] is the task that shows them to it.

mod errors;
mod stage;

use std::collections::BTreeMap;
use std::time::SystemTime;

use tokio::time::Instant;

use crate::model::clock::Now;
use crate::model::settings::PromotionConfig;
use errors::Errors;
pub use errors::{Counters, Rate, RollbackReason};
pub use stage::{Stage, WHOLE};

/// How fast a version is promoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pace {
    AtOnce,
    /// This many percent of new flows more with each step; 1 to 100.
    Steps(u32),
}

/// A promotion under way.
#[derive(Clone, Debug)]
pub struct Promotion {
    stage: Stage,
    /// When the next step is due; with all flows, when the version has proved itself.
    due: Instant,
    errors: Errors,
    /// Since the daemon began, no instance of the version has taken new flows yet.
    awaited: bool,
}

/// What is to be done about a promotion.
#[derive(Clone, Debug, PartialEq)]
pub enum Next {
    Wait,
    /// The version's share has grown; [`Promotion::weights`] has the new split.
    Step,
    /// It has all new flows and has proved itself.
    Complete,
    /// It errs: the former split has to come back.
    RollBack(RollbackReason),
}

impl Promotion {
    /// Begins with the first step, from the shares that the versions have. `counters` are those of the version's
    /// instances, which count from here on.
    pub fn begin(
        version: &str,
        pace: Pace,
        mut shares: BTreeMap<String, u32>,
        counters: BTreeMap<String, Counters>,
        terms: &PromotionConfig,
        now: Now,
    ) -> Self {
        let own = shares.remove(version).unwrap_or(0);
        let total = u64::from(own) + shares.values().map(|share| u64::from(*share)).sum::<u64>();
        let before = match total {
            0 => 0,
            // Below the whole, so it fits.
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
        Promotion { stage, due: now.at + terms.step, errors, awaited: false }
    }

    /// Goes on where a daemon that has ended had left it, once the version's instances are there: the stage lasts a whole
    /// step from then on, and what was counted before does not count.
    pub fn resume(stage: Stage, terms: &PromotionConfig, now: Now) -> Self {
        Promotion { stage, due: now.at + terms.step, errors: Errors::resumed(), awaited: true }
    }

    /// What has to be known of it to resume it.
    pub fn stage(&self) -> &Stage {
        &self.stage
    }

    /// Goes on at another pace, from the share that the version has, with the first step now.
    pub fn change_pace(&mut self, pace: Pace, terms: &PromotionConfig, now: Now) {
        self.stage.per_step = match pace {
            Pace::AtOnce => WHOLE,
            Pace::Steps(percent) => percent,
        };
        self.stage.grow();
        self.due = now.at + terms.step;
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

    /// The split as it is to be now, in percent.
    pub fn weights(&self) -> BTreeMap<String, u32> {
        self.stage.weights()
    }

    /// Looks at the version's counters, by instance; only instances that take new flows are listed.
    pub fn evaluate(
        &mut self,
        counters: BTreeMap<String, Counters>,
        terms: &PromotionConfig,
        now: Instant,
    ) -> Next {
        match (counters.is_empty(), self.awaited) {
            (true, true) => {
                self.due = now + terms.step;
                return Next::Wait;
            }
            (true, false) => return Next::RollBack(RollbackReason::Absent),
            (false, _) => self.awaited = false,
        }
        self.errors.add(counters);
        if let Some(failing) = self.errors.beyond(terms.max_error_percent) {
            return Next::RollBack(failing);
        }
        if now < self.due {
            return Next::Wait;
        }
        if self.stage.percent == WHOLE {
            return Next::Complete;
        }
        self.stage.grow();
        self.due = now + terms.step;
        Next::Step
    }
}
