//! The split of new flows between versions, as the contract shows it: two versions, blue and green.

use super::numbers::signed_32;
use nlb_proto::BlueGreenConfig;

use crate::registry::State;

/// `None` while fewer than two versions are known. Of more than two, the one with the greatest share is shown with the one
/// that is being promoted, or else with the second greatest.
pub fn render(state: &State) -> Option<BlueGreenConfig> {
    let shares = state.version_shares();
    let promoted = state.promotion.as_ref().map(|promotion| promotion.version());
    let mut ranked: Vec<(&str, u32)> =
        shares.iter().map(|(version, share)| (version.as_str(), *share)).collect();
    ranked.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let [first, second, ..] = ranked[..] else { return None };
    let newcomer = ranked.iter().copied().find(|(version, _)| Some(*version) == promoted);
    let (blue, green) = match newcomer {
        Some(green) => (if green == first { second } else { first }, green),
        None => (first.min(second), first.max(second)),
    };
    // What is on trial: the version that is being promoted, else the lesser one.
    let canary = if newcomer.is_some() { green.1 } else { second.1 };
    let whole: u64 = shares.values().map(|share| u64::from(*share)).sum();
    let percent = u64::from(canary) * 100 / whole.max(1);
    Some(BlueGreenConfig {
        blue_version: blue.0.to_owned(),
        green_version: green.0.to_owned(),
        blue_weight: signed_32(blue.1),
        green_weight: signed_32(green.1),
        active_version: first.0.to_owned(),
        canary_enabled: newcomer.is_some() || (first.1 > 0 && second.1 > 0),
        canary_percent: percent.try_into().unwrap_or_default(),
        deployment_started: state.split_since.map(Into::into),
    })
}
