//! Where a new flow goes if the instance in its Maglev slot is full: the search of the data path, for
//! questions of operators.

use nlb_common::maglev::{FALLBACK, FIRST_MEMBER, MEMBER_COUNT, POOLS, SLOTS_TRIED, slot};

use super::{FlowTuple, MapImage};
use crate::model::Backend;

impl MapImage {
    /// The backend that the data path would select for a new flow, given which backends have room; `None` if
    /// no backend of its pools has some.
    pub fn choose_with_room(
        &self,
        flow: &FlowTuple,
        has_room: impl Fn(&Backend) -> bool,
    ) -> Option<&Backend> {
        let (first, hash) = self.pool_and_hash(flow)?;
        let roomy = |pool, place| self.backend_at(pool, place).filter(|backend| has_room(backend));
        let entry = |pool, place: u32| self.rows.pools.get(&pool)?.get(place as usize).copied();
        // As the program `nlb_backend_with_room` does.
        let upper = hash >> 32;
        let mut found = roomy(first, slot(hash));
        let mut pool = first;
        for _ in 0..POOLS {
            let random = std::iter::successors(Some(upper), |random| Some(nlb_common::hash::word(*random)));
            let mut slots = random.skip(1).take(SLOTS_TRIED as usize).map(slot);
            found = found.or_else(|| slots.find_map(|slot| roomy(pool, slot)));
            let members = u32::from(entry(pool, MEMBER_COUNT).unwrap_or(0));
            let first_member = upper as u32 & 0xffff;
            let mut places = (0..members).map(|tried| FIRST_MEMBER + (first_member + tried) % members);
            found = found.or_else(|| places.find_map(|place| roomy(pool, place)));
            pool = entry(pool, FALLBACK).unwrap_or(0);
            if found.is_some() || pool == 0 {
                break;
            }
        }
        found
    }
}
