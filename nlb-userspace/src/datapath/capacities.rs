//! Keeps the counts of instances' flows true (`max_connections`).
//!
//! The data path counts a flow before it records it, and takes it off when its connection closes or another
//! flow gets its entry. What no packet shows, the scan of the flow table finds: flows whose idle time is
//! over, and flows that began before the instance had a limit. It also compares each count with the table, so
//! that a count that is wrong for whatever reason does not stay wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use nlb_common::capacity::{Capacity, Count};
use nlb_common::flow::{Entry, State};
use tracing::warn;

use super::maps::memory::Shared;
use crate::compile;

pub(super) struct Capacities {
    counts: Arc<Shared<Capacity>>,
    histories: BTreeMap<u16, History>,
    /// At most one packet on each is between its change of the count and that of the table.
    cpus: u32,
}

/// What is known of a count from the last two scans.
#[derive(Default)]
struct History {
    generation: u8,
    /// The count before the scan before last.
    oldest: Option<Count>,
    /// The count before the last scan, and the flows that it found.
    last: Option<(Count, u32)>,
    /// The count before this scan, and the flows that it has found so far.
    current: Count,
    found: u32,
}

impl Capacities {
    pub(super) fn new(counts: Arc<Shared<Capacity>>) -> Self {
        let cpus = std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u32);
        Capacities { counts, histories: BTreeMap::new(), cpus }
    }

    /// Begins a scan of the flow table, with the instances that have a limit.
    pub(super) fn begin(&mut self, rows: &BTreeMap<u16, compile::Capacity>) -> Scan<'_> {
        self.histories.retain(|id, known| rows.get(id).is_some_and(|row| row.generation == known.generation));
        for (id, row) in rows {
            let history = self
                .histories
                .entry(*id)
                .or_insert_with(|| History { generation: row.generation, ..History::default() });
            history.current = self.counts.all()[usize::from(*id)].count();
            history.found = 0;
        }
        Scan(self)
    }
}

pub(super) struct Scan<'a>(&'a mut Capacities);

impl Scan<'_> {
    /// Takes a flow that has ended off its count, and adds one that is active and does not count yet. Returns
    /// its state.
    pub(super) fn settle(
        &mut self,
        id: u16,
        entry: &Entry,
        state: State,
        is_active: bool,
        has_ended: bool,
    ) -> State {
        let Capacities { counts, histories, .. } = &mut *self.0;
        let (Some(history), Some(count)) = (histories.get_mut(&id), counts.all().get(usize::from(id))) else {
            return state;
        };
        if state.is_counted() && has_ended {
            let ended = state.with_counted(false);
            if entry.replace(state, ended) {
                count.remove();
                return ended;
            }
        } else if state.is_counted() {
            history.found += 1;
        } else if is_active
            && count.add_existing()
            && let Some(counted) = count.mark(entry, state)
        {
            history.found += 1;
            return counted;
        }
        state
    }

    /// Compares the counts with what the scans found. If the maps were not what the scan's image says,
    /// nothing can be said before two further scans.
    pub(super) fn end(self, is_current: bool) {
        if !is_current {
            self.0.histories.clear();
            return;
        }
        for (id, history) in &mut self.0.histories {
            let count = &self.0.counts.all()[usize::from(*id)];
            let (current, found) = (history.current, history.found);
            let at_once = excess(current, found, count.count(), 2 * self.0.cpus);
            let wrong = match (history.oldest, history.last) {
                _ if at_once != 0 => at_once,
                (Some(before), Some((_, found))) => excess(before, found, current, 0),
                _ => 0,
            };
            history.oldest = history.last.map(|(count, _)| count);
            history.last = Some((current, found));
            if wrong != 0 && count.correct(-wrong) {
                warn!(
                    capacity = id,
                    flows = current.flows(),
                    wrong,
                    "an instance's flows were counted wrongly"
                );
                // Later comparisons must not take the correction for flows.
                (history.oldest, history.last) = (None, None);
            }
        }
    }
}

/// By how much a count is certainly too high, or too low if negative. `found` flows were found by a scan
/// between the two readings of the count, while up to `moving` packets had changed the count and not yet the
/// table, or the other way round. If the readings are a whole scan away from it, there is no such packet.
fn excess(before: Count, found: u32, after: Count, moving: u32) -> i64 {
    let (added, removed) = after.changes_since(before);
    // Flows that the scan found had begun before, or were added; those that it did not find have ended.
    let difference = i64::from(before.flows()) - i64::from(found);
    let least = difference - i64::from(removed) - i64::from(moving);
    let most = difference + i64::from(added) + i64::from(moving);
    if least > 0 { least } else { most.min(0) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(flows: u32, removed: u32) -> Count {
        let capacity = Capacity::default();
        (0..flows + removed).for_each(|_| assert!(capacity.add_existing()));
        (0..removed).for_each(|_| assert!(capacity.remove()));
        capacity.count()
    }

    #[test]
    fn only_what_no_change_explains_is_corrected() {
        let excess = |before, found, after| excess(before, found, after, 0);
        assert_eq!(excess(counted(5, 0), 5, counted(5, 0)), 0);
        assert_eq!(excess(counted(5, 0), 3, counted(5, 0)), 2, "two flows are gone, and still counted");
        assert_eq!(excess(counted(5, 0), 3, counted(4, 1)), 1, "one of them may have ended meanwhile");
        assert_eq!(excess(counted(5, 0), 3, counted(3, 2)), 0);
        assert_eq!(excess(counted(5, 0), 7, counted(5, 0)), -2, "two flows do not count");
        assert_eq!(excess(counted(5, 0), 7, counted(6, 0)), -1, "one of them may have begun meanwhile");
        assert_eq!(excess(counted(5, 0), 7, counted(4, 3)), 0, "two began, and three ended");
        assert_eq!(super::excess(counted(9, 0), 3, counted(9, 0), 4), 2, "four packets may be on their way");
        assert_eq!(super::excess(counted(3, 0), 9, counted(3, 0), 4), -2);
    }
}
