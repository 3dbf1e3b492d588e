//! Which of a pool's offers stand, by what modules say they can handle.

use super::classifier::Candidate;
use crate::model::Ability;

/// Those of the highest priority among the offers that could get new flows. While there are none, all that could handle
/// them, for a pool that fails open.
pub fn ablest<'a>(
    candidates: &[&'a Candidate<'a>],
    has_share: impl Fn(&Candidate) -> bool,
) -> Vec<&'a Candidate<'a>> {
    // Most modules were never asked, or said nothing of note.
    let ability = |candidate: &Candidate| match candidate.module.abilities.is_empty() {
        true => Ability::default(),
        false => candidate.module.ability(&candidate.key()),
    };
    let able: Vec<&Candidate> =
        candidates.iter().copied().filter(|candidate| ability(candidate).can_handle).collect();
    // One that gets nothing must not keep flows from those below it.
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
