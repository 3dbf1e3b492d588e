//! Polling GetActiveVersion: when each instance is asked for its weight request.
//!
//! A weight request is applied when it is new, and not again with every answer: a module that repeats its
//! request must not undo what an operator set later. The registry keeps each module's last request and
//! compares. [`PollSchedule`] has neither a clock nor I/O; `grpc` makes the calls.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::State;

/// The time from one answer of an instance, or its absence, to the next call.
pub(crate) const POLL_INTERVAL: Duration = Duration::from_secs(30);

/// The poll schedule: each registration is asked at once, and then in regular intervals while it exists.
#[derive(Debug)]
pub(crate) struct PollSchedule {
    every: Duration,
    /// The newest epoch of the registrations that are known.
    last_epoch: u64,
    fresh: VecDeque<Asked>,
    /// The interval is the same for all, so the queue is ordered by time.
    again: VecDeque<(Instant, Asked)>,
}

/// A registration that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Asked {
    pub instance_id: String,
    pub epoch: u64,
}

impl PollSchedule {
    pub(crate) fn new(every: Duration) -> Self {
        PollSchedule { every, last_epoch: 0, fresh: VecDeque::new(), again: VecDeque::new() }
    }

    /// Adds new registrations. Returns whether any has not been asked yet.
    pub(crate) fn follow(&mut self, state: &State) -> bool {
        let mut new: Vec<Asked> = state
            .registered_since(self.last_epoch)
            .map(|record| Asked { instance_id: record.registration.instance_id.clone(), epoch: record.epoch })
            .collect();
        new.sort_by_key(|asked| asked.epoch);
        self.last_epoch = state.last_epoch();
        self.fresh.extend(new);
        !self.fresh.is_empty()
    }

    /// The calls that are due, at most this many. Registrations that ended are removed.
    pub(crate) fn take_due(&mut self, state: &State, now: Instant, at_most: usize) -> Vec<Asked> {
        let mut due = Vec::new();
        while due.len() < at_most {
            let next = match self.fresh.pop_front() {
                Some(asked) => Some(asked),
                None if self.again.front().is_some_and(|(at, _)| *at <= now) => {
                    self.again.pop_front().map(|(_, asked)| asked)
                }
                None => None,
            };
            let Some(asked) = next else { break };
            if asked.is_current(state) {
                due.push(asked);
            }
        }
        due
    }

    /// Records that a call ended, with an answer or without.
    pub(crate) fn record_answer(&mut self, asked: Asked, now: Instant) {
        self.again.push_back((now + self.every, asked));
    }
}

impl Asked {
    pub(crate) fn is_current(&self, state: &State) -> bool {
        state.record(&self.instance_id).is_ok_and(|record| record.epoch == self.epoch)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;
    use crate::registry::Registry;
    use crate::registry::fixtures::{Fleet, registry};

    struct Rig {
        registry: Registry,
        schedule: PollSchedule,
    }

    impl Rig {
        fn with(instances: &[&str]) -> Rig {
            let registry = registry();
            for id in instances {
                registry.add(id);
            }
            Rig { registry, schedule: PollSchedule::new(POLL_INTERVAL) }
        }

        fn ask(&mut self, at_most: usize) -> Vec<Asked> {
            let state = self.registry.snapshot();
            self.schedule.follow(&state);
            self.schedule.take_due(&state, Instant::now(), at_most)
        }

        fn named(&mut self) -> Vec<String> {
            self.ask(usize::MAX).into_iter().map(|asked| asked.instance_id).collect()
        }

        fn record_answer_of(&mut self, asked: &Asked) {
            self.schedule.record_answer(asked.clone(), Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_is_asked_at_once_and_again_after_a_while() {
        let mut rig = Rig::with(&["a"]);
        let asked = rig.ask(9);
        assert_eq!(asked.len(), 1);
        time::advance(2 * POLL_INTERVAL).await;
        assert_eq!(rig.ask(9), [], "one call at a time");
        rig.record_answer_of(&asked[0]);
        time::advance(POLL_INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(rig.ask(9), [], "an instance without an answer is asked after the interval, too");
        time::advance(Duration::from_millis(1)).await;
        assert_eq!(rig.ask(9), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn calls_are_bounded() {
        let mut rig = Rig::with(&["b", "a", "c"]);
        let asked = rig.ask(2);
        assert_eq!(asked.iter().map(|asked| asked.instance_id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        asked.iter().for_each(|asked| rig.record_answer_of(asked));
        assert_eq!(rig.named(), ["c"]);
        time::advance(POLL_INTERVAL).await;
        assert_eq!(rig.ask(1), asked[..1]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_registration_of_an_id_is_asked_in_place_of_the_former() {
        let mut rig = Rig::with(&["a"]);
        let first = rig.ask(9);
        rig.registry.add("a");
        let second = rig.ask(9);
        assert!(second.len() == 1 && second != first, "{second:?}");
        first.iter().chain(&second).for_each(|asked| rig.record_answer_of(asked));
        time::advance(POLL_INTERVAL).await;
        assert_eq!(rig.ask(9), second);
    }

    #[tokio::test(start_paused = true)]
    async fn registrations_that_ended_are_removed() {
        let mut rig = Rig::with(&["a", "b"]);
        let asked = rig.ask(9);
        asked.iter().for_each(|asked| rig.record_answer_of(asked));
        rig.registry.remove("a", asked[0].epoch);
        time::advance(POLL_INTERVAL).await;
        assert_eq!(rig.named(), ["b"]);
        assert!(rig.schedule.again.is_empty());
    }
}
