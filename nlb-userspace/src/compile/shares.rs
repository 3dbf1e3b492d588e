//! The shares of a pool: divided among deployments by the weights of their instances, within a deployment
//! among versions by weight, and within a version among instances.

use std::collections::BTreeMap;

use nlb_common::maglev::SLOTS;

use super::ability;
use super::classifier::Candidate;
use super::maglev;
use crate::model::{DEFAULT_WEIGHT, Deployment, Desired, Health, Module, VersionWeights};

/// Candidates and their numbers of slots.
pub(super) type Shares<'a> = Vec<(&'a Candidate<'a>, u32)>;

/// The shares of those winners whose health is taken.
pub(super) fn shares<'a>(
    winners: &'a Vec<&'a Candidate<'a>>,
    desired: &Desired,
    takes: impl Fn(Health) -> bool,
) -> Shares<'a> {
    let parts = Parts::of(winners, desired);
    let mut usable = ability::highest_priority(winners, |candidate| parts.share(candidate) > 0);
    usable.retain(|candidate| takes(candidate.module.health));
    let slots = parts.divide(&usable);
    usable.into_iter().zip(slots).collect()
}

/// Twice an instance's weight for new flows, so that half of it is a whole number.
fn weight(module: &Module) -> u64 {
    match module.health {
        Health::Degraded => module.weight as u64,
        _ => 2 * module.weight as u64,
    }
}

fn weights(candidates: &[&Candidate]) -> Vec<u64> {
    candidates.iter().map(|o| weight(o.module)).collect()
}

/// The deployments of a pool, and those whose weights of versions apply to it.
struct Parts<'a> {
    desired: &'a Desired,
    /// By name. All without weights of their own are one part. A part that is not listed is not split.
    split: BTreeMap<Option<&'a Deployment>, bool>,
}

impl<'a> Parts<'a> {
    fn of(winners: &[&'a Candidate<'a>], desired: &'a Desired) -> Self {
        let mut parts = Parts { desired, split: BTreeMap::new() };
        // Most fleets have no weights of versions.
        if desired.splits.is_empty() && desired.version_weights.is_empty() {
            return parts;
        }
        for candidate in winners {
            let is_here = version_weight(candidate, parts.weights(candidate)) > 0;
            *parts.split.entry(parts.name(candidate)).or_default() |= is_here;
        }
        for (name, is_here) in &mut parts.split {
            let weights = name.map_or(&desired.version_weights, |name| desired.weights_of(name));
            *is_here = is_split(weights, *is_here);
        }
        parts
    }

    fn name(&self, candidate: &Candidate) -> Option<&'a Deployment> {
        let own = self.desired.splits.get_key_value(&candidate.module.deployment);
        own.map(|(deployment, _)| deployment)
    }

    fn weights(&self, candidate: &Candidate) -> &'a VersionWeights {
        self.desired.weights_of(&candidate.module.deployment)
    }

    fn is_split(&self, candidate: &Candidate) -> bool {
        self.split.get(&self.name(candidate)).copied().unwrap_or_default()
    }

    /// The weight of the candidate's version, if it counts here; otherwise some weight.
    fn share(&self, candidate: &Candidate) -> u32 {
        if self.is_split(candidate) {
            version_weight(candidate, self.weights(candidate))
        } else {
            DEFAULT_WEIGHT
        }
    }

    /// The slots of each candidate. A part counts by the weights of all its instances, whatever the weights
    /// of their versions are: a promotion must not change how much its deployment gets.
    fn divide(&self, usable: &[&Candidate]) -> Vec<u32> {
        let weights = weights(usable);
        let mut parts: BTreeMap<Option<&Deployment>, Vec<usize>> = BTreeMap::new();
        for (i, candidate) in usable.iter().enumerate() {
            parts.entry(self.name(candidate)).or_default().push(i);
        }
        // What a part without a usable version would get goes to the others.
        parts.retain(|_, members| members.iter().any(|i| weights[*i] > 0 && self.share(usable[*i]) > 0));
        let of_parts: Vec<u64> =
            parts.values().map(|members| members.iter().map(|i| weights[*i]).sum()).collect();
        let mut slots = vec![0; usable.len()];
        for (members, share) in parts.values().zip(maglev::divide(SLOTS, &of_parts)) {
            let candidates: Vec<&Candidate> = members.iter().map(|i| usable[*i]).collect();
            let within = match candidates.first().is_some_and(|candidate| self.is_split(candidate)) {
                true => self.among_versions(share, &candidates),
                false => maglev::divide(share, &self::weights(&candidates)),
            };
            for (i, share) in members.iter().zip(within) {
                slots[*i] = share;
            }
        }
        slots
    }

    /// Slots divided among the candidates of one part, by version first.
    fn among_versions(&self, slots: u32, candidates: &[&Candidate]) -> Vec<u32> {
        let weights = weights(candidates);
        let mut versions: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, candidate) in candidates.iter().enumerate() {
            if weights[i] > 0 {
                versions.entry(&candidate.module.version).or_default().push(i);
            }
        }
        let version_weights: Vec<u64> =
            versions.values().map(|members| self.share(candidates[members[0]]).into()).collect();
        let mut divided = vec![0; candidates.len()];
        for (members, share) in versions.values().zip(maglev::divide(slots, &version_weights)) {
            let within: Vec<u64> = members.iter().map(|i| weights[*i]).collect();
            for (i, share) in members.iter().zip(maglev::divide(share, &within)) {
                divided[*i] = share;
            }
        }
        divided
    }
}

fn version_weight(candidate: &Candidate, weights: &VersionWeights) -> u32 {
    weights.get(&candidate.module.version).copied().unwrap_or(DEFAULT_WEIGHT)
}

/// Whether the weights of versions apply to a part of a pool, or to a deployment, given whether it has an
/// instance, healthy or not, of a version that gets new flows. Without one they do not, if they give all new
/// flows to versions that it does not have: a version that is promoted must not take the flows of pools
/// without it.
pub(crate) fn is_split(weights: &VersionWeights, is_here: bool) -> bool {
    let elsewhere = weights.values().any(|weight| *weight > 0);
    !weights.is_empty() && (!elsewhere || is_here)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use proptest::collection::{btree_map, vec};
    use proptest::prelude::*;
    use proptest::sample::select;

    use super::*;
    use crate::compile::{MapImage, compile};
    use crate::model::ModuleType;
    use crate::model::next_hop::Hops;
    use crate::registry::fixtures::{registration, settings};

    fn module(module_type: ModuleType, version: &str, weight: u32) -> Module {
        let module = registration("a").module;
        Module { module_type, deployment: module_type.into(), version: version.to_owned(), weight, ..module }
    }

    /// ALBs of two versions and a DBLB of the first one, all with the same route.
    fn mixed() -> Desired {
        let modules = [
            ("alb-1", module(ModuleType::Alb, "v1", 100)),
            ("alb-2", module(ModuleType::Alb, "v2", 100)),
            ("dblb-1", module(ModuleType::Dblb, "v1", 100)),
        ];
        Desired {
            vips: ["192.0.2.1".parse().unwrap()].into(),
            modules: modules.into_iter().map(|(id, module)| (id.to_owned(), Arc::new(module))).collect(),
            ..Desired::default()
        }
    }

    fn weights(weights: &[(&str, u32)]) -> VersionWeights {
        weights.iter().map(|(version, weight)| (version.to_string(), *weight)).collect()
    }

    fn compiled(desired: &Desired) -> MapImage {
        compile(desired, &Hops::new(), &MapImage::empty(settings().limits)).expect("it fits")
    }

    /// The slots of `mixed`, by instance.
    fn slots(desired: &Desired) -> [u64; 3] {
        let image = compiled(desired);
        let slots = image.slots();
        ["alb-1", "alb-2", "dblb-1"].map(|id| slots.get(id).copied().unwrap_or_default())
    }

    #[test]
    fn a_promotion_moves_flows_within_its_deployment() {
        let mut desired = mixed();
        assert_eq!(slots(&desired), [21_846, 21_846, 21_845], "instance weights alone");
        for (v1, v2, expected) in
            [(100, 0, [43_691, 0, 21_846]), (75, 25, [32_768, 10_923, 21_846]), (0, 100, [0, 43_691, 21_846])]
        {
            desired.splits = [(ModuleType::Alb.into(), weights(&[("v1", v1), ("v2", v2)]))].into();
            assert_eq!(slots(&desired), expected, "{v1} to {v2}");
        }
    }

    #[test]
    fn each_deployment_has_a_split_of_its_own() {
        let mut desired = mixed();
        desired.modules.insert("dblb-2".to_owned(), module(ModuleType::Dblb, "v2", 100).into());
        desired.splits = [
            (ModuleType::Alb.into(), weights(&[("v1", 0), ("v2", 100)])),
            (ModuleType::Dblb.into(), weights(&[("v1", 100), ("v2", 0)])),
        ]
        .into();
        assert_eq!(slots(&desired), [0, 32_769, 32_768]);
    }

    #[test]
    fn a_deployment_without_a_version_that_serves_leaves_its_share_to_the_others() {
        let mut desired = mixed();
        desired.splits = [(ModuleType::Alb.into(), weights(&[("v1", 0), ("v2", 100)]))].into();
        let sick = Module { health: Health::Unhealthy, ..module(ModuleType::Alb, "v2", 100) };
        desired.modules.insert("alb-2".to_owned(), sick.into());
        assert_eq!(slots(&desired), [0, 0, SLOTS.into()]);
        desired.splits = [(ModuleType::Alb.into(), weights(&[("v3", 100), ("v1", 0), ("v2", 0)]))].into();
        assert_eq!(
            slots(&desired),
            [32_768, 0, 32_769],
            "all flows to a version that is elsewhere: no split"
        );
    }

    #[test]
    fn weights_of_an_earlier_release_divide_all_without_their_own_together() {
        let mut desired = mixed();
        desired.version_weights = weights(&[("v1", 75), ("v2", 25)]);
        assert_eq!(slots(&desired), [24_577, 16_384, 24_576], "as that release did");
        desired.splits = [(ModuleType::Alb.into(), weights(&[("v1", 0), ("v2", 100)]))].into();
        assert_eq!(slots(&desired), [0, 43_691, 21_846]);
    }

    fn any_module(types: Vec<ModuleType>) -> impl Strategy<Value = Module> {
        let health = vec![Health::Healthy, Health::Healthy, Health::Degraded, Health::Unhealthy];
        (select(types), "v[123]", select(vec![0, 1, 7, 100, 10_000]), select(health)).prop_map(
            |(module_type, version, weight, health)| Module {
                health,
                ..module(module_type, &version, weight)
            },
        )
    }

    fn any_weights() -> impl Strategy<Value = VersionWeights> {
        btree_map("v[123]", select(vec![0, 1, 5, 95, 10_000]), 0..4)
    }

    fn with(modules: Vec<Module>) -> Desired {
        let named = (0..).map(|n| format!("m{n}")).zip(modules.into_iter().map(Arc::new));
        Desired { modules: named.collect(), fail_open: false, ..mixed() }
    }

    proptest! {
        /// So that every table is what it was before deployments had splits of their own.
        #[test]
        fn the_split_of_the_only_deployment_is_that_of_the_pool(
            modules in vec(any_module(vec![ModuleType::Alb]), 0..6),
            weights in any_weights(),
        ) {
            let desired = with(modules);
            let own = Desired { splits: [(ModuleType::Alb.into(), weights.clone())].into(), ..desired.clone() };
            let pools = Desired { version_weights: weights, ..desired };
            prop_assert_eq!(compiled(&own).rows, compiled(&pools).rows);
        }

        #[test]
        fn deployments_have_the_shares_of_their_instances(
            modules in vec(any_module(vec![ModuleType::Alb, ModuleType::Dblb, ModuleType::Rtmp]), 0..8),
            splits in vec(any_weights(), 3),
        ) {
            let types = [ModuleType::Alb, ModuleType::Dblb, ModuleType::Rtmp];
            let splits = types.map(Deployment::from).into_iter().zip(splits).collect();
            let desired = Desired { splits, ..with(modules) };
            let image = compiled(&desired);
            let mut shares = BTreeMap::<&Deployment, (u64, u64)>::new();
            for (id, module) in &desired.modules {
                let (slots, offered) = shares.entry(&module.deployment).or_default();
                *slots += image.slots().get(id.as_str()).copied().unwrap_or_default();
                *offered += if module.health.takes_new_flows() { weight(module) } else { 0 };
            }
            shares.retain(|_, (slots, _)| *slots > 0);
            let all: u64 = shares.values().map(|(_, offered)| offered).sum();
            for (deployment, (slots, offered)) in &shares {
                let exact = u64::from(SLOTS) * offered / all;
                prop_assert!((exact..=exact + 1).contains(slots), "{deployment}: {slots} of {exact}");
            }
            let sum: u64 = shares.values().map(|(slots, _)| slots).sum();
            prop_assert!(sum == 0 || sum == u64::from(SLOTS), "{sum} slots");
        }
    }
}
