//! Outcomes of a module's health check, counted into an opinion that does not flap.

use super::{Check, HealthSignal};
use crate::model::Health;

/// What an active check has come to so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tally {
    lease_state: LeaseState,
    /// Outcomes in a row that contradict the standing.
    contrary: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum LeaseState {
    /// It has never succeeded.
    Unproven,
    Up,
    Down,
}

impl Tally {
    pub fn new() -> Self {
        Tally { lease_state: LeaseState::Unproven, contrary: 0 }
    }

    /// Takes one outcome in. `Some` if it changes the opinion, or what is known of a module that has never passed.
    pub fn count(&mut self, outcome: Result<(), String>, check: &Check) -> Option<HealthSignal> {
        match (self.lease_state, outcome) {
            (LeaseState::Unproven, Ok(())) => {
                Some(self.enter(LeaseState::Up, "passed its first check".to_owned()))
            }
            (LeaseState::Unproven, Err(why)) => {
                Some(HealthSignal { health: Health::Starting, why: format!("never passed: {why}") })
            }
            (LeaseState::Up, Ok(())) | (LeaseState::Down, Err(_)) => {
                self.contrary = 0;
                None
            }
            (LeaseState::Up, Err(why)) => self.contradicted(check.unhealthy_threshold).then(|| {
                self.enter(
                    LeaseState::Down,
                    format!("failures in a row: {}; the last: {why}", check.unhealthy_threshold),
                )
            }),
            (LeaseState::Down, Ok(())) => self.contradicted(check.healthy_threshold).then(|| {
                self.enter(LeaseState::Up, format!("successes in a row: {}", check.healthy_threshold))
            }),
        }
    }

    fn contradicted(&mut self, threshold: u32) -> bool {
        self.contrary += 1;
        self.contrary >= threshold
    }

    fn enter(&mut self, lease_state: LeaseState, why: String) -> HealthSignal {
        *self = Tally { lease_state, contrary: 0 };
        let health = match lease_state {
            LeaseState::Unproven => Health::Starting,
            LeaseState::Up => Health::Healthy,
            LeaseState::Down => Health::Unhealthy,
        };
        HealthSignal { health, why }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::registry::fixtures::CHECK;
    use Health::{Healthy, Starting, Unhealthy};

    /// What opinions a series of outcomes gives; `+` passes, `-` fails.
    fn signals(outcomes: &str) -> Vec<Option<Health>> {
        let mut tally = Tally::new();
        let outcome = |c| if c == '+' { Ok(()) } else { Err("refused".to_owned()) };
        outcomes.chars().map(|c| tally.count(outcome(c), &CHECK).map(|signal| signal.health)).collect()
    }

    #[test]
    fn one_success_is_the_proof_that_starts_it() {
        assert_eq!(signals("+"), [Some(Healthy)]);
        assert_eq!(signals("---+"), [Some(Starting), Some(Starting), Some(Starting), Some(Healthy)]);
    }

    #[test]
    fn failures_in_a_row_take_it_down() {
        assert_eq!(signals("+---")[1..], [None, None, Some(Unhealthy)]);
        assert_eq!(signals("+----")[4], None, "said once");
    }

    #[test]
    fn successes_in_a_row_bring_it_back() {
        assert_eq!(signals("+---++")[4..], [None, Some(Healthy)]);
        assert_eq!(signals("+---++---")[6..], [None, None, Some(Unhealthy)], "it counts afresh");
    }

    #[test]
    fn a_check_that_flaps_below_its_thresholds_changes_nothing() {
        assert!(signals("+--+--+-+--+--+")[1..].iter().all(Option::is_none));
        assert!(signals("+---+-+-+-+-")[4..].iter().all(Option::is_none));
    }

    #[test]
    fn the_reason_is_told() {
        let mut tally = Tally::new();
        let why = |signal: Option<HealthSignal>| signal.unwrap().why;
        assert_eq!(why(tally.count(Err("refused".into()), &CHECK)), "never passed: refused");
        tally.count(Ok(()), &CHECK);
        for _ in 0..2 {
            assert_eq!(tally.count(Err("slow".into()), &CHECK), None);
        }
        assert_eq!(
            why(tally.count(Err("refused".into()), &CHECK)),
            "failures in a row: 3; the last: refused"
        );
    }
}
