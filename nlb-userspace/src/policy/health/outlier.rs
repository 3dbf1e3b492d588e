//! A circuit breaker for one module: TCP resets above a bound take its new flows away, and time brings them back.
//!
//! A module that takes no new flows cannot show that it has recovered. So the breaker never stays open: after a back-off,
//! which doubles with every relapse, the module is on trial at half its weight. A trial that brings enough flows decides by
//! them; one that brings too few to tell ends in its favour.
//!
//! Whether it is the module that fails is found by comparing it with the others of its group. Those with few flows take
//! longer to show what they do, so they are given a moment before a breaker opens, and what was found of them holds for a
//! while. Once most of the group are found to reset their flows, breakers that have opened close.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::model::settings::OutlierConfig;
use tokio::time::Instant;

/// Fewer new flows than this say nothing about a rate.
const MIN_SAMPLE: u64 = 20;

/// What is longer ago does not count.
const WINDOW: Duration = Duration::from_secs(10);

const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);

/// How long others of the group with too few flows can put off an exclusion.
const CONFIRMATION_TIME: Duration = Duration::from_secs(3);

/// How long it holds what was found of a module that has had too few new flows since.
const MEMORY: Duration = LONGEST_BACK_OFF;

/// New TCP flows, and resets by backends: counters that only grow, unless they begin anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub flows: u64,
    pub resets: u64,
}

#[derive(Clone, Debug)]
pub struct OutlierDetector {
    phase: Phase,
    last: Counters,
    /// What was added when, within the window.
    recent: VecDeque<(Instant, Counters)>,
    /// What was added since it was last judged, however long that takes.
    sample: Counters,
    judged: Option<Judged>,
    /// Since when it resets too many without being excluded.
    suspected: Option<Instant>,
    /// Exclusions without a proven recovery since.
    ejections: u32,
}

#[derive(Clone, Copy, Debug)]
struct Judged {
    at: Instant,
    resets: bool,
}

/// How the others of a module's group fare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Group {
    /// At least half do not reset their flows.
    Serves,
    /// As far as is known: some take flows, and too few to tell.
    Undecided,
    /// More than half reset their flows: it is the service that fails, or its way of closing connections.
    Resets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Takes its share.
    Closed,
    /// Takes no new flows.
    Open { until: Instant },
    /// On trial.
    HalfOpen { until: Instant },
}

/// What has become of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    Opened {
        rate: Counters,
        back_off: Duration,
    },
    HalfOpened,
    /// `proven`: by flows, not by the lack of them.
    Closed {
        proven: bool,
    },
    /// Closed, because most of its group do no better.
    Acquitted,
}

impl OutlierDetector {
    /// Whatever was counted so far does not count.
    pub fn new(counters: Counters) -> Self {
        OutlierDetector {
            phase: Phase::Closed,
            last: counters,
            recent: VecDeque::new(),
            sample: Counters::default(),
            judged: None,
            suspected: None,
            ejections: 0,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Takes note of the counters.
    pub fn observe(&mut self, counters: Counters, terms: &OutlierConfig, now: Instant) {
        self.add(counters, now);
        if self.sample.flows >= MIN_SAMPLE {
            self.judged = Some(Judged { at: now, resets: self.sample.is_beyond(terms.max_percent) });
            self.sample = Counters::default();
        }
        self.suspected = match self.phase {
            Phase::Closed if self.fails(terms) => self.suspected.or(Some(now)),
            _ => None,
        };
    }

    /// Whether its module resets too many flows, as far as is known.
    pub fn resets(&self, terms: &OutlierConfig, now: Instant) -> Option<bool> {
        match self.phase {
            Phase::Open { .. } => Some(true),
            _ if self.seen().flows >= MIN_SAMPLE => Some(self.fails(terms)),
            _ => {
                let judged = self.judged.filter(|j| now.saturating_duration_since(j.at) < MEMORY);
                judged.map(|judged| judged.resets)
            }
        }
    }

    pub fn takes_flows(&self) -> bool {
        self.seen().flows > 0
    }

    /// Draws the conclusion from what was observed.
    pub fn conclude(&mut self, group: Group, terms: &OutlierConfig, now: Instant) -> Option<Change> {
        let enough = self.seen().flows >= MIN_SAMPLE;
        let fails = self.fails(terms);
        let out_of_patience =
            self.suspected.is_some_and(|since| now.saturating_duration_since(since) >= CONFIRMATION_TIME);
        match (self.phase, group) {
            (Phase::Closed, Group::Resets) => None,
            (Phase::Open { .. } | Phase::HalfOpen { .. }, Group::Resets) => {
                self.ejections = 0;
                self.enter(Phase::Closed);
                Some(Change::Acquitted)
            }
            (Phase::Closed, Group::Undecided) if !out_of_patience => None,
            (Phase::Closed | Phase::HalfOpen { .. }, _) if fails => Some(self.open(terms, now)),
            (Phase::Closed, _) => None,
            (Phase::Open { until }, _) if now >= until => {
                self.enter(Phase::HalfOpen { until: now + WINDOW });
                Some(Change::HalfOpened)
            }
            (Phase::Open { .. }, _) => None,
            (Phase::HalfOpen { until }, _) if enough || now >= until => {
                if enough {
                    self.ejections = 0;
                }
                self.enter(Phase::Closed);
                Some(Change::Closed { proven: enough })
            }
            (Phase::HalfOpen { .. }, _) => None,
        }
    }

    fn seen(&self) -> Counters {
        self.recent.iter().fold(Counters::default(), |sum, (_, added)| sum.plus(*added))
    }

    fn fails(&self, terms: &OutlierConfig) -> bool {
        let seen = self.seen();
        seen.flows >= MIN_SAMPLE && seen.is_beyond(terms.max_percent)
    }

    fn open(&mut self, terms: &OutlierConfig, now: Instant) -> Change {
        let rate = self.seen();
        let longest = LONGEST_BACK_OFF.max(terms.back_off);
        let factor = 1u32.checked_shl(self.ejections).unwrap_or(u32::MAX);
        let back_off = terms.back_off.saturating_mul(factor).min(longest);
        self.ejections += 1;
        self.judged = Some(Judged { at: now, resets: true });
        self.enter(Phase::Open { until: now + back_off });
        Change::Opened { rate, back_off }
    }

    /// With a clean sheet: what led here is not held against it again.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recent.clear();
        self.sample = Counters::default();
        self.suspected = None;
    }

    fn add(&mut self, counters: Counters, now: Instant) {
        // A counter that went back belongs to a backend that began anew.
        let grown = |now: u64, last: u64| if now < last { now } else { now - last };
        let added = Counters {
            flows: grown(counters.flows, self.last.flows),
            resets: grown(counters.resets, self.last.resets),
        };
        self.last = counters;
        self.sample = self.sample.plus(added);
        if added != Counters::default() {
            self.recent.push_back((now, added));
        }
        while self.recent.front().is_some_and(|(at, _)| now.saturating_duration_since(*at) >= WINDOW) {
            self.recent.pop_front();
        }
    }
}

impl Counters {
    pub fn plus(self, other: Counters) -> Counters {
        Counters { flows: self.flows + other.flows, resets: self.resets + other.resets }
    }

    fn is_beyond(self, percent: u32) -> bool {
        u128::from(self.resets) * 100 > u128::from(self.flows) * u128::from(percent)
    }
}

impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::Opened { rate: Counters { flows, resets }, back_off } => {
                write!(f, "{resets} TCP resets in {flows} new flows; tried again after {back_off:?}")
            }
            Change::HalfOpened => f.write_str("on trial after too many TCP resets"),
            Change::Closed { proven: true } => f.write_str("new flows are no longer reset"),
            Change::Closed { proven: false } => f.write_str("too few new flows to tell"),
            Change::Acquitted => {
                f.write_str("most modules of its type reset their flows, so it is not this one")
            }
        }
    }
}
