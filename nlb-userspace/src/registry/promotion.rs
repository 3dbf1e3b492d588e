//! The traffic split among versions, as promotions and rollbacks change it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use tracing::{info, warn};

use super::{Commit, Registry, RegistryError, State};
use crate::model::clock::Now;
use crate::model::traffic::Traffic;
use crate::policy::promotion::{Counters, Next, Pace, Promotion, WHOLE};
use crate::registry::Split;

/// Former splits that a rollback can restore.
const REMEMBERED: usize = 16;

/// The outcome of a promotion call.
#[derive(Debug, PartialEq)]
pub struct Promoted {
    pub percent: u32,
    pub revision: u64,
}

/// The active versions before and after a rollback.
#[derive(Debug, PartialEq)]
pub struct RolledBack {
    pub previous: String,
    pub current: String,
    pub revision: u64,
}

impl Registry {
    /// Gives a version a greater share of new flows, and in the end all of them. Meanwhile the same version's
    /// promotion can change its pace; a promotion of another version is refused until it has all new flows.
    pub fn promote(
        &self,
        version: &str,
        pace: Pace,
        traffic: &Traffic,
        commit: Commit,
        now: Now,
    ) -> Result<Promoted, RegistryError> {
        let (percent, revision) = self.change(commit, |state| {
            let config = state.settings.promotion;
            if state.instances_of(version).next().is_none() {
                return Err(RegistryError::UnknownVersion(version.to_owned()));
            }
            let promotion = match state.promotion.take() {
                Some(running) if running.version() != version && running.percent() < WHOLE => {
                    return Err(RegistryError::Promoting {
                        version: running.version().to_owned(),
                        percent: running.percent(),
                    });
                }
                Some(mut running) if running.version() == version => {
                    running.change_pace(pace, &config, now);
                    running
                }
                // A promotion that has all new flows and is only being evaluated can be replaced.
                Some(_) | None => {
                    let counters = state.counters(version, traffic);
                    let shares = state.version_shares();
                    state.remember_split();
                    state.split_since = Some(now.wall);
                    Promotion::begin(version, pace, shares, counters, &config, now)
                }
            };
            let percent = promotion.percent();
            state.version_weights = promotion.weights();
            state.promotion = Some(promotion);
            state.last_promotion = None;
            Ok(percent)
        })?;
        if commit == Commit::Apply {
            info!(version, percent, revision, "version promoted");
        }
        Ok(Promoted { percent, revision })
    }

    /// Restores a former split: the one before the last change, or the last one in which `target` was the
    /// active version. A running promotion ends. A rollback undoes changes and adds none, so a second one
    /// goes further back, and never to the version that the first one left.
    pub fn roll_back(&self, target: &str, commit: Commit) -> Result<RolledBack, RegistryError> {
        let ((previous, current), revision) = self.change(commit, |state| {
            let index = match target {
                "" => state.former_splits.len().checked_sub(1).ok_or(RegistryError::NoFormerSplit)?,
                target if state.instances_of(target).next().is_none() => {
                    return Err(RegistryError::UnknownVersion(target.to_owned()));
                }
                target => {
                    let was_active = |split: &Split| state.active_under(&split.weights) == Some(target);
                    let former = state.former_splits.iter().rposition(was_active);
                    former.ok_or_else(|| RegistryError::NeverActive(target.to_owned()))?
                }
            };
            let former = &state.former_splits[index].weights;
            let current = state.active_under(former).ok_or(RegistryError::EmptySplit)?.to_owned();
            let previous = state.active_version().unwrap_or_default().to_owned();
            state.restore(index);
            Ok((previous, current))
        })?;
        if commit == Commit::Apply {
            info!(previous, current, revision, "rolled back");
        }
        Ok(RolledBack { previous, current, revision })
    }

    /// Starts the next step of a running promotion or rolls it back, by the counters of its version's
    /// instances.
    pub fn follow_promotion(&self, traffic: &Traffic, now: Now) {
        let mut state = self.lock();
        let config = &state.settings.promotion.clone();
        let Some(mut promotion) = state.promotion.clone() else { return };
        let version = promotion.version().to_owned();
        let next = promotion.evaluate(state.counters(&version, traffic), config, now.at);
        let percent = promotion.percent();
        let changed = Arc::make_mut(&mut state);
        match next {
            Next::Wait => {
                changed.promotion = Some(promotion);
                return;
            }
            Next::Step => {
                changed.version_weights = promotion.weights();
                changed.promotion = Some(promotion);
                info!(version, percent, "version promoted");
            }
            Next::Complete => {
                changed.promotion = None;
                changed.last_promotion = Some(format!("{version} has all new flows"));
                info!(version, "promotion complete");
            }
            Next::RollBack(why) => {
                changed.roll_back_promotion(&version, &why.to_string());
                warn!(version, percent, %why, "promotion ended");
            }
        }
        self.publish(&state);
    }
}

impl State {
    /// The version with the greatest share of new flows, the first by name among equals; `None` if no version
    /// has any.
    pub fn active_version(&self) -> Option<&str> {
        self.active_under(&self.version_weights)
    }

    /// Records the split before a change of weights, for rollbacks.
    pub(super) fn remember_split(&mut self) {
        if self.former_splits.len() == REMEMBERED {
            self.former_splits.remove(0);
        }
        self.former_splits.push(Split { weights: self.version_weights.clone(), since: self.split_since });
    }

    /// Restores the former split of this index, and forgets those after it.
    fn restore(&mut self, index: usize) {
        let Some(split) = self.former_splits.drain(index..).next() else { return };
        self.version_weights = split.weights;
        self.split_since = split.since;
        self.promotion = None;
    }

    /// Ends a failed promotion, and restores the split before it unless no instance could serve then.
    fn roll_back_promotion(&mut self, version: &str, why: &str) {
        let former = self.former_splits.last().and_then(|split| self.active_under(&split.weights));
        let outcome = if former.is_some_and(|active| self.serving(active).next().is_some()) {
            self.restore(self.former_splits.len() - 1);
            "rolled back"
        } else {
            self.promotion = None;
            "stopped, since no version of the former split takes new flows"
        };
        self.last_promotion = Some(format!("{version} was {outcome}: {why}"));
    }

    fn active_under(&self, weights: &BTreeMap<String, u32>) -> Option<&str> {
        let shares = self.shares_under(weights);
        // Of equals `max_by_key` returns the last, which is the first by name in reverse order.
        let (active, _) = shares.into_iter().rev().filter(|(_, share)| *share > 0).max_by_key(|(_, s)| *s)?;
        Some(active)
    }

    /// The instances of a version that take new flows.
    fn serving<'a>(&'a self, version: &'a str) -> impl Iterator<Item = &'a str> {
        self.instances_of(version).filter(|instance_id| {
            self.record(instance_id).is_ok_and(|record| record.health().takes_new_flows())
        })
    }

    /// The counters of a version's instances that take new flows, from heartbeats and from the data path.
    fn counters(&self, version: &str, traffic: &Traffic) -> BTreeMap<String, Counters> {
        let serving: BTreeSet<&str> = self.serving(version).collect();
        let mut counters: BTreeMap<String, Counters> = serving
            .iter()
            .map(|instance_id| {
                let report = self.record(instance_id).ok().and_then(|record| record.report.as_ref());
                let counters = report.map_or_else(Counters::default, |report| Counters {
                    requests: report.total_requests,
                    failed_requests: report.failed_requests,
                    ..Counters::default()
                });
                (instance_id.to_string(), counters)
            })
            .collect();
        for (backend, counts) in &traffic.backends {
            if let Some(counters) = counters.get_mut(&backend.instance_id) {
                counters.new_flows += counts.new_flows;
                counters.resets += counts.resets;
            }
        }
        counters
    }
}
