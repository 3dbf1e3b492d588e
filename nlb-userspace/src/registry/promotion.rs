//! The traffic splits among versions, as promotions and rollbacks change them.

use std::collections::BTreeMap;
use std::sync::Arc;

use tracing::{info, warn};

use super::deployments::in_each;
use super::rollouts::{Author, Holder, Rollout};
use super::{Commit, Deployments, Record, Registry, RegistryError, State};
use crate::model::clock::Now;
use crate::model::traffic::Traffic;
use crate::model::{Deployment, VersionWeights};
use crate::policy::promotion::{Counters, Next, Pace, Promotion, WHOLE};
use crate::registry::Split;

/// Former splits that a rollback can restore.
const REMEMBERED: usize = 16;

/// The outcome of a promotion call.
#[derive(Debug, PartialEq)]
pub struct Promoted {
    /// The version's share of new flows in each deployment.
    pub percent: BTreeMap<Deployment, u32>,
    pub revision: u64,
}

/// The outcome of a rollback.
#[derive(Debug, PartialEq)]
pub struct RolledBack {
    pub moved: BTreeMap<Deployment, Moved>,
    pub revision: u64,
}

/// The active versions of a deployment before and after a rollback.
#[derive(Clone, Debug, PartialEq)]
pub struct Moved {
    pub previous: String,
    pub current: String,
}

impl Registry {
    /// Gives a version a greater share of each deployment's new flows, and in the end all of them. Meanwhile
    /// the same version's promotion can change its pace; a promotion of another version of the deployment is
    /// refused until it has all new flows. All deployments must have the version.
    pub fn promote(
        &self,
        deployments: &Deployments,
        version: &str,
        pace: Pace,
        traffic: &Traffic,
        commit: Commit,
        now: Now,
    ) -> Result<Promoted, RegistryError> {
        let (percent, revision) = self.change(commit, |state| {
            in_each(deployments, |deployment| state.promote(deployment, version, pace, traffic, now))
        })?;
        if commit == Commit::Apply {
            for (deployment, percent) in &percent {
                info!(%deployment, version, percent, revision, "version promoted");
            }
        }
        Ok(Promoted { percent, revision })
    }

    /// Restores a former split of each deployment: the one before the last change, or the last one in which
    /// `target` was the active version. A running promotion ends. A rollback undoes changes and adds none, so
    /// a second one goes further back, and never to the version that the first one left.
    pub fn roll_back(
        &self,
        deployments: &Deployments,
        target: &str,
        commit: Commit,
    ) -> Result<RolledBack, RegistryError> {
        let (moved, revision) = self
            .change(commit, |state| in_each(deployments, |deployment| state.roll_back(deployment, target)))?;
        if commit == Commit::Apply {
            for (deployment, Moved { previous, current }) in &moved {
                info!(%deployment, previous, current, revision, "rolled back");
            }
        }
        Ok(RolledBack { moved, revision })
    }

    /// Starts the next step of each running promotion or rolls it back, by the counters of its version's
    /// instances.
    pub fn follow_promotions(&self, traffic: &Traffic, now: Now) {
        let mut state = self.lock();
        let mut changed = false;
        for deployment in state.rollouts.promoting() {
            let holder = deployment.as_ref().map_or(Holder::Others, Holder::One);
            changed |= Arc::make_mut(&mut state).follow_promotion(holder, traffic, now);
        }
        if changed {
            self.publish(&state);
        }
    }
}

impl State {
    fn promote(
        &mut self,
        deployment: &Deployment,
        version: &str,
        pace: Pace,
        traffic: &Traffic,
        now: Now,
    ) -> Result<u32, RegistryError> {
        let config = self.settings.promotion;
        self.check_version(deployment, version)?;
        let holder = Holder::One(deployment);
        let shares = self.version_shares(deployment);
        let counters = self.counters(holder, version, traffic);
        let rollout = self.rollout_mut(holder, Author::Operator);
        let promotion = match rollout.promotion.take() {
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
                rollout.remember_split();
                rollout.split_since = Some(now.wall);
                Promotion::begin(version, pace, shares, counters, &config, now)
            }
        };
        let percent = promotion.percent();
        rollout.version_weights = promotion.weights();
        rollout.promotion = Some(promotion);
        rollout.last_promotion = None;
        Ok(percent)
    }

    fn roll_back(&mut self, deployment: &Deployment, target: &str) -> Result<Moved, RegistryError> {
        let holder = Holder::One(deployment);
        let former_splits = &self.rollouts.of(deployment).former_splits;
        let index = match target {
            "" => former_splits.len().checked_sub(1).ok_or(RegistryError::NoFormerSplit)?,
            target => {
                self.check_version(deployment, target)?;
                let was_active = |split: &Split| self.active_under(&split.weights, holder) == Some(target);
                let former = former_splits.iter().rposition(was_active);
                former.ok_or_else(|| RegistryError::NeverActive(target.to_owned()))?
            }
        };
        let former = &former_splits[index].weights;
        let current = self.active_under(former, holder).ok_or(RegistryError::EmptySplit)?.to_owned();
        let previous = self.active_version(deployment).unwrap_or_default().to_owned();
        self.rollout_mut(holder, Author::Operator).restore(index);
        self.forget_empty_rollout(deployment);
        Ok(Moved { previous, current })
    }

    /// Returns whether the promotion changed other than in its counters.
    fn follow_promotion(&mut self, holder: Holder, traffic: &Traffic, now: Now) -> bool {
        let config = self.settings.promotion;
        let Some(mut promotion) = self.rollouts.held_by(holder).promotion.clone() else { return false };
        let version = promotion.version().to_owned();
        let next = promotion.evaluate(self.counters(holder, &version, traffic), &config, now.at);
        let percent = promotion.percent();
        if let Next::RollBack(why) = next {
            self.roll_back_promotion(holder, &version, &why.to_string());
            warn!(deployment = %holder, version, percent, %why, "promotion ended");
            return true;
        }
        let rollout = self.rollout_mut(holder, Author::Operator);
        match next {
            Next::Wait | Next::RollBack(_) => {
                rollout.promotion = Some(promotion);
                return false;
            }
            Next::Step => {
                rollout.version_weights = promotion.weights();
                rollout.promotion = Some(promotion);
                info!(deployment = %holder, version, percent, "version promoted");
            }
            Next::Complete => {
                rollout.promotion = None;
                rollout.last_promotion = Some(format!("{version} has all new flows"));
                info!(deployment = %holder, version, "promotion complete");
            }
        }
        true
    }

    /// The version with the greatest share of a deployment's new flows, the first by name among equals;
    /// `None` if no version has any.
    pub fn active_version(&self, deployment: &Deployment) -> Option<&str> {
        self.active_under(&self.rollouts.of(deployment).version_weights, Holder::One(deployment))
    }

    /// Ends a failed promotion, and restores the split before it unless no instance could serve then.
    fn roll_back_promotion(&mut self, holder: Holder, version: &str, why: &str) {
        let former = self.rollouts.held_by(holder).former_splits.last();
        let former = former.and_then(|split| self.active_under(&split.weights, holder));
        let can_serve = former.is_some_and(|active| self.serving(holder, active).next().is_some());
        let rollout = self.rollout_mut(holder, Author::Operator);
        let outcome = if can_serve {
            rollout.restore(rollout.former_splits.len() - 1);
            "rolled back"
        } else {
            rollout.promotion = None;
            "stopped, since no version of the former split takes new flows"
        };
        rollout.last_promotion = Some(format!("{version} was {outcome}: {why}"));
    }

    fn active_under(&self, weights: &VersionWeights, holder: Holder) -> Option<&str> {
        greatest(self.shares_under(weights, holder))
    }

    /// The instances of a version that take new flows.
    fn serving<'a>(
        &'a self,
        holder: Holder<'a>,
        version: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Record)> {
        self.members_of(holder, version).filter(|(_, record)| record.health().takes_new_flows())
    }

    /// The counters of a version's instances that take new flows, from heartbeats and from the data path.
    fn counters(&self, holder: Holder, version: &str, traffic: &Traffic) -> BTreeMap<String, Counters> {
        let mut counters: BTreeMap<String, Counters> = self
            .serving(holder, version)
            .map(|(instance_id, record)| {
                let counters = record.report.as_ref().map_or_else(Counters::default, |report| Counters {
                    requests: report.total_requests,
                    failed_requests: report.failed_requests,
                    ..Counters::default()
                });
                (instance_id.to_owned(), counters)
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

impl Rollout {
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
}

/// The version with the greatest share, if any has some.
fn greatest(shares: BTreeMap<&str, u32>) -> Option<&str> {
    // Of equals `max_by_key` returns the last, which is the first by name in reverse order.
    let (active, _) = shares.into_iter().rev().filter(|(_, share)| *share > 0).max_by_key(|(_, s)| *s)?;
    Some(active)
}
