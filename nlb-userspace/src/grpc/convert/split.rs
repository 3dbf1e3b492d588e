//! The split of a deployment's new flows between versions in the contract's form: two versions, blue and
//! green.

use super::numbers::signed_32;
use nlb_proto::BlueGreenConfig;

use crate::model::Deployment;
use crate::registry::State;

/// `None` if no version is known; a single version is blue. Of more than two versions, the one with the
/// largest share is shown with the one under promotion, or otherwise with the second largest.
pub(crate) fn render(state: &State, deployment: &Deployment) -> Option<BlueGreenConfig> {
    let shares = state.version_shares(deployment);
    let rollout = state.rollouts.of(deployment);
    let promoted = state.promotion_of(deployment).map(|promotion| promotion.version());
    let mut ranked: Vec<(&str, u32)> =
        shares.iter().map(|(version, share)| (version.as_str(), *share)).collect();
    ranked.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let (first, second) = match ranked[..] {
        [] => return None,
        [only] => (only, ("", 0)),
        [first, second, ..] => (first, second),
    };
    let alone = ranked.len() == 1;
    let newcomer = ranked.iter().copied().find(|(version, _)| !alone && Some(*version) == promoted);
    let (blue, green) = match newcomer {
        Some(green) => (if green == first { second } else { first }, green),
        None if alone => (first, second),
        None => (first.min(second), first.max(second)),
    };
    // Versions without configured weights share new flows, but none of them is a canary.
    let canary = match newcomer {
        Some(promoted) => Some(promoted),
        None => (!rollout.version_weights.is_empty() && second.1 > 0).then_some(second),
    };
    let whole: u64 = shares.values().map(|share| u64::from(*share)).sum();
    let percent = canary.map_or(0, |(_, share)| u64::from(share) * 100 / whole.max(1));
    Some(BlueGreenConfig {
        blue_version: blue.0.to_owned(),
        green_version: green.0.to_owned(),
        blue_weight: signed_32(blue.1),
        green_weight: signed_32(green.1),
        active_version: state.active_version(deployment).unwrap_or_default().to_owned(),
        canary_enabled: canary.is_some(),
        canary_percent: percent.try_into().unwrap_or_default(),
        deployment_started: rollout.split_since.map(Into::into),
    })
}
