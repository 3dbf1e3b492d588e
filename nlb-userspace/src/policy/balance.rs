//! How evenly instances are loaded, and the weights that would balance them. Pure.
//!
//! Instances are compared with those that new flows could go to instead: of the same type, and of the same
//! version where versions have weights. The share that an instance should carry follows from its requested
//! weight, not from one that a rebalancing set.

use std::collections::BTreeMap;

use crate::compile::maglev;
use crate::model::{Deployment, MAX_WEIGHT, ModuleType};

/// The load of one instance.
#[derive(Clone, Debug, Default)]
pub struct Load {
    pub instance_id: String,
    pub group: Group,
    /// The requested weight; half of it for a DEGRADED instance, 0 if the instance should take no flows, or
    /// is at its limit and can take none.
    pub capacity: f64,
    pub active_flows: f64,
    pub new_flows_per_second: f64,
    /// Figures of its heartbeats, if it sent any.
    pub vitals: Option<Vitals>,
}

/// The instances among which weights divide new flows: of a type and, where versions have weights, of a
/// version of a deployment.
pub(crate) type Group = Option<(ModuleType, Option<(Deployment, String)>)>;

/// The figures of an instance's heartbeat.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Vitals {
    pub cpu_percent: f64,
    pub memory_mb: f64,
    pub latency_ms: f64,
    pub queue_depth: f64,
}

/// Each instance's load relative to its group: 1 is the group's mean, 2 is twice the mean.
///
/// A score is the mean of up to four ratios: flows per weight, CPU, latency and queue, each over the group's
/// mean. A ratio without meaning for the group (no flows yet, or no figures in heartbeats) is left out;
/// without any ratio the score is 1.
pub(crate) fn scores(loads: &[Load]) -> Vec<f64> {
    let measures: [fn(&Load) -> Option<f64>; 4] = [
        |load| (load.capacity > 0.0).then(|| load.active_flows / load.capacity),
        |load| load.vitals.map(|vitals| vitals.cpu_percent),
        |load| load.vitals.map(|vitals| vitals.latency_ms),
        |load| load.vitals.map(|vitals| vitals.queue_depth),
    ];
    let mut ratios: Vec<Vec<f64>> = vec![Vec::new(); loads.len()];
    for members in groups(loads).values() {
        for measure in measures {
            let found = members.iter().filter_map(|i| Some((*i, measure(&loads[*i])?)));
            let found: Vec<(usize, f64)> = found.collect();
            let mean = found.iter().map(|(_, value)| value).sum::<f64>() / found.len() as f64;
            if mean > 0.0 {
                found.into_iter().for_each(|(i, value)| ratios[i].push(value / mean));
            }
        }
    }
    ratios.iter().map(|r| if r.is_empty() { 1.0 } else { r.iter().sum::<f64>() / r.len() as f64 }).collect()
}

/// How evenly flows are spread relative to weights: 1 if every instance carries its share, 0 if one carries
/// all.
///
/// For n instances with x flows per weight each it is Jain's fairness index, J = (sum x)^2 / (n sum x^2),
/// scaled from 1/n..1 to 0..1 by (n J - 1) / (n - 1). R. Jain, D. Chiu, W. Hawe, "A Quantitative Measure of
/// Fairness and Discrimination for Resource Allocation in Shared Computer Systems", DEC-TR-301, 1984. For
/// several groups it is the mean, weighted by their flows.
pub(crate) fn balance(loads: &[Load]) -> f64 {
    let mut flows = 0.0;
    let mut sum = 0.0;
    for members in groups(loads).values() {
        let members: Vec<&Load> = members.iter().map(|i| &loads[*i]).filter(|l| l.capacity > 0.0).collect();
        let of_group: f64 = members.iter().map(|load| load.active_flows).sum();
        flows += of_group;
        sum += of_group * fairness(members.iter().map(|load| load.active_flows / load.capacity));
    }
    if flows > 0.0 { sum / flows } else { 1.0 }
}

fn fairness(shares: impl Iterator<Item = f64> + Clone) -> f64 {
    let n = shares.clone().count() as f64;
    let sum: f64 = shares.clone().sum();
    let squares: f64 = shares.map(|share| share * share).sum();
    if n < 2.0 || squares == 0.0 {
        return 1.0;
    }
    ((sum * sum / squares - 1.0) / (n - 1.0)).clamp(0.0, 1.0)
}

/// The strategy by which new flows are shared.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Strategy {
    /// To instances with fewer flows than their share, until all have their share.
    #[default]
    LeastConnections,
    /// By the requested weights.
    Weight,
    /// Equally.
    Equal,
    /// Less to instances with a higher score.
    Load,
}

impl Strategy {
    pub(crate) const ALL: [(&'static str, Strategy); 4] = [
        ("least_connections", Strategy::LeastConnections),
        ("weight", Strategy::Weight),
        ("equal", Strategy::Equal),
        ("load", Strategy::Load),
    ];

    /// The weight of each instance that should take flows. Within a group they add up to the sum of the
    /// requested weights, as far as whole numbers allow, so that the shares of other groups stay. No weight
    /// is 0: an instance without new flows could not recover.
    pub(crate) fn weights(self, loads: &[Load], asked: impl Fn(&str) -> u32) -> BTreeMap<String, u32> {
        let scores = scores(loads);
        let mut weights = BTreeMap::new();
        for members in groups(loads).into_values() {
            let members: Vec<usize> = members.into_iter().filter(|i| loads[*i].capacity > 0.0).collect();
            let id = |i: usize| loads[i].instance_id.clone();
            if self == Strategy::Weight {
                weights.extend(members.iter().map(|i| (id(*i), asked(&loads[*i].instance_id))));
                continue;
            }
            let flows: f64 = members.iter().map(|i| loads[*i].active_flows).sum();
            let capacity: f64 = members.iter().map(|i| loads[*i].capacity).sum();
            let wanted = members.iter().map(|i| {
                let Load { instance_id, capacity: own, active_flows, .. } = &loads[*i];
                match self {
                    // The group is balanced once as many new flows have come as there are flows now.
                    Strategy::LeastConnections if flows > 0.0 => {
                        (2.0 * flows * own / capacity - active_flows).max(0.0)
                    }
                    Strategy::LeastConnections | Strategy::Weight => f64::from(asked(instance_id)),
                    Strategy::Equal => 1.0,
                    Strategy::Load => f64::from(asked(instance_id)) / scores[*i].clamp(0.1, 10.0),
                }
            });
            let sum = members.iter().map(|i| asked(&loads[*i].instance_id)).sum();
            let shares = share_out(sum, &wanted.collect::<Vec<_>>());
            weights.extend(members.iter().map(|i| id(*i)).zip(shares));
        }
        weights
    }
}

/// Whole weights in proportion to the wanted ones, at least 1 each.
fn share_out(sum: u32, wanted: &[f64]) -> Vec<u32> {
    let most = wanted.iter().copied().fold(0.0, f64::max);
    // Fractions of the greatest weight, fine enough for any weight.
    let parts: Vec<u64> = wanted.iter().map(|wanted| (wanted / most * 1e9) as u64).collect();
    let shares = maglev::divide(sum, &parts);
    shares.into_iter().map(|share| share.clamp(1, MAX_WEIGHT)).collect()
}

fn groups(loads: &[Load]) -> BTreeMap<&Group, Vec<usize>> {
    let mut groups: BTreeMap<&Group, Vec<usize>> = BTreeMap::new();
    for (i, load) in loads.iter().enumerate() {
        groups.entry(&load.group).or_default().push(i);
    }
    groups
}

#[cfg(test)]
mod tests {
    use super::*;

    fn loads(of: &[(f64, f64)]) -> Vec<Load> {
        let load = |(n, (capacity, active_flows)): (usize, &(f64, f64))| Load {
            instance_id: format!("m{n}"),
            capacity: *capacity,
            active_flows: *active_flows,
            ..Load::default()
        };
        of.iter().enumerate().map(load).collect()
    }

    fn weights(strategy: Strategy, loads: &[Load]) -> Vec<u32> {
        strategy.weights(loads, |_| 100).into_values().collect()
    }

    #[test]
    fn balance_is_one_where_flows_follow_weights_and_zero_where_one_has_all() {
        assert_eq!(balance(&[]), 1.0);
        assert_eq!(balance(&loads(&[(100.0, 0.0), (100.0, 0.0)])), 1.0);
        assert_eq!(balance(&loads(&[(100.0, 50.0), (300.0, 150.0)])), 1.0);
        assert_eq!(balance(&loads(&[(100.0, 90.0), (100.0, 0.0), (100.0, 0.0)])), 0.0);
        assert_eq!(
            balance(&loads(&[(100.0, 90.0), (0.0, 10.0)])),
            1.0,
            "an instance of weight 0 should carry no flows"
        );
        // J = (3 + 1)^2 / (2 (9 + 1)) = 0.8; 2 J - 1 = 0.6.
        let uneven = balance(&loads(&[(100.0, 300.0), (100.0, 100.0)]));
        assert!((uneven - 0.6).abs() < 1e-12, "{uneven}");
    }

    #[test]
    fn groups_are_not_compared_with_each_other() {
        let mut fleet = loads(&[(100.0, 10.0), (100.0, 10.0), (100.0, 1000.0)]);
        fleet[2].group = Some((ModuleType::Dblb, None));
        assert_eq!(balance(&fleet), 1.0);
        assert_eq!(scores(&fleet), [1.0, 1.0, 1.0]);
    }

    #[test]
    fn scores_are_means_of_what_is_known() {
        let mut fleet = loads(&[(100.0, 30.0), (100.0, 10.0)]);
        let near = |fleet: &[Load], expected: [f64; 2]| {
            let scores = scores(fleet);
            assert!(
                scores.iter().zip(expected).all(|(got, wanted)| (got - wanted).abs() < 1e-12),
                "{scores:?}"
            );
        };
        near(&fleet, [1.5, 0.5]);
        for (load, cpu_percent) in fleet.iter_mut().zip([20.0, 60.0]) {
            load.vitals = Some(Vitals { cpu_percent, ..Vitals::default() });
        }
        // 1.5 and 0.5 in flows, 0.5 and 1.5 in CPU.
        near(&fleet, [1.0, 1.0]);
        assert_eq!(scores(&loads(&[(100.0, 0.0)])), [1.0]);
    }

    #[test]
    fn least_connections_makes_up_for_what_some_have_too_few() {
        use Strategy::LeastConnections;
        assert_eq!(weights(LeastConnections, &loads(&[(100.0, 30.0), (100.0, 10.0)])), [50, 150]);
        assert_eq!(weights(LeastConnections, &loads(&[(100.0, 40.0), (100.0, 0.0)])), [1, 200]);
        assert_eq!(weights(LeastConnections, &loads(&[(100.0, 0.0), (100.0, 0.0)])), [100, 100]);
        assert_eq!(
            weights(LeastConnections, &loads(&[(100.0, 9.0), (0.0, 9.0)])),
            [100],
            "an instance of weight 0 gets none"
        );
    }

    #[test]
    fn strategies_other_than_least_connections() {
        let mut fleet = loads(&[(100.0, 30.0), (100.0, 10.0), (200.0, 0.0)]);
        fleet.pop();
        assert_eq!(weights(Strategy::Load, &fleet), [50, 150]);
        let asked = |id: &str| if id == "m0" { 30 } else { 70 };
        assert_eq!(Strategy::Equal.weights(&fleet, asked).into_values().collect::<Vec<_>>(), [50, 50]);
        assert_eq!(Strategy::Weight.weights(&fleet, asked).into_values().collect::<Vec<_>>(), [30, 70]);
    }

    #[test]
    fn weights_stay_within_their_bounds() {
        let fleet = loads(&[(1.0, 1e9), (1e4, 0.0), (1e4, 0.0)]);
        for (_, strategy) in Strategy::ALL {
            let weights = strategy.weights(&fleet, |_| 10_000);
            assert!(
                weights.values().all(|weight| (1..=10_000).contains(weight)),
                "{strategy:?}: {weights:?}"
            );
        }
    }
}
