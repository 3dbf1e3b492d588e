//! Metrics that modules report of themselves: the last hour, in bounded memory for each instance.

use std::collections::{BTreeMap, VecDeque};
use std::mem::size_of;
use std::ops::RangeInclusive;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::history::HOUR;
use crate::model::Texts;

/// The size of one instance's series. Beyond it, the oldest points are dropped first.
pub(crate) const BUDGET: usize = 64 << 10;

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

/// The newest point of every series does not fit an instance's budget.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TooMuch {
    pub bytes: usize,
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
    /// Returns how many of the points are stored: those of the last hour. A point replaces an earlier one of
    /// the same series and moment.
    pub fn add(&self, instance_id: &str, points: Vec<Point>, now: SystemTime) -> Result<usize, TooMuch> {
        let mut by_instance = self.lock();
        let empty = || Arc::new(Ledger { series: BTreeMap::new(), collected_at: now });
        let mut ledger = by_instance.get(instance_id).cloned().unwrap_or_else(empty);
        let kept = Arc::make_mut(&mut ledger).add(points, now)?;
        by_instance.insert(instance_id.to_owned(), ledger);
        Ok(kept)
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
    fn add(&mut self, points: Vec<Point>, now: SystemTime) -> Result<usize, TooMuch> {
        let oldest = now - HOUR;
        let before = points.len();
        let points: Vec<Point> = points.into_iter().filter(|point| point.at >= oldest).collect();
        let kept = points.len();
        for Point { name, labels, value, at } in points {
            let series = self.series.entry(Key { name, labels }).or_default();
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
        self.shorten()?;
        if before > 0 {
            self.collected_at = now;
        }
        Ok(kept)
    }

    /// Drops the oldest points, except each series' newest, until the rest fits.
    fn shorten(&mut self) -> Result<(), TooMuch> {
        let mut bytes = self.bytes();
        while bytes > BUDGET {
            let longer = self.series.values_mut().filter(|series| series.len() > 1);
            let Some(series) = longer.min_by_key(|series| series.front().map(|(at, _)| *at)) else {
                return Err(TooMuch { bytes });
            };
            series.pop_front();
            bytes -= POINT;
        }
        for series in self.series.values_mut() {
            series.shrink_to_fit();
        }
        Ok(())
    }

    fn bytes(&self) -> usize {
        let labels = |key: &Key| -> usize { key.labels.iter().map(|(k, v)| LABEL + k.len() + v.len()).sum() };
        let series = self.series.iter();
        series.map(|(key, points)| SERIES + key.name.len() + labels(key) + points.len() * POINT).sum()
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
        assert_eq!(reported.add("a", points, at(3)), Ok(3));
        assert_eq!(reported.add("a", vec![point("x", 2.5, 2)], at(4)), Ok(1));
        assert_eq!(values(&reported), [1.0, 2.5, 3.0]);
        let ledger = reported.of("a").unwrap();
        assert_eq!(ledger.latest().map(|(_, at, value)| (at, value)).collect::<Vec<_>>(), [(at(3), 3.0)]);
    }

    #[test]
    fn points_older_than_an_hour_are_dropped() {
        let reported = Reported::default();
        reported.add("a", vec![point("x", 1.0, 0), point("y", 1.0, 0)], at(0)).unwrap();
        assert_eq!(reported.add("a", vec![point("x", 2.0, 3601), point("x", 0.5, 0)], at(3601)), Ok(1));
        assert_eq!(values(&reported), [2.0], "the series that ended is dropped too");
    }

    #[test]
    fn the_budget_is_kept_by_dropping_the_oldest() {
        let reported = Reported::default();
        for second in 0..3600 {
            let points = vec![point("x", second as f64, second), point("y", second as f64, second)];
            reported.add("a", points, at(second)).unwrap();
            assert!(reported.of("a").unwrap().bytes() <= BUDGET);
        }
        let kept = values(&reported);
        assert!(kept.len() > BUDGET / POINT * 9 / 10, "{} points", kept.len());
        assert_eq!(kept.last(), Some(&3599.0));
        assert!(kept[0] > 2000.0, "{}", kept[0]);
    }

    #[test]
    fn too_many_series_are_refused_and_change_nothing() {
        let reported = Reported::default();
        reported.add("a", vec![point("x", 1.0, 0)], at(0)).unwrap();
        let many = (0..1000).map(|n| point(&format!("series_{n}"), 1.0, 0)).collect();
        assert!(reported.add("a", many, at(0)).is_err());
        assert_eq!(values(&reported), [1.0]);
    }

    #[test]
    fn totals_are_aggregated_to_their_increase() {
        let points = [(at(0), 5.0), (at(1), 8.0), (at(2), 2.0)];
        assert_eq!(aggregate("requests_total", &points), 5.0);
        assert_eq!(aggregate("queue", &points), 5.0);
        assert_eq!(aggregate("queue", &points[..2]), 6.5);
    }
}
