//! Ids of what the maps index by number, kept for as long as the object exists.
//!
//! A released id is reused only after all others have been used, so that flows with the old id have mostly
//! ended; the generation, which grows with every reuse, shows which flows are older.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};

/// Ids from 1 to `max` for keys of type `K`; 0 means unset everywhere.
#[derive(Clone, Debug, PartialEq)]
pub struct Ids<K: Ord> {
    by_key: BTreeMap<K, u16>,
    by_id: BTreeMap<u16, K>,
    /// How often each id was allocated before.
    generations: BTreeMap<u16, u8>,
    last: u16,
    /// The highest id.
    highest: u16,
    /// The most ids in use at a time.
    max: u16,
}

impl<K: Ord + Clone> Ids<K> {
    pub fn new(max: u16) -> Self {
        Self::up_to(max, max)
    }

    /// With more ids than may be in use at a time, which is `max`.
    pub fn up_to(highest: u16, max: u16) -> Self {
        let (by_key, by_id, generations) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Ids { by_key, by_id, generations, last: 0, highest, max }
    }

    /// Releases the ids of keys that are not wanted any more, and allocates ids for new keys, in their order.
    /// The error holds the number of ids that can be in use.
    pub fn renew(&self, wanted: impl IntoIterator<Item = K>) -> Result<Self, u16> {
        let wanted: BTreeSet<K> = wanted.into_iter().collect();
        let mut ids = self.clone();
        ids.by_key.retain(|key, _| wanted.contains(key));
        ids.by_id.retain(|_, key| wanted.contains(key));
        for key in wanted {
            if !ids.by_key.contains_key(&key) {
                ids.take(key, self)?;
            }
        }
        Ok(ids)
    }

    pub fn get<Q: Ord + ?Sized>(&self, key: &Q) -> Option<u16>
    where
        K: Borrow<Q>,
    {
        self.by_key.get(key).copied()
    }

    pub fn key(&self, id: u16) -> Option<&K> {
        self.by_id.get(&id)
    }

    pub fn generation(&self, id: u16) -> u8 {
        self.generations.get(&id).copied().unwrap_or(0)
    }

    /// The most ids in use at a time.
    pub fn max(&self) -> u16 {
        self.max
    }

    /// All ids, in the order of the keys.
    pub fn iter(&self) -> impl Iterator<Item = (u16, &K)> {
        self.by_key.iter().map(|(key, id)| (*id, key))
    }

    /// Ids that were in use before are chosen last: the maps may still refer to them.
    fn take(&mut self, key: K, before: &Self) -> Result<(), u16> {
        if self.by_id.len() >= self.max as usize {
            return Err(self.max);
        }
        let after_last = (self.last + 1..=self.highest).chain(1..=self.last);
        let mut free = after_last.filter(|id| !self.by_id.contains_key(id));
        let rested = free.clone().find(|id| !before.by_id.contains_key(id));
        let id = rested.or_else(|| free.next()).ok_or(self.max)?;
        self.last = id;
        self.generations.entry(id).and_modify(|g| *g = g.wrapping_add(1)).or_insert(0);
        self.by_key.insert(key.clone(), id);
        self.by_id.insert(id, key);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_keeps_its_id_and_a_released_id_is_reused_last() {
        let ids = Ids::new(3).renew(["a", "b"]).unwrap();
        assert_eq!((ids.get(&"a"), ids.get(&"b")), (Some(1), Some(2)));
        let ids = ids.renew(["b"]).unwrap();
        let ids = ids.renew(["b", "c"]).unwrap();
        assert_eq!(
            (ids.get(&"b"), ids.get(&"c")),
            (Some(2), Some(3)),
            "3 was never used, and 1 was just released"
        );
        assert_eq!(ids.generation(3), 0);
        let ids = ids.renew(["b", "c", "d"]).unwrap();
        assert_eq!((ids.get(&"d"), ids.generation(1)), (Some(1), 1));
        assert_eq!(ids.renew(["b", "c", "d", "e"]), Err(3));
    }
}
