//! What modules answer to GetActiveVersion: how they wish new flows to be shared. And when they are asked.
//!
//! A wish counts when it is new, not for as long as it is held: what an operator sets later must not be undone by a module
//! that has not changed its mind. The registry keeps what each module said last and judges that. [`PollSchedule`] knows no clock
//! and no wire; `grpc` asks.

use std::collections::VecDeque;
use std::time::Duration;

use tokio::time::Instant;

use crate::registry::State;

/// Between two questions to one instance, whatever came of the first.
pub const EVERY: Duration = Duration::from_secs(30);

/// Whom to ask when: each registration at once, and again and again while it lasts.
#[derive(Debug)]
pub struct PollSchedule {
    every: Duration,
    /// Up to which registrations are known.
    last_epoch: u64,
    fresh: VecDeque<Asked>,
    /// Each after the same time, so they come due in the order in which they were put here.
    again: VecDeque<(Instant, Asked)>,
}

/// A registration that is asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    pub instance_id: String,
    pub epoch: u64,
}

impl PollSchedule {
    pub fn new(every: Duration) -> Self {
        PollSchedule { every, last_epoch: 0, fresh: VecDeque::new(), again: VecDeque::new() }
    }

    /// Takes note of registrations that have come. Answers whether there were any.
    pub fn follow(&mut self, state: &State) -> bool {
        let mut came: Vec<Asked> = state
            .registered_since(self.last_epoch)
            .map(|record| Asked { instance_id: record.registration.instance_id.clone(), epoch: record.epoch })
            .collect();
        came.sort_by_key(|asked| asked.epoch);
        self.last_epoch = state.last_epoch();
        self.fresh.extend(came);
        !self.fresh.is_empty()
    }

    /// Up to so many that are due; those that have gone or registered again meanwhile are forgotten.
    pub fn take_due(&mut self, state: &State, now: Instant, at_most: usize) -> Vec<Asked> {
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

    /// The question has been answered, or has not.
    pub fn record_answer(&mut self, asked: Asked, now: Instant) {
        self.again.push_back((now + self.every, asked));
    }
}

impl Asked {
    pub fn is_current(&self, state: &State) -> bool {
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
            Rig { registry, schedule: PollSchedule::new(EVERY) }
        }

        fn ask(&mut self, at_most: usize) -> Vec<Asked> {
            let state = self.registry.snapshot();
            self.schedule.follow(&state);
            self.schedule.take_due(&state, Instant::now(), at_most)
        }

        fn named(&mut self) -> Vec<String> {
            self.ask(usize::MAX).into_iter().map(|asked| asked.instance_id).collect()
        }

        fn hear(&mut self, asked: &Asked) {
            self.schedule.record_answer(asked.clone(), Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_registration_is_asked_at_once_and_again_after_a_while() {
        let mut rig = Rig::with(&["a"]);
        let asked = rig.ask(9);
        assert_eq!(asked.len(), 1);
        time::advance(2 * EVERY).await;
        assert_eq!(rig.ask(9), [], "one question at a time");
        rig.hear(&asked[0]);
        time::advance(EVERY - Duration::from_millis(1)).await;
        assert_eq!(rig.ask(9), [], "also who does not answer is left alone so long");
        time::advance(Duration::from_millis(1)).await;
        assert_eq!(rig.ask(9), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_are_asked_than_there_is_room_for() {
        let mut rig = Rig::with(&["b", "a", "c"]);
        let asked = rig.ask(2);
        assert_eq!(asked.iter().map(|asked| asked.instance_id.as_str()).collect::<Vec<_>>(), ["b", "a"]);
        asked.iter().for_each(|asked| rig.hear(asked));
        assert_eq!(rig.named(), ["c"]);
        time::advance(EVERY).await;
        assert_eq!(rig.ask(1), asked[..1]);
    }

    #[tokio::test(start_paused = true)]
    async fn another_registration_of_an_id_is_asked_in_place_of_the_former() {
        let mut rig = Rig::with(&["a"]);
        let first = rig.ask(9);
        rig.registry.add("a");
        let second = rig.ask(9);
        assert!(second.len() == 1 && second != first, "{second:?}");
        first.iter().chain(&second).for_each(|asked| rig.hear(asked));
        time::advance(EVERY).await;
        assert_eq!(rig.ask(9), second);
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_gone_is_forgotten() {
        let mut rig = Rig::with(&["a", "b"]);
        let asked = rig.ask(9);
        asked.iter().for_each(|asked| rig.hear(asked));
        rig.registry.remove("a", asked[0].epoch);
        time::advance(EVERY).await;
        assert_eq!(rig.named(), ["b"]);
        assert!(rig.schedule.again.is_empty());
    }
}
