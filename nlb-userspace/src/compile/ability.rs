//! Which of a pool's offers stand, by what modules say they can handle.

use super::classifier::Offer;
use crate::model::Ability;

/// Those of the highest priority among the offers that could get new flows. While there are none, all that could handle
/// them, for a pool that fails open.
pub fn ablest<'a>(offers: &[&'a Offer<'a>], has_share: impl Fn(&Offer) -> bool) -> Vec<&'a Offer<'a>> {
    // Most modules were never asked, or said nothing of note.
    let ability = |offer: &Offer| match offer.module.abilities.is_empty() {
        true => Ability::default(),
        false => offer.module.ability(&offer.key()),
    };
    let able: Vec<&Offer> = offers.iter().copied().filter(|offer| ability(offer).can_handle).collect();
    // One that gets nothing must not keep flows from those below it.
    let takes_flows = |offer: &&&Offer| {
        offer.module.health.takes_new_flows() && offer.module.weight > 0 && has_share(offer)
    };
    let highest = able.iter().filter(takes_flows).map(|offer| ability(offer).priority).max();
    match highest {
        Some(highest) => able.into_iter().filter(|offer| ability(offer).priority == highest).collect(),
        None => able,
    }
}
