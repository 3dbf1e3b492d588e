//! The table of source prefixes, on the writer's side: the markers that a prefix needs, the places of
//! entries, and the growth of the table. [`nlb_common::prefix`] describes how packets search it.
//!
//! Packets search the table all the time, so each store has to leave a table in which every client finds the
//! value from before the change or the one from after it. Therefore entries never move: a full primary bucket
//! continues in an overflow bucket, and when no more of those are left, all entries are written into a new
//! table of twice the size, which one store makes current.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry as MapEntry;

use nlb_common::net::Addr;
use nlb_common::prefix::{
    Bucket, CHAIN, Entry, Key, Lengths, NONE, SLAB_BUCKETS, Scope, Search, Table, Value,
};

use super::memory::Shared;
use crate::model::prefix::Addr128;
use crate::reconcile::change::MapError;

/// Where tables lie, and how one becomes current.
pub(crate) trait Tables {
    /// Creates a table's slabs, full of free entries.
    fn make(&mut self, table: Table) -> Result<Vec<Shared<Bucket>>, MapError>;

    /// Makes packets search this table, and returns the memory of the former one.
    fn switch_to(&mut self, to: Table, from: Option<Table>);

    fn set_lengths(&mut self, scope: Scope, lengths: Lengths);
}

/// A prefix of the table, or a marker on the search path of others.
#[derive(Debug)]
struct Node {
    /// The prefix's value; `None` for a mere marker.
    value: Option<u32>,
    /// The longest prefix that covers this one, itself included: its length and its value.
    covered_by: Option<(u8, u32)>,
    /// The number of prefixes whose search path has this marker.
    searches: u32,
}

impl Node {
    fn entry_value(&self) -> Value {
        let value = self.covered_by.map_or(NONE, |(_, value)| value);
        Value { value, longer: self.searches > 0 }
    }
}

type Place = (Scope, Addr128);

pub(crate) struct Prefixes<T> {
    tables: T,
    table: Table,
    slabs: Vec<Shared<Bucket>>,
    /// The largest number of slabs of a table.
    most: u16,
    /// Overflow buckets in use.
    overflow: u32,
    nodes: BTreeMap<Place, Node>,
    /// How many prefixes of each length a scope has, by family.
    lengths: BTreeMap<(Scope, bool, u8), u32>,
}

/// The largest number of slabs for this many prefixes.
pub(crate) fn slabs(prefixes: u32) -> u32 {
    const NODES_OF_PREFIX: u64 = 1 + MOST_MARKERS as u64;
    // Primary buckets of two hold more than one entry each on average before the overflow buckets are used
    // up.
    let buckets = u64::from(prefixes) * NODES_OF_PREFIX;
    TABLES * buckets.div_ceil(SLAB_BUCKETS.into()).clamp(1, MOST_SLABS.into()) as u32
}

/// A table and the one that replaces it, alternately in the halves of the map.
pub(crate) const TABLES: u32 = 2;

/// Slabs of one table; their numbers have 16 bits.
const MOST_SLABS: u32 = (1 << 16) / TABLES - 1;

/// Markers of an IPv6 prefix; prefixes of common lengths have at most two.
const MOST_MARKERS: usize = 6;

impl<T: Tables> Prefixes<T> {
    pub(crate) fn new(mut tables: T, most: u16) -> Result<Self, MapError> {
        let (table, slabs) = make(&mut tables, 0, 1)?;
        tables.switch_to(table, None);
        let (nodes, lengths) = (BTreeMap::new(), BTreeMap::new());
        Ok(Prefixes { tables, table, slabs, most, overflow: 0, nodes, lengths })
    }

    /// Gives a prefix a value, which is not [`NONE`].
    pub(crate) fn set(&mut self, scope: Scope, prefix: Addr128, value: u32) -> Result<(), MapError> {
        let place = (scope, prefix);
        let mut changed = Vec::new();
        if self.nodes.get(&place).is_none_or(|node| node.value.is_none()) {
            for marker in markers(&prefix) {
                let marker = (scope, prefix.cut(marker));
                self.node(marker).searches += 1;
                changed.push(marker);
            }
            *self.lengths.entry((scope, prefix.is_v4(), prefix.bits)).or_default() += 1;
        }
        self.node(place).value = Some(value);
        changed.push(place);
        self.cover(place, Some((prefix.bits, value)), &mut changed);
        if let Err(error) = changed.iter().try_for_each(|place| self.write_entry(place)) {
            // Only new entries need room, so removing the prefix undoes the change completely.
            self.clear(scope, prefix);
            return Err(error);
        }
        self.publish_lengths(scope);
        Ok(())
    }

    pub(crate) fn clear(&mut self, scope: Scope, prefix: Addr128) {
        let place = (scope, prefix);
        let Some(node) = self.nodes.get_mut(&place).filter(|node| node.value.is_some()) else { return };
        node.value = None;
        let mut changed = vec![place];
        let around = self.covering(place, prefix.bits);
        self.cover(place, around, &mut changed);
        for marker in markers(&prefix).into_iter().rev() {
            let marker = (scope, prefix.cut(marker));
            self.node(marker).searches -= 1;
            changed.push(marker);
        }
        if let MapEntry::Occupied(mut count) = self.lengths.entry((scope, prefix.is_v4(), prefix.bits)) {
            *count.get_mut() -= 1;
            if *count.get() == 0 {
                count.remove();
            }
        }
        for place in &changed {
            if self.nodes.get(place).is_some_and(|node| node.value.is_none() && node.searches == 0) {
                self.nodes.remove(place);
            }
            self.write_entry(place).expect("only new entries need room");
        }
        self.publish_lengths(scope);
    }

    /// The node of a prefix, which is created if it does not exist.
    fn node(&mut self, (scope, prefix): Place) -> &mut Node {
        if !self.nodes.contains_key(&(scope, prefix)) {
            let covered_by = self.covering((scope, prefix), prefix.bits + 1);
            let node = Node { value: None, covered_by, searches: 0 };
            self.nodes.insert((scope, prefix), node);
        }
        self.nodes.get_mut(&(scope, prefix)).expect("it was created")
    }

    /// The longest prefix that covers this one and is shorter than `end`: its length and its value.
    fn covering(&self, (scope, prefix): Place, end: u8) -> Option<(u8, u32)> {
        let v4 = prefix.is_v4();
        let lengths = self.lengths.range((scope, v4, 0)..(scope, v4, end)).rev();
        lengths.map(|((_, _, bits), _)| *bits).find_map(|bits| {
            let node = self.nodes.get(&(scope, prefix.cut(bits)))?;
            Some((bits, node.value?))
        })
    }

    /// Sets `by` as the covering prefix of this prefix and of those inside it that no longer prefix covers.
    fn cover(&mut self, (scope, prefix): Place, by: Option<(u8, u32)>, changed: &mut Vec<Place>) {
        let last = Addr128 { addr: prefix.last(), bits: u8::MAX };
        for (place, node) in self.nodes.range_mut((scope, prefix)..=(scope, last)) {
            let longer = node.covered_by.is_some_and(|(bits, _)| bits > prefix.bits);
            if place.1.is_v4() == prefix.is_v4() && !longer && node.covered_by != by {
                node.covered_by = by;
                changed.push(*place);
            }
        }
    }

    /// Writes the entry of a prefix from its node.
    fn write_entry(&mut self, place: &Place) -> Result<(), MapError> {
        let (key, entry_value) = (key(place), self.nodes.get(place).map(Node::entry_value));
        match (self.entry(&key), entry_value) {
            (Some(entry), Some(entry_value)) => entry.update(entry_value),
            (Some(entry), None) => entry.clear(),
            (None, None) => {}
            (None, Some(entry_value)) => match self.room(&key) {
                Some(entry) => entry.publish(&key, entry_value),
                None => self.grow()?,
            },
        }
        Ok(())
    }

    fn entry(&self, key: &Key) -> Option<&Entry> {
        let entries = self.chain(key).flat_map(|index| &self.bucket(index).entries);
        entries.into_iter().find(|entry| entry.matches(key).is_some())
    }

    /// A free entry on the prefix's search path: in its primary bucket or an overflow bucket, if one has room
    /// or can be added.
    fn room(&mut self, key: &Key) -> Option<&Entry> {
        let chain: Vec<u32> = self.chain(key).collect();
        let free = |index: &u32| self.bucket(*index).entries.iter().position(Entry::is_free);
        if let Some((index, way)) = chain.iter().find_map(|index| Some((*index, free(index)?))) {
            return Some(&self.bucket(index).entries[way]);
        }
        let next = self.table.primary_buckets() + self.overflow;
        if chain.len() == CHAIN || next == self.table.buckets() {
            return None;
        }
        self.overflow += 1;
        self.bucket(*chain.last()?).next.store(next.into());
        Some(&self.bucket(next).entries[0])
    }

    /// The primary bucket of a prefix and its overflow buckets.
    fn chain(&self, key: &Key) -> impl Iterator<Item = u32> {
        let next = |index: &u32| Some(self.bucket(*index).next.load() as u32).filter(|next| *next != 0);
        std::iter::successors(Some(self.table.primary_bucket(key)), next)
    }

    fn bucket(&self, index: u32) -> &Bucket {
        &self.slabs[(index / SLAB_BUCKETS) as usize].all()[(index % SLAB_BUCKETS) as usize]
    }

    /// Replaces the table by a larger one with the same entries.
    fn grow(&mut self) -> Result<(), MapError> {
        let first = if self.table.first() == 0 { self.most } else { 0 };
        let mut slabs = self.table.slabs();
        loop {
            if slabs == self.most {
                return Err(MapError::Full { map: "PREFIXES", entries: self.nodes.len() });
            }
            slabs = slabs.saturating_mul(2).min(self.most);
            let (table, memory) = make(&mut self.tables, first, slabs)?;
            let old = (self.table, std::mem::replace(&mut self.slabs, memory), self.overflow);
            (self.table, self.overflow) = (table, 0);
            if self.fill() {
                self.tables.switch_to(table, Some(old.0));
                return Ok(());
            }
            (self.table, self.slabs, self.overflow) = old;
        }
    }

    /// Writes all entries into an empty table; `false` if they do not fit.
    fn fill(&mut self) -> bool {
        let entries: Vec<(Key, Value)> =
            self.nodes.iter().map(|(place, node)| (key(place), node.entry_value())).collect();
        entries.iter().all(|(key, entry_value)| match self.room(key) {
            Some(entry) => {
                entry.publish(key, *entry_value);
                true
            }
            None => false,
        })
    }

    fn publish_lengths(&mut self, scope: Scope) {
        let of = |v4| {
            let mut lengths = self.lengths.range((scope, v4, 0)..=(scope, v4, u8::MAX)).map(|(key, _)| key.2);
            lengths.next().map_or(Lengths::NO_PREFIX, |first| [first, lengths.next_back().unwrap_or(first)])
        };
        self.tables.set_lengths(scope, Lengths::new(of(true), of(false)));
    }
}

fn key((scope, prefix): &Place) -> Key {
    Key::new(*scope, Addr::v6(prefix.addr), prefix.bits)
}

/// The lengths at which a search for this prefix continues with longer ones, in search order.
fn markers(prefix: &Addr128) -> Vec<u8> {
    let mut search = Search::of(prefix.is_v4());
    let mut markers = Vec::new();
    while let Some(bits) = search.length().filter(|bits| *bits != prefix.bits) {
        search = if bits < prefix.bits {
            markers.push(bits);
            search.longer()
        } else {
            search.shorter()
        };
    }
    markers
}

fn make<T: Tables>(tables: &mut T, first: u16, slabs: u16) -> Result<(Table, Vec<Shared<Bucket>>), MapError> {
    let seed =
        getrandom::u32().map_err(|error| MapError::Kernel { map: "PREFIXES", reason: error.to_string() })?;
    let table = Table::new(first, slabs, seed);
    Ok((table, tables.make(table)?))
}

#[cfg(test)]
mod tests;
