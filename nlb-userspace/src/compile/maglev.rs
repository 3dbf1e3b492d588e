//! Maglev tables with weights (Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer",
//! NSDI 2016, section 3.4).
//!
//! Each instance visits the slots in a permutation of its own, derived from its name, and takes the next free
//! slot in each of its turns. Which slots an instance has therefore depends on its name and on the other
//! instances, not on the order in which instances were added: tables built on different nodes agree, and a
//! change moves few slots. Nor does it depend on the service: services with the same instances in the same
//! shares have the same layout, which is computed once.
//!
//! Weights decide how many slots each instance gets: the table is first divided by largest remainder (so
//! shares are exact to one slot in 65,537), and turns are then distributed so that all instances reach their
//! number in the same round.

use nlb_common::hash;
use nlb_common::maglev::SLOTS;

/// An instance with a share of the slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Member<'a> {
    pub instance_id: &'a str,
    /// The number of its slots; those of all members add up to [`SLOTS`].
    pub slots: u32,
}

/// Divides `slots` by weight exactly: the largest remainders are rounded up, the first ones among equals. If
/// all weights are 0, so are all shares.
pub(crate) fn divide(slots: u32, weights: &[u64]) -> Vec<u32> {
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

/// The layout: for each slot the number of its member, from 1 in the order of `members`; all 0 if no member
/// has slots. The order does not change which slots an instance has.
pub(crate) fn fill(members: &[Member]) -> Box<[u16]> {
    let mut table = vec![0_u16; SLOTS as usize].into_boxed_slice();
    let numbered = (1..).zip(members).filter(|(_, member)| member.slots > 0);
    let mut walkers: Vec<Walker> = numbered.map(|(number, member)| Walker::new(number, member)).collect();
    walkers.sort_by_key(|walker| walker.name);
    let Some(most) = walkers.iter().map(|w| w.wanted).max() else { return table };
    // In `most` rounds an instance with `n` slots has n turns, evenly distributed.
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

/// The position of an instance in its permutation of the slots.
struct Walker {
    /// Two independent hashes of its name, which also order the turns.
    name: (u64, u64),
    number: u16,
    next: u32,
    stride: u32,
    wanted: u32,
    credit: u32,
}

impl Walker {
    fn new(number: u16, member: &Member) -> Self {
        let name = name_hashes(member.instance_id);
        Walker {
            name,
            number,
            next: (name.0 % SLOTS as u64) as u32,
            // Any stride but 0 visits every slot, because their number is prime.
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
                *slot = self.number;
                return;
            }
        }
    }
}

/// The same hashes on every node, and in every run.
fn name_hashes(instance_id: &str) -> (u64, u64) {
    let first = instance_id.bytes().fold(0, |h, byte| hash::word(h ^ byte as u64));
    (hash::word(first), hash::word(first ^ u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn name(n: usize) -> String {
        format!("alb-{n:03}")
    }

    /// For each slot the name of its instance, as a number from 1.
    fn named(order: &[(usize, u32)]) -> Vec<u16> {
        let names: Vec<String> = order.iter().map(|(n, _)| name(*n)).collect();
        let members = names.iter().zip(order);
        let members: Vec<Member> =
            members.map(|(instance_id, (_, slots))| Member { instance_id, slots: *slots }).collect();
        let name = |number: &u16| match number {
            0 => 0,
            number => order[usize::from(*number) - 1].0 as u16 + 1,
        };
        fill(&members).iter().map(name).collect()
    }

    fn table(weights: &[(usize, u64)]) -> Vec<u16> {
        let slots = divide(SLOTS, &weights.iter().map(|(_, w)| *w).collect::<Vec<_>>());
        named(&weights.iter().map(|(n, _)| *n).zip(slots).collect::<Vec<_>>())
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
            // `divide` gives the odd slot to the first among equals, so the order is that of `compile`.
            let (ordered, shuffled) = weights;
            let slots = divide(SLOTS, &ordered.iter().map(|(_, w)| *w).collect::<Vec<_>>());
            let members = |order: &[(usize, u64)]| -> Vec<(usize, u32)> {
                order.iter().map(|(n, _)| (*n, slots[*n])).collect()
            };
            prop_assert_eq!(named(&members(&ordered)), named(&members(&shuffled)));
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
    fn without_slots_the_table_is_empty() {
        assert!(fill(&[]).iter().all(|id| *id == 0));
        assert_eq!(divide(SLOTS, &[0, 0]), [0, 0]);
    }
}
