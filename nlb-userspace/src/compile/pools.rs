//! The pools of services: who gets new flows, and who gets them while all of those are full.

use std::collections::BTreeMap;
use std::sync::Arc;

use nlb_common::maglev::{FALLBACK, MEMBERS, POOLS};

use super::ability::ability;
use super::classifier::{Candidate, FallbackOrder};
use super::maglev::Member;
use super::shares::{Shares, shares};
use crate::model::{Ability, Backend, Desired, Health};

/// The members of a pool and their shares, on which alone its Maglev table depends. Clones share it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Pool {
    /// Backend id, number of slots, and backend; the id alone identifies a member.
    members: Arc<[(u16, u32, Arc<Backend>)]>,
    /// Whether a member may be full.
    limited: bool,
    /// The pool of new flows while all members are full.
    fallback: Option<Arc<Pool>>,
}

impl Pool {
    /// The pool of the first candidates in the order that take new flows. If there are none, the pool fails
    /// open to the last ones that are unhealthy.
    pub(super) fn new(order: &FallbackOrder, desired: &Desired, id: impl Fn(&Backend) -> u16) -> Self {
        let healthy = |winners| shares(winners, desired, Health::takes_new_flows);
        let unhealthy = |winners| shares(winners, desired, |health| health == Health::Unhealthy);
        let serves = |shares: &Shares| shares.iter().any(|(_, slots)| *slots > 0);
        let mut serving = order.iter().map(healthy).filter(serves).take(POOLS as usize);
        if let Some(pool) = Pool::chain(&mut serving, &id) {
            return pool;
        }
        // Where healthy instances have the weight 0, that is what the operator wants.
        let fails_open = || {
            let without = order.iter().rev().filter(|winners| healthy(winners).is_empty());
            without.map(unhealthy).find(|shares| desired.fail_open && serves(shares))
        };
        // Instances of weight 0 are members, too, and serve nobody.
        let idle = || order.iter().map(healthy).find(|shares| !shares.is_empty());
        Pool::of(fails_open().or_else(idle).unwrap_or_default(), &id)
    }

    /// The pools of these orders at most, whatever the health, the weights and the versions of instances are:
    /// orders with the same backends always have the same pools.
    pub(super) fn most<'a>(
        orders: impl Iterator<Item = &'a FallbackOrder<'a>>,
        id: impl Fn(&Backend) -> u16,
    ) -> usize {
        let of_one = |order: &FallbackOrder| -> Vec<Vec<(u16, Ability)>> {
            let member = |candidate: &&Candidate| (id(&candidate.backend), ability(candidate));
            order.iter().map(|winners| winners.iter().map(member).collect()).collect()
        };
        let chain = |order: &FallbackOrder| {
            let may_be_full = |candidate: &&Candidate| candidate.module.max_connections > 0;
            let full = order.iter().filter(|winners| winners.iter().any(may_be_full)).count();
            (full + 1).min(order.len()).min(POOLS as usize)
        };
        let chains: BTreeMap<_, usize> = orders.map(|order| (of_one(order), chain(order))).collect();
        chains.values().sum()
    }

    /// The pool of the first shares. If its members may be full, those of the others are its fallback.
    fn chain<'a>(order: &mut dyn Iterator<Item = Shares<'a>>, id: &impl Fn(&Backend) -> u16) -> Option<Pool> {
        let mut pool = Pool::of(order.next()?, id);
        if pool.limited {
            pool.fallback = Pool::chain(order, id).map(Arc::new);
        }
        Some(pool)
    }

    fn of(shares: Shares, id: &impl Fn(&Backend) -> u16) -> Pool {
        let limited =
            shares.iter().any(|(candidate, slots)| *slots > 0 && candidate.module.max_connections > 0);
        let members = shares
            .into_iter()
            .map(|(candidate, slots)| (id(&candidate.backend), slots, candidate.backend.clone()))
            .collect();
        Pool { members, limited, fallback: None }
    }

    /// The pool and those that flows fall back to, in this order.
    pub(super) fn with_fallbacks(&self) -> impl Iterator<Item = &Pool> {
        std::iter::successors(Some(self), |pool| pool.fallback())
    }

    pub(super) fn fallback(&self) -> Option<&Pool> {
        self.fallback.as_deref()
    }

    /// The input of the Maglev layout.
    pub(super) fn shape(&self) -> Vec<Member<'_>> {
        let members = self.members.iter();
        members
            .map(|(_, slots, backend)| Member { instance_id: &backend.instance_id, slots: *slots })
            .collect()
    }

    /// The backend id of each slot; all 0 if no backend takes new flows. If members may be full, their list
    /// and the fallback's id follow, as [`nlb_common::maglev`] says.
    pub(super) fn table(&self, layout: &[u16], fallback: u16) -> Arc<[u16]> {
        let ids: Vec<u16> = [0].into_iter().chain(self.members.iter().map(|(id, _, _)| *id)).collect();
        let slots = layout.iter().map(|number| ids[usize::from(*number)]);
        if !self.limited {
            return slots.collect();
        }
        let mut table: Vec<u16> = slots.collect();
        table.resize(FALLBACK as usize, 0);
        let members: Vec<u16> = self.members_in_use().take(MEMBERS as usize).collect();
        table.extend([fallback, members.len() as u16]);
        table.extend(members);
        table.into()
    }

    /// The backends that could get new flows, and their numbers of slots.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Backend, u32)> {
        self.members.iter().map(|(_, slots, backend)| (backend.as_ref(), *slots))
    }

    /// The ids of the backends that get new flows.
    pub(super) fn members_in_use(&self) -> impl Iterator<Item = u16> + '_ {
        self.members.iter().filter(|(_, slots, _)| *slots > 0).map(|(id, _, _)| *id)
    }
}

#[cfg(test)]
mod tests {
    use nlb_common::capacity::UNLIMITED;
    use nlb_common::maglev::{FALLBACK, FIRST_MEMBER, MEMBER_COUNT, SLOTS};

    use crate::compile::{Capacity, MapImage, compile};
    use crate::model::next_hop::Hops;
    use crate::model::settings::TableSizes;
    use crate::model::{Desired, Health};
    use crate::registry::fixtures::{registration, route};

    const SIZES: TableSizes = TableSizes {
        backends: 20,
        services: 20,
        pools: 20,
        addresses: 20,
        rate_limits: 20,
        source_prefixes: 20,
        counted_routes: 20,
    };

    /// A VIP with modules of these priorities and limits, which are named "m0" and so on.
    fn fleet(modules: &[(i32, u32)]) -> Desired {
        let mut desired =
            Desired { vips: ["192.0.2.1".parse().unwrap()].into(), fail_open: true, ..Desired::default() };
        for (n, (priority, limit)) in modules.iter().enumerate() {
            let mut module = registration(&format!("m{n}")).module;
            module.routes.clear();
            let mut web = route(80);
            web.priority = *priority;
            module.routes.insert("web".into(), web.into());
            module.max_connections = *limit;
            desired.modules.insert(format!("m{n}"), module.into());
        }
        desired
    }

    fn image(desired: &Desired, before: &MapImage) -> MapImage {
        compile(desired, &Hops::new(), before).unwrap()
    }

    /// The members that follow the slots, by pool in the order of the fallbacks; `None` for a pool without.
    fn tails(image: &MapImage) -> Vec<Option<Vec<String>>> {
        let name = |id: &u16| image.backend_ids.key(*id).unwrap().instance_id.clone();
        let mut pool = image.rows.services.values().next().unwrap().pool;
        let mut tails = Vec::new();
        while pool != 0 {
            let table = &image.rows.pools[&pool];
            let tail = table.get(FALLBACK as usize);
            tails.push(tail.map(|_| {
                let count = usize::from(table[MEMBER_COUNT as usize]);
                assert_eq!(table.len(), FIRST_MEMBER as usize + count);
                table[FIRST_MEMBER as usize..].iter().map(name).collect()
            }));
            assert!(table[..SLOTS as usize].iter().all(|id| *id != 0));
            pool = tail.copied().unwrap_or(0);
        }
        tails
    }

    fn names(names: &[&str]) -> Option<Vec<String>> {
        Some(names.iter().map(ToString::to_string).collect())
    }

    #[test]
    fn pools_fall_back_as_far_as_instances_may_be_full() {
        let empty = MapImage::empty(SIZES);
        let unlimited = image(&fleet(&[(9, 0), (5, 7)]), &empty);
        assert_eq!(tails(&unlimited), [None], "nobody of the first pool can be full");
        assert_eq!(unlimited.rows.pools.len(), 1);
        let chain = image(&fleet(&[(9, 3), (9, 0), (5, 7), (1, 0), (0, 1)]), &empty);
        assert_eq!(tails(&chain), [names(&["m0", "m1"]), names(&["m2"]), None]);
        // Instances that take no flows are members of no fallback.
        let mut desired = fleet(&[(9, 3), (5, 7), (1, 0)]);
        std::sync::Arc::make_mut(desired.modules.get_mut("m1").unwrap()).health = Health::Unhealthy;
        assert_eq!(tails(&image(&desired, &empty)), [names(&["m0"]), None]);
        assert_eq!(chain.slots().len(), 2, "shares are those of the first pool");
    }

    #[test]
    fn an_instance_keeps_its_count_without_a_limit_and_with_other_addresses() {
        let mut desired = fleet(&[(0, 3)]);
        let first = image(&desired, &MapImage::empty(SIZES));
        let (backend, row) = first.rows.backends.first_key_value().unwrap();
        assert_eq!(first.rows.capacities, [(row.capacity, Capacity { limit: 3, generation: 0 })].into());

        let module = std::sync::Arc::make_mut(desired.modules.get_mut("m0").unwrap());
        module.max_connections = 0;
        module.data.v4 = Some([10, 0, 0, 99].into());
        let moved = image(&desired, &first);
        assert_eq!(moved.rows.capacities[&row.capacity], Capacity { limit: UNLIMITED, generation: 0 });
        let former = moved.rows.backends[backend];
        assert_eq!((former.capacity, former.generation, former.flags), (row.capacity, row.generation, 0));
        assert_eq!(moved.rows.backends.len(), 2);
        assert_eq!(image(&desired, &moved).rows, moved.rows, "nothing changes by itself");

        desired.modules.clear();
        let gone = image(&desired, &moved);
        assert!(gone.rows.capacities.is_empty() && gone.rows.backends.is_empty());
    }
}
