//! A circuit breaker for one module: TCP resets above a bound take its new flows away, and time brings them back.
//!
//! A module that takes no new flows cannot show that it has recovered. So the breaker never stays open: after a back-off,
//! which doubles with every relapse, the module is on trial at half its weight. A trial that brings enough flows decides by
//! them; one that brings too few to tell ends in its favour.

use std::collections::VecDeque;
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Terms {
    /// Resets of new TCP flows, in percent, beyond which a module counts as failing; 0 leaves resets out of account.
    pub max_percent: u32,
    /// How long the first exclusion lasts.
    pub back_off: Duration,
}

impl Default for Terms {
    fn default() -> Self {
        Terms { max_percent: 50, back_off: Duration::from_secs(10) }
    }
}

/// Fewer new flows than this say nothing about a rate.
const LEAST: u64 = 20;

/// What is longer ago does not count.
const WINDOW: Duration = Duration::from_secs(10);

const LONGEST_BACK_OFF: Duration = Duration::from_secs(300);

/// New TCP flows, and resets by backends: counters that only grow, unless they begin anew.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub flows: u64,
    pub resets: u64,
}

#[derive(Clone, Debug)]
pub struct Breaker {
    phase: Phase,
    last: Counters,
    /// What was added when, within the window.
    recent: VecDeque<(Instant, Counters)>,
    /// Exclusions without a proven recovery since.
    relapses: u32,
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
}

impl Breaker {
    /// Whatever was counted so far does not count.
    pub fn new(counters: Counters) -> Self {
        Breaker { phase: Phase::Closed, last: counters, recent: VecDeque::new(), relapses: 0 }
    }

    pub fn is_closed(&self) -> bool {
        self.phase == Phase::Closed
    }

    /// Looks at the counters; `may_open` is false while too many others are excluded.
    pub fn look(
        &mut self,
        counters: Counters,
        may_open: bool,
        terms: &Terms,
        now: Instant,
    ) -> Option<Change> {
        self.add(counters, now);
        let seen = self.recent.iter().fold(Counters::default(), |sum, (_, added)| sum.plus(*added));
        let enough = seen.flows >= LEAST;
        let fails = enough && seen.is_beyond(terms.max_percent);
        match self.phase {
            Phase::Closed if fails && may_open => Some(self.open(seen, terms, now)),
            Phase::Closed => None,
            Phase::Open { until } if now >= until => {
                self.enter(Phase::HalfOpen { until: now + WINDOW });
                Some(Change::HalfOpened)
            }
            Phase::Open { .. } => None,
            Phase::HalfOpen { .. } if fails => Some(self.open(seen, terms, now)),
            Phase::HalfOpen { until } if enough || now >= until => {
                if enough {
                    self.relapses = 0;
                }
                self.enter(Phase::Closed);
                Some(Change::Closed { proven: enough })
            }
            Phase::HalfOpen { .. } => None,
        }
    }

    fn open(&mut self, rate: Counters, terms: &Terms, now: Instant) -> Change {
        let longest = LONGEST_BACK_OFF.max(terms.back_off);
        let factor = 1u32.checked_shl(self.relapses).unwrap_or(u32::MAX);
        let back_off = terms.back_off.saturating_mul(factor).min(longest);
        self.relapses += 1;
        self.enter(Phase::Open { until: now + back_off });
        Change::Opened { rate, back_off }
    }

    /// With a clean sheet: what led here is not held against it again.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.recent.clear();
    }

    fn add(&mut self, counters: Counters, now: Instant) {
        // A counter that went back belongs to a backend that began anew.
        let grown = |now: u64, last: u64| if now < last { now } else { now - last };
        let added = Counters {
            flows: grown(counters.flows, self.last.flows),
            resets: grown(counters.resets, self.last.resets),
        };
        self.last = counters;
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
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms { max_percent: 50, back_off: Duration::from_secs(10) };

    /// A breaker under a clock that starts at 0, and counters that are told what is added.
    struct Rig {
        breaker: Breaker,
        counters: Counters,
        start: Instant,
    }

    impl Rig {
        fn new() -> Rig {
            let counters = Counters { flows: 1000, resets: 1000 };
            Rig { breaker: Breaker::new(counters), counters, start: Instant::now() }
        }

        fn at(&mut self, second: u64, flows: u64, resets: u64) -> Option<Change> {
            self.counters = self.counters.plus(Counters { flows, resets });
            let now = self.start + Duration::from_secs(second);
            self.breaker.look(self.counters, true, &TERMS, now)
        }
    }

    fn opened(flows: u64, resets: u64, seconds: u64) -> Option<Change> {
        let rate = Counters { flows, resets };
        Some(Change::Opened { rate, back_off: Duration::from_secs(seconds) })
    }

    #[test]
    fn too_many_resets_open_it() {
        let mut rig = Rig::new();
        assert_eq!(
            rig.at(1, 20, 10),
            None,
            "the bound itself is allowed, and what was before does not count"
        );
        assert_eq!(rig.at(2, 20, 11), opened(40, 21, 10));
    }

    #[test]
    fn a_few_flows_say_nothing_and_old_ones_are_forgotten() {
        let mut rig = Rig::new();
        assert_eq!(rig.at(1, 19, 19), None);
        assert_eq!(rig.at(11, 1, 1), None, "the 19 are ten seconds ago");
        assert_eq!(rig.at(12, 19, 19), opened(20, 20, 10));
    }

    #[test]
    fn it_is_tried_again_and_closes_when_flows_go_well() {
        let mut rig = Rig::new();
        assert_eq!(rig.at(1, 20, 20), opened(20, 20, 10));
        assert_eq!(rig.at(5, 0, 50), None, "resets of its last flows do not count");
        assert_eq!(rig.at(10, 0, 0), None);
        assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
        assert_eq!(rig.at(12, 19, 0), None);
        assert_eq!(rig.at(13, 1, 0), Some(Change::Closed { proven: true }));
        assert_eq!(rig.at(14, 20, 20), opened(20, 20, 10), "the back-off starts over");
    }

    #[test]
    fn every_relapse_doubles_the_back_off_up_to_a_bound() {
        let mut rig = Rig::new();
        let mut second = 1;
        for back_off in [10, 20, 40, 80, 160, 300, 300] {
            assert_eq!(rig.at(second, 20, 20), opened(20, 20, back_off));
            second += back_off;
            assert_eq!(rig.at(second - 1, 0, 0), None);
            assert_eq!(rig.at(second, 0, 0), Some(Change::HalfOpened));
            second += 1;
        }
    }

    #[test]
    fn a_trial_without_traffic_ends_in_its_favour_but_is_no_proof() {
        let mut rig = Rig::new();
        rig.at(1, 20, 20);
        assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
        assert_eq!(rig.at(20, 5, 5), None);
        assert_eq!(rig.at(21, 0, 0), Some(Change::Closed { proven: false }));
        assert_eq!(rig.at(22, 20, 20), opened(20, 20, 20), "a relapse");
    }

    #[test]
    fn it_does_not_open_while_too_many_others_are_excluded() {
        let mut rig = Rig::new();
        let now = rig.start + Duration::from_secs(1);
        let all_reset = rig.counters.plus(Counters { flows: 20, resets: 20 });
        assert_eq!(rig.breaker.look(all_reset, false, &TERMS, now), None);
        assert!(rig.breaker.look(all_reset, true, &TERMS, now).is_some());
    }

    #[test]
    fn counters_that_begin_anew_count_from_zero() {
        let mut rig = Rig::new();
        rig.counters = Counters::default();
        assert_eq!(rig.at(1, 30, 0), None);
        assert_eq!(rig.at(2, 70, 70), opened(100, 70, 10));
    }
}
