//! Maglev tables with weights (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4).
//!
//! Each backend walks the slots in a permutation of its own, derived from its name, and takes the next free one when it
//! is its turn. Where a backend stands therefore depends on its name and on who else wants the slot, not on the order in
//! which backends came, so that tables built on different nodes agree and a change moves few slots.
//!
//! Weights decide how many slots each gets: the table is first divided by largest remainder (so shares are exact to one
//! slot in 65,537), and turns are then dealt so that all reach their number in the same round.

use nlb_common::hash;
use nlb_common::maglev::SLOTS;

use crate::model::Backend;

/// A backend that wants slots.
#[derive(Clone, Copy, Debug)]
pub struct Member<'a> {
    pub backend: &'a Backend,
    /// What the slots hold for it.
    pub id: u16,
    /// Slots that it gets; all members' add up to [`SLOTS`].
    pub slots: u32,
}

/// Divides `slots` by weight, to the last slot: largest remainder first, among equals the first. All weights 0 give all
/// shares 0.
pub fn divide(slots: u32, weights: &[u64]) -> Vec<u32> {
    let total: u64 = weights.iter().sum();
    if total == 0 {
        return vec![0; weights.len()];
    }
    let exact = |weight: u64| slots as u128 * weight as u128;
    let mut shares: Vec<u32> = weights.iter().map(|w| (exact(*w) / total as u128) as u32).collect();
    let mut by_remainder: Vec<usize> = (0..weights.len()).collect();
    by_remainder.sort_by_key(|i| (std::cmp::Reverse(exact(weights[*i]) % total as u128), *i));
    let left = slots - shares.iter().sum::<u32>();
    for i in by_remainder.into_iter().take(left as usize) {
        shares[i] += 1;
    }
    shares
}

/// The table: a backend id for each slot; 0 throughout if no member wants any. The order of `members` does not matter.
pub fn fill(members: &[Member]) -> Box<[u16]> {
    let mut table = vec![0_u16; SLOTS as usize].into_boxed_slice();
    let mut walkers: Vec<Walker> = members.iter().filter(|m| m.slots > 0).map(Walker::new).collect();
    walkers.sort_by_key(|walker| walker.name);
    let Some(most) = walkers.iter().map(|w| w.wanted).max() else { return table };
    // In `most` rounds a walker that wants `n` slots has n turns, spread evenly.
    for _ in 0..most {
        for walker in &mut walkers {
            walker.credit += walker.wanted;
            if walker.credit >= most {
                walker.credit -= most;
                walker.take(&mut table);
            }
        }
    }
    table
}

/// A backend's way through its permutation of the slots.
struct Walker {
    /// Two independent hashes of the backend's name, which is what the order of turns follows.
    name: (u64, u64),
    id: u16,
    next: u32,
    stride: u32,
    wanted: u32,
    credit: u32,
}

impl Walker {
    fn new(member: &Member) -> Self {
        let name = name_hashes(member.backend);
        Walker {
            name,
            id: member.id,
            next: (name.0 % SLOTS as u64) as u32,
            // Any stride but 0 visits every slot, their number being prime.
            stride: (name.1 % (SLOTS as u64 - 1)) as u32 + 1,
            wanted: member.slots,
            credit: 0,
        }
    }

    fn take(&mut self, table: &mut [u16]) {
        loop {
            let slot = &mut table[self.next as usize];
            self.next = (self.next + self.stride) % SLOTS;
            if *slot == 0 {
                *slot = self.id;
                return;
            }
        }
    }
}

/// Hashes of what names a backend everywhere: the same on every node and in every life of this one, and for every route.
fn name_hashes(backend: &Backend) -> (u64, u64) {
    let addr = nlb_common::net::Addr::from(backend.addr);
    let start = hash::addr(addr) ^ backend.port as u64;
    let first = backend.instance_id.bytes().fold(start, |h, byte| hash::word(h ^ byte as u64));
    (hash::word(first), hash::word(first ^ u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ForwardMode, RouteKey, Snat};
    use proptest::prelude::*;

    fn backend(n: usize) -> Backend {
        Backend {
            instance_id: format!("alb-{n:03}"),
            route: Some(RouteKey { id: "web".into(), operators: false }),
            addr: std::net::Ipv4Addr::from(0x0a00_0000 + n as u32).into(),
            port: 8080,
            mode: ForwardMode::Nat,
            snat: Snat::Always,
        }
    }

    fn table(weights: &[(usize, u64)]) -> Box<[u16]> {
        let backends: Vec<Backend> = weights.iter().map(|(n, _)| backend(*n)).collect();
        let slots = divide(SLOTS, &weights.iter().map(|(_, w)| *w).collect::<Vec<_>>());
        let members: Vec<Member> = backends
            .iter()
            .zip(weights)
            .zip(slots)
            .map(|((backend, (n, _)), slots)| Member { backend, id: *n as u16 + 1, slots })
            .collect();
        fill(&members)
    }

    fn counts(table: &[u16]) -> std::collections::BTreeMap<u16, u32> {
        let mut counts = std::collections::BTreeMap::new();
        for id in table {
            *counts.entry(*id).or_default() += 1;
        }
        counts
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn no_holes_and_exact_weights(weights in prop::collection::vec(1_u64..1000, 1..60)) {
            let weights: Vec<(usize, u64)> = weights.into_iter().enumerate().collect();
            let total: u64 = weights.iter().map(|(_, w)| w).sum();
            let counts = counts(&table(&weights));
            prop_assert!(!counts.contains_key(&0), "a hole");
            for (n, weight) in weights {
                let got = *counts.get(&(n as u16 + 1)).unwrap_or(&0) as f64;
                let want = SLOTS as f64 * weight as f64 / total as f64;
                prop_assert!((got - want).abs() <= 1.0, "backend {n}: {got} slots, wanted {want}");
            }
        }

        #[test]
        fn the_order_of_registration_does_not_matter(
            weights in prop::collection::vec(1_u64..100, 2..30).prop_flat_map(|weights| {
                let members: Vec<(usize, u64)> = weights.into_iter().enumerate().collect();
                (Just(members.clone()), Just(members).prop_shuffle())
            })
        ) {
            // `divide` hands the odd slot to the first among equals, so it is given the same order, as `compile` does.
            let (ordered, shuffled) = weights;
            let slots = divide(SLOTS, &ordered.iter().map(|(_, w)| *w).collect::<Vec<_>>());
            let backends: Vec<Backend> = (0..ordered.len()).map(backend).collect();
            let members = |order: &[(usize, u64)]| -> Vec<Member> {
                order.iter().map(|(n, _)| Member { backend: &backends[*n], id: *n as u16 + 1, slots: slots[*n] }).collect()
            };
            prop_assert_eq!(fill(&members(&ordered)), fill(&members(&shuffled)));
        }
    }

    #[test]
    fn removing_one_of_100_moves_under_2_percent_of_the_others() {
        let all: Vec<(usize, u64)> = (0..100).map(|n| (n, 100)).collect();
        let before = table(&all);
        for gone in [0, 17, 50, 99] {
            let after = table(&all.iter().copied().filter(|(n, _)| *n != gone).collect::<Vec<_>>());
            let others = before.iter().filter(|id| **id != gone as u16 + 1).count();
            let moved =
                before.iter().zip(&after).filter(|(b, a)| **b != gone as u16 + 1 && b != a).count() as f64;
            let share = moved / others as f64;
            assert!(
                share < 0.02,
                "without backend {gone}, {:.2} % of the others' slots moved",
                share * 100.0
            );
        }
    }

    #[test]
    fn five_to_ninety_five_is_exact() {
        let counts = counts(&table(&[(0, 5), (1, 95)]));
        assert_eq!(counts[&1], (SLOTS as f64 * 0.05).round() as u32);
        assert_eq!(counts[&1] + counts[&2], SLOTS);
    }

    #[test]
    fn nobody_wanting_leaves_the_table_empty() {
        assert!(fill(&[]).iter().all(|id| *id == 0));
        assert_eq!(divide(SLOTS, &[0, 0]), [0, 0]);
    }
}
