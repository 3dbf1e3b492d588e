//! Which candidates of a pool serve it, by the CanHandle answers of their modules.

use super::classifier::Candidate;
use crate::model::Ability;

/// The module's answer about the candidate's route.
pub(super) fn ability(candidate: &Candidate) -> Ability {
    // Most modules have no answer that matters.
    match candidate.module.abilities.is_empty() {
        true => Ability::default(),
        false => candidate.module.ability(&candidate.key()),
    }
}

/// The candidates of the highest priority among those that could get new flows. If there are none, all that
/// can handle the route, for a pool that fails open.
pub(super) fn highest_priority<'a>(
    candidates: &[&'a Candidate<'a>],
    has_share: impl Fn(&Candidate) -> bool,
) -> Vec<&'a Candidate<'a>> {
    let able: Vec<&Candidate> =
        candidates.iter().copied().filter(|candidate| ability(candidate).can_handle).collect();
    // A candidate that gets no flows must not keep them from candidates of lower priority.
    let takes_flows = |candidate: &&&Candidate| {
        candidate.module.health.takes_new_flows() && candidate.module.weight > 0 && has_share(candidate)
    };
    let highest = able.iter().filter(takes_flows).map(|candidate| ability(candidate).priority).max();
    match highest {
        Some(highest) => {
            able.into_iter().filter(|candidate| ability(candidate).priority == highest).collect()
        }
        None => able,
    }
}
