//! Counts the outcomes of a module's health check into a health signal that does not flap.

use super::{Check, HealthSignal};
use crate::model::Health;

/// The state of a health check after its outcomes so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    state: CheckState,
    /// Outcomes in a row that contradict the state.
    contrary: u32,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum CheckState {
    /// No check has succeeded yet.
    #[default]
    Unchecked,
    Up,
    Down,
}

impl Tally {
    /// Counts one outcome. `Some` if the signal changes, or for a module whose check has never succeeded, the
    /// reason.
    pub(crate) fn count(&mut self, outcome: Result<(), String>, check: &Check) -> Option<HealthSignal> {
        match (self.state, outcome) {
            (CheckState::Unchecked, Ok(())) => {
                Some(self.enter(CheckState::Up, "passed its first check".to_owned()))
            }
            (CheckState::Unchecked, Err(why)) => {
                Some(HealthSignal { health: Health::Starting, why: format!("never passed: {why}") })
            }
            (CheckState::Up, Ok(())) | (CheckState::Down, Err(_)) => {
                self.contrary = 0;
                None
            }
            (CheckState::Up, Err(why)) => self.contradicted(check.unhealthy_threshold).then(|| {
                self.enter(
                    CheckState::Down,
                    format!("failures in a row: {}; the last: {why}", check.unhealthy_threshold),
                )
            }),
            (CheckState::Down, Ok(())) => self.contradicted(check.healthy_threshold).then(|| {
                self.enter(CheckState::Up, format!("successes in a row: {}", check.healthy_threshold))
            }),
        }
    }

    fn contradicted(&mut self, threshold: u32) -> bool {
        self.contrary += 1;
        self.contrary >= threshold
    }

    fn enter(&mut self, state: CheckState, why: String) -> HealthSignal {
        *self = Tally { state, contrary: 0 };
        let health = match state {
            CheckState::Unchecked => Health::Starting,
            CheckState::Up => Health::Healthy,
            CheckState::Down => Health::Unhealthy,
        };
        HealthSignal { health, why }
    }
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::registry::fixtures::CHECK;
    use Health::{Healthy, Starting, Unhealthy};

    /// The signals after each of a series of outcomes; `+` succeeds, `-` fails.
    fn signals(outcomes: &str) -> Vec<Option<Health>> {
        let mut tally = Tally::default();
        let outcome = |c| if c == '+' { Ok(()) } else { Err("refused".to_owned()) };
        outcomes.chars().map(|c| tally.count(outcome(c), &CHECK).map(|signal| signal.health)).collect()
    }

    #[test]
    fn the_first_success_makes_a_module_healthy() {
        assert_eq!(signals("+"), [Some(Healthy)]);
        assert_eq!(signals("---+"), [Some(Starting), Some(Starting), Some(Starting), Some(Healthy)]);
    }

    #[test]
    fn failures_in_a_row_make_a_module_unhealthy() {
        assert_eq!(signals("+---")[1..], [None, None, Some(Unhealthy)]);
        assert_eq!(signals("+----")[4], None, "signalled once");
    }

    #[test]
    fn successes_in_a_row_make_it_healthy_again() {
        assert_eq!(signals("+---++")[4..], [None, Some(Healthy)]);
        assert_eq!(signals("+---++---")[6..], [None, None, Some(Unhealthy)], "the count starts over");
    }

    #[test]
    fn a_check_that_flaps_below_its_thresholds_changes_nothing() {
        assert!(signals("+--+--+-+--+--+")[1..].iter().all(Option::is_none));
        assert!(signals("+---+-+-+-+-")[4..].iter().all(Option::is_none));
    }

    #[test]
    fn signals_have_reasons() {
        let mut tally = Tally::default();
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
