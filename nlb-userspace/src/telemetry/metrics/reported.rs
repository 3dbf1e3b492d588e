//! Metrics that modules report of themselves: the last hour, in bounded memory for each instance.

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::history::HOUR;
use crate::model::Texts;

/// The size of one instance's series: room for a thousand with short names and without labels. Beyond it, the
/// oldest points are dropped first, then the series that were not reported for the longest time.
pub(crate) const BUDGET: usize = 256 << 10;

/// The size of a series besides its name, labels and points, and of a label besides its text: rounded up.
const SERIES: usize = 160;
const LABEL: usize = 96;
const POINT: usize = size_of::<(SystemTime, f64)>();

#[derive(Clone, Debug, PartialEq)]
pub struct Point {
    pub name: String,
    pub labels: Texts,
    pub value: f64,
    pub at: SystemTime,
}

/// What became of the points of a report.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Taken {
    pub points: usize,
    /// Points that are older than an hour.
    pub old: usize,
    /// Points of series that do not fit the budget.
    pub too_many: usize,
    /// Earlier series that gave way.
    pub replaced: usize,
}

#[derive(Debug, Default)]
pub struct Reported {
    by_instance: Mutex<BTreeMap<String, Arc<Ledger>>>,
}

/// The metrics that one instance reported.
#[derive(Clone, Debug)]
pub struct Ledger {
    series: BTreeMap<Key, VecDeque<(SystemTime, f64)>>,
    pub collected_at: SystemTime,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    pub name: String,
    pub labels: Texts,
}

impl Reported {
    /// Stores the points of the last hour that fit. A point replaces an earlier one of the same series and
    /// moment.
    pub fn add(&self, instance_id: &str, points: Vec<Point>, now: SystemTime) -> Taken {
        let mut by_instance = self.lock();
        let empty = || Arc::new(Ledger { series: BTreeMap::new(), collected_at: now });
        let mut ledger = by_instance.get(instance_id).cloned().unwrap_or_else(empty);
        let taken = Arc::make_mut(&mut ledger).add(points, now);
        by_instance.insert(instance_id.to_owned(), ledger);
        taken
    }

    pub fn of(&self, instance_id: &str) -> Option<Arc<Ledger>> {
        self.lock().get(instance_id).cloned()
    }

    pub fn all(&self) -> BTreeMap<String, Arc<Ledger>> {
        self.lock().clone()
    }

    pub fn retain(&self, registered: impl Fn(&str) -> bool) {
        self.lock().retain(|instance_id, _| registered(instance_id));
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Arc<Ledger>>> {
        // A panic leaves the ledgers whole: they are swapped in.
        self.by_instance.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ledger {
    fn add(&mut self, points: Vec<Point>, now: SystemTime) -> Taken {
        let oldest = now - HOUR;
        let sent = points.len();
        let points: Vec<Point> = points.into_iter().filter(|point| point.at >= oldest).collect();
        let mut taken = Taken { points: points.len(), old: sent - points.len(), ..Taken::default() };
        // The series of this report with their numbers of points. Those that are new come last.
        let (mut known, mut new) = (Vec::new(), Vec::new());
        let mut reported: BTreeMap<Key, usize> = BTreeMap::new();
        for Point { name, labels, value, at } in points {
            let key = Key { name, labels };
            let times = reported.entry(key.clone()).or_default();
            *times += 1;
            if *times == 1 {
                let list = if self.series.contains_key(&key) { &mut known } else { &mut new };
                list.push(key.clone());
            }
            let series = self.series.entry(key).or_default();
            let place = series.partition_point(|(earlier, _)| *earlier < at);
            match series.get_mut(place) {
                Some((same, held)) if *same == at => *held = value,
                _ => series.insert(place, (at, value)),
            }
        }
        for series in self.series.values_mut() {
            while series.front().is_some_and(|(at, _)| *at < oldest) {
                series.pop_front();
            }
        }
        self.series.retain(|_, series| !series.is_empty());
        let mut bytes = self.shorten();
        while bytes > BUDGET
            && let Some(key) = self.longest_unreported(&reported)
        {
            bytes -= self.remove(&key);
            taken.replaced += 1;
        }
        for key in known.iter().chain(&new).rev() {
            if bytes <= BUDGET {
                break;
            }
            bytes -= self.remove(key);
            taken.too_many += reported[key];
        }
        taken.points -= taken.too_many;
        if sent > 0 {
            self.collected_at = now;
        }
        taken
    }

    /// Drops the oldest points, except each series' newest, until the rest fits. Returns the size.
    fn shorten(&mut self) -> usize {
        let mut bytes = self.bytes();
        while bytes > BUDGET {
            let longer = self.series.values_mut().filter(|series| series.len() > 1);
            let Some(series) = longer.min_by_key(|series| series.front().map(|(at, _)| *at)) else { break };
            series.pop_front();
            bytes -= POINT;
        }
        for series in self.series.values_mut() {
            series.shrink_to_fit();
        }
        bytes
    }

    /// The series that was not reported for the longest time, and is not in this report.
    fn longest_unreported(&self, reported: &BTreeMap<Key, usize>) -> Option<Key> {
        let others = self.series.iter().filter(|(key, _)| !reported.contains_key(*key));
        others.min_by_key(|(_, points)| points.back().map(|(at, _)| *at)).map(|(key, _)| key.clone())
    }

    /// Removes a series, and returns its size.
    fn remove(&mut self, key: &Key) -> usize {
        self.series.remove(key).map_or(0, |points| size(key, &points))
    }

    fn bytes(&self) -> usize {
        self.series.iter().map(|(key, points)| size(key, points)).sum()
    }

    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.series.keys().map(|key| key.name.as_str())
    }

    /// The newest point of each series.
    pub fn latest(&self) -> impl Iterator<Item = (&Key, SystemTime, f64)> {
        self.series.iter().filter_map(|(key, points)| points.back().map(|(at, value)| (key, *at, *value)))
    }

    /// The points of each series in the period, oldest first.
    pub fn within(
        &self,
        time: &RangeInclusive<SystemTime>,
    ) -> impl Iterator<Item = (&Key, Vec<(SystemTime, f64)>)> {
        let within = |points: &VecDeque<(SystemTime, f64)>| {
            points.iter().copied().filter(|(at, _)| time.contains(at)).collect::<Vec<_>>()
        };
        self.series
            .iter()
            .map(move |(key, points)| (key, within(points)))
            .filter(|(_, points)| !points.is_empty())
    }
}

/// The size of a series.
fn size(key: &Key, points: &VecDeque<(SystemTime, f64)>) -> usize {
    let labels: usize = key.labels.iter().map(|(k, v)| LABEL + k.len() + v.len()).sum();
    SERIES + key.name.len() + labels + points.len() * POINT
}

/// The aggregate of some points of a series, like [`super::history::aggregate`]. Modules report no kinds: a
/// name that ends with `_total` is a counter.
pub(crate) fn aggregate(name: &str, points: &[(SystemTime, f64)]) -> f64 {
    if !name.ends_with("_total") {
        return points.iter().map(|(_, value)| value).sum::<f64>() / points.len() as f64;
    }
    let steps = points.windows(2).map(|pair| (pair[0].1, pair[1].1));
    steps.map(|(before, now)| if now >= before { now - before } else { now }).sum()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(10_000 + second)
    }

    fn point(name: &str, value: f64, second: u64) -> Point {
        Point { name: name.into(), labels: Texts::new(), value, at: at(second) }
    }

    fn values(reported: &Reported) -> Vec<f64> {
        let ledger = reported.of("a").unwrap();
        let time = at(0)..=at(100_000);
        ledger.within(&time).flat_map(|(_, points)| points).map(|(_, value)| value).collect()
    }

    #[test]
    fn points_are_stored_in_order_and_replaced_by_later_ones() {
        let reported = Reported::default();
        let points = vec![point("x", 2.0, 2), point("x", 1.0, 1), point("x", 3.0, 3)];
        assert_eq!(reported.add("a", points, at(3)), Taken { points: 3, ..Taken::default() });
        reported.add("a", vec![point("x", 2.5, 2)], at(4));
        assert_eq!(values(&reported), [1.0, 2.5, 3.0]);
        let ledger = reported.of("a").unwrap();
        assert_eq!(ledger.latest().map(|(_, at, value)| (at, value)).collect::<Vec<_>>(), [(at(3), 3.0)]);
    }

    #[test]
    fn points_older_than_an_hour_are_dropped() {
        let reported = Reported::default();
        reported.add("a", vec![point("x", 1.0, 0), point("y", 1.0, 0)], at(0));
        let taken = reported.add("a", vec![point("x", 2.0, 3601), point("x", 0.5, 0)], at(3601));
        assert_eq!(taken, Taken { points: 1, old: 1, ..Taken::default() });
        assert_eq!(values(&reported), [2.0], "the series that ended is dropped too");
    }

    #[test]
    fn the_budget_is_kept_by_dropping_the_oldest() {
        let reported = Reported::default();
        for second in 0..3600 {
            let points = (0..5).map(|n| point(&format!("x{n}"), second as f64, second)).collect();
            reported.add("a", points, at(second));
            assert!(reported.of("a").unwrap().bytes() <= BUDGET);
        }
        let kept = values(&reported);
        assert!(kept.len() > BUDGET / POINT * 9 / 10, "{} points", kept.len());
        assert_eq!(kept.last(), Some(&3599.0));
        assert!(kept[0] > 1000.0, "{}", kept[0]);
    }

    fn many(name: &str, count: usize, second: u64) -> Vec<Point> {
        (0..count).map(|n| point(&format!("{name}_{n}"), 1.0, second)).collect()
    }

    fn names_of(reported: &Reported, name: &str) -> usize {
        reported.of("a").unwrap().names().filter(|found| found.starts_with(name)).count()
    }

    #[test]
    fn a_thousand_series_fit() {
        let reported = Reported::default();
        assert_eq!(reported.add("a", many("s", 1000, 0), at(0)), Taken { points: 1000, ..Taken::default() });
        assert_eq!(reported.add("a", many("s", 1000, 1), at(1)), Taken { points: 1000, ..Taken::default() });
    }

    #[test]
    fn series_that_are_not_reported_any_more_give_way() {
        let reported = Reported::default();
        reported.add("a", many("old", 700, 0), at(0));
        reported.add("a", many("older", 100, 0), at(0));
        let taken = reported.add("a", many("new", 700, 1), at(1));
        assert_eq!((taken.points, taken.too_many), (700, 0));
        assert!(taken.replaced > 0 && names_of(&reported, "new") == 700);
        assert_eq!(names_of(&reported, "old"), 800 - taken.replaced);
    }

    #[test]
    fn what_does_not_fit_is_left_out_and_counted() {
        let reported = Reported::default();
        reported.add("a", many("known", 10, 0), at(0));
        let report = many("s", 2000, 1).into_iter().chain(many("known", 10, 1)).collect();
        let taken = reported.add("a", report, at(1));
        assert_eq!(taken.points + taken.too_many, 2010);
        assert!(taken.too_many > 500 && taken.replaced == 0, "{taken:?}");
        assert_eq!(names_of(&reported, "known"), 10, "series that were there stay");
        assert_eq!(names_of(&reported, "s_"), taken.points - 10, "the first ones of the report");
        assert!(reported.of("a").unwrap().bytes() <= BUDGET);
    }

    #[test]
    fn totals_are_aggregated_to_their_increase() {
        let points = [(at(0), 5.0), (at(1), 8.0), (at(2), 2.0)];
        assert_eq!(aggregate("requests_total", &points), 5.0);
        assert_eq!(aggregate("queue", &points), 5.0);
        assert_eq!(aggregate("queue", &points[..2]), 6.5);
    }
}
