//! Outlier detection for one module: TCP resets above a bound eject it, and it is tried again after a
//! back-off.
//!
//! A module without new flows cannot show that it has recovered. So no ejection lasts: after a back-off,
//! which doubles with each further ejection, the module is half-open and gets half its weight. If enough
//! flows come, they decide; if too few come, the ejection ends.
//!
//! A comparison with the other modules of the group shows whether this module is at fault. Modules with few
//! flows need longer until their rate is known, so an ejection waits a moment for them, and a known rate
//! holds for a while. Once more than half of the group are known to reset their flows, all ejections end.

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use crate::model::settings::OutlierConfig;
use tokio::time::Instant;

/// Fewer new flows than this allow no statement about a rate.
const MIN_SAMPLE: u64 = 20;

/// Older flows and resets do not count.
const WINDOW: Duration = Duration::from_secs(10);

const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);

/// How long modules of the group with too few flows can delay an ejection.
const CONFIRMATION_TIME: Duration = Duration::from_secs(3);

/// How long the known rate of a module holds, if too few new flows have come since.
const MEMORY: Duration = LONGEST_BACK_OFF;

/// New TCP flows, and resets by backends: counters that only grow, unless they restart at 0.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub flows: u64,
    pub resets: u64,
}

#[derive(Clone, Debug)]
pub(crate) struct OutlierDetector {
    phase: Phase,
    last: Counters,
    /// The increments within the window, with their times.
    recent: VecDeque<(Instant, Counters)>,
    /// The flows and resets since the last judgement, however long that is ago.
    sample: Counters,
    judged: Option<Judged>,
    /// Since when the module exceeds the bound without being ejected.
    suspected: Option<Instant>,
    /// Ejections since the last proven recovery.
    ejections: u32,
}

#[derive(Clone, Copy, Debug)]
struct Judged {
    at: Instant,
    resets: bool,
}

/// The state of the other modules of the group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Group {
    /// At least half do not reset their flows.
    Serves,
    /// Unknown: some modules take flows, but too few to judge.
    Undecided,
    /// More than half reset their flows: the cause is the service, or the way in which it closes connections.
    Resets,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The module takes its share.
    Closed,
    /// The module is ejected: it takes no new flows.
    Open { until: Instant },
    /// The module is tried with half its weight.
    HalfOpen { until: Instant },
}

/// A change of the phase.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Change {
    Opened {
        rate: Counters,
        back_off: Duration,
    },
    HalfOpened,
    /// `proven`: enough flows showed it, as opposed to too few flows.
    Closed {
        proven: bool,
    },
    /// The ejection ends, because more than half of the group reset their flows.
    Acquitted,
}

impl OutlierDetector {
    /// What `counters` hold already does not count.
    pub(crate) fn new(counters: Counters) -> Self {
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

    pub(crate) fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Records the counters.
    pub(crate) fn observe(&mut self, counters: Counters, config: &OutlierConfig, now: Instant) {
        self.add(counters, now);
        if self.sample.flows >= MIN_SAMPLE {
            self.judged = Some(Judged { at: now, resets: self.sample.is_beyond(config.max_percent) });
            self.sample = Counters::default();
        }
        self.suspected = match self.phase {
            Phase::Closed if self.fails(config) => self.suspected.or(Some(now)),
            _ => None,
        };
    }

    /// Whether the module resets too many flows, if that is known.
    pub(crate) fn resets(&self, config: &OutlierConfig, now: Instant) -> Option<bool> {
        match self.phase {
            Phase::Open { .. } => Some(true),
            _ if self.seen().flows >= MIN_SAMPLE => Some(self.fails(config)),
            _ => {
                let judged = self.judged.filter(|j| now.saturating_duration_since(j.at) < MEMORY);
                judged.map(|judged| judged.resets)
            }
        }
    }

    pub(crate) fn takes_flows(&self) -> bool {
        self.seen().flows > 0
    }

    /// Decides by what was observed.
    pub(crate) fn conclude(&mut self, group: Group, config: &OutlierConfig, now: Instant) -> Option<Change> {
        let enough = self.seen().flows >= MIN_SAMPLE;
        let fails = self.fails(config);
        let confirmed =
            self.suspected.is_some_and(|since| now.saturating_duration_since(since) >= CONFIRMATION_TIME);
        match (self.phase, group) {
            (Phase::Closed, Group::Resets) => None,
            (Phase::Open { .. } | Phase::HalfOpen { .. }, Group::Resets) => {
                self.ejections = 0;
                self.enter(Phase::Closed);
                Some(Change::Acquitted)
            }
            (Phase::Closed, Group::Undecided) if !confirmed => None,
            (Phase::Closed | Phase::HalfOpen { .. }, _) if fails => Some(self.open(config, now)),
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

    fn fails(&self, config: &OutlierConfig) -> bool {
        let seen = self.seen();
        seen.flows >= MIN_SAMPLE && seen.is_beyond(config.max_percent)
    }

    fn open(&mut self, config: &OutlierConfig, now: Instant) -> Change {
        let rate = self.seen();
        let longest = LONGEST_BACK_OFF.max(config.back_off);
        let factor = 1u32.checked_shl(self.ejections).unwrap_or(u32::MAX);
        let back_off = config.back_off.saturating_mul(factor).min(longest);
        self.ejections += 1;
        self.judged = Some(Judged { at: now, resets: true });
        self.enter(Phase::Open { until: now + back_off });
        Change::Opened { rate, back_off }
    }

    /// Starts the phase with empty samples: what led to it does not count again.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recent.clear();
        self.sample = Counters::default();
        self.suspected = None;
    }

    fn add(&mut self, counters: Counters, now: Instant) {
        // A counter that decreased belongs to a new backend, which started at 0.
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
    pub(crate) fn plus(self, other: Counters) -> Counters {
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
                write!(f, "{resets} TCP resets in {flows} new flows; ejected for {back_off:?}")
            }
            Change::HalfOpened => f.write_str("half-open after an ejection for TCP resets"),
            Change::Closed { proven: true } => f.write_str("new flows are no longer reset"),
            Change::Closed { proven: false } => f.write_str("too few new flows to judge by"),
            Change::Acquitted => {
                f.write_str("most modules of its type reset their flows, so this one is no outlier")
            }
        }
    }
}
