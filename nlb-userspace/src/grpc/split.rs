//! The split of new flows between versions, as the contract shows it: two versions, blue and green.

use nlb_proto::BlueGreenConfig;

use crate::registry::State;

/// `None` while fewer than two versions are known. Of more than two, the two with the greatest shares are shown.
pub fn render(state: &State) -> Option<BlueGreenConfig> {
    let shares = state.version_shares();
    let mut by_share: Vec<(&String, u32)> = shares.iter().map(|(version, share)| (version, *share)).collect();
    by_share.sort_by_key(|(_, share)| std::cmp::Reverse(*share));
    let [first, second, ..] = by_share[..] else { return None };
    let mut shown = [first, second];
    shown.sort();
    let [blue, green] = shown;
    let signed = |share: u32| i32::try_from(share).unwrap_or(i32::MAX);
    let both = first.1 > 0 && second.1 > 0;
    let percent = u64::from(second.1) * 100 / (u64::from(first.1) + u64::from(second.1)).max(1);
    Some(BlueGreenConfig {
        blue_version: blue.0.clone(),
        green_version: green.0.clone(),
        blue_weight: signed(blue.1),
        green_weight: signed(green.1),
        active_version: first.0.clone(),
        canary_enabled: both,
        canary_percent: percent.try_into().unwrap_or_default(),
        deployment_started: state.split_since.map(Into::into),
    })
}
