//! The last hour, second by second, in a bounded number of bytes.
//!
//! Samples are stored in chunks of up to a quarter of an hour. Full chunks never change, and readers share
//! them with the recorder. If the budget is exceeded, the oldest chunk is dropped: a chunk is also full at a
//! sixteenth of the budget, so that at least fifteen sixteenths of it stay in use.

use std::collections::{BTreeSet, VecDeque};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub(crate) use super::chunk::Moment;

use super::catalogue::Kind;
use super::chunk::Chunk;
use super::sample::{Sample, Subject};

const CHUNK_SECONDS: usize = 900;
const MIN_CHUNKS: usize = 16;

#[derive(Clone, Debug)]
pub struct History {
    /// In bytes.
    budget: usize,
    chunks: VecDeque<Arc<Chunk>>,
    /// Whether chunks were dropped: subjects may have existed before the oldest one on record.
    cut: bool,
}

impl History {
    pub fn new(budget: usize) -> Self {
        History { budget, chunks: VecDeque::new(), cut: false }
    }

    pub fn push(&mut self, sample: &Sample) {
        let full = |chunk: &Arc<Chunk>| {
            chunk.seconds().len() >= CHUNK_SECONDS || chunk.bytes() >= self.budget / MIN_CHUNKS
        };
        if self.chunks.back().is_none_or(full) {
            if let Some(chunk) = self.chunks.back_mut() {
                Arc::make_mut(chunk).seal();
            }
            self.chunks.push_back(Arc::default());
        }
        let before = self.chunks.iter().rev().nth(1).cloned();
        let cut = self.cut;
        let continues = |subject: &Subject| before.as_ref().map_or(cut, |chunk| chunk.ends_with(subject));
        if let Some(chunk) = self.chunks.back_mut() {
            Arc::make_mut(chunk).push(sample, continues);
        }
        let is_old = |chunk: &Arc<Chunk>| {
            let newest = chunk.seconds().last();
            newest.is_none_or(|newest| sample.at.duration_since(*newest).is_ok_and(|age| age > HOUR))
        };
        while self.bytes() > self.budget || self.chunks.front().is_some_and(is_old) {
            self.chunks.pop_front();
            self.cut = true;
        }
    }

    /// The accounted size; never more than the budget.
    pub fn bytes(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.bytes()).sum()
    }

    /// How many seconds are on record.
    pub fn seconds(&self) -> usize {
        self.chunks.iter().map(|chunk| chunk.seconds().len()).sum()
    }

    /// The oldest moment on record.
    pub fn since(&self) -> Option<SystemTime> {
        self.chunks.front()?.seconds().first().copied()
    }

    /// The subjects that existed in the period, or close to it.
    pub fn subjects(&self, time: &RangeInclusive<SystemTime>) -> BTreeSet<&Subject> {
        self.within(time).flat_map(|chunk| chunk.subjects()).collect()
    }

    /// The subject's rows in the period, oldest first.
    pub fn moments(&self, subject: &Subject, time: &RangeInclusive<SystemTime>) -> Vec<Moment> {
        self.within(time).flat_map(|chunk| chunk.moments(subject, time)).collect()
    }

    fn within(&self, time: &RangeInclusive<SystemTime>) -> impl Iterator<Item = &Chunk> {
        let overlaps = |chunk: &&Chunk| chunk.seconds().iter().any(|at| time.contains(at));
        self.chunks.iter().map(Arc::as_ref).filter(overlaps)
    }
}

/// The length of the history, if its budget allows.
pub const HOUR: Duration = Duration::from_secs(3600);

/// The aggregate of one column over a period: a counter's increase, or a gauge's mean. `None` without
/// moments.
///
/// The increase is counted from the first moment to the last, and from 0 if the series began in the period; a
/// counter that decreased restarted at 0.
pub(crate) fn aggregate(kind: Kind, column: usize, moments: &[Moment]) -> Option<f64> {
    let first = moments.first()?;
    match kind {
        Kind::Gauge => {
            let sum: f64 = moments.iter().map(|moment| moment.row[column] as f64).sum();
            Some(sum / moments.len() as f64)
        }
        Kind::Counter => {
            let mut last = if first.born { 0 } else { first.row[column] };
            let mut increase = 0;
            for moment in moments {
                let value = moment.row[column];
                increase += value.checked_sub(last).filter(|_| !moment.born).unwrap_or(value);
                last = value;
            }
            Some(increase as f64)
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn at(second: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(second)
    }

    fn instance(n: usize) -> Subject {
        Subject::Instance { instance_id: format!("alb-{n:05}") }
    }

    /// `busy` of the instances count one more flow every second.
    fn sample(second: u64, instances: usize, busy: usize) -> Sample {
        let count = |n: usize| if n < busy { second } else { 7 };
        let rows = (0..instances)
            .map(|n| (instance(n), [count(n), 3, 3, 9 * count(n), 900, 1, 1, 0].as_slice().into()));
        Sample { at: at(second), second, rows: rows.collect() }
    }

    #[test]
    fn an_hour_is_kept_and_no_more_than_a_chunk_beyond() {
        let mut history = History::new(1 << 20);
        for second in 0..2 * 3600 {
            history.push(&sample(second, 3, 1));
        }
        let kept = history.seconds();
        assert!((3600..=3600 + CHUNK_SECONDS).contains(&kept), "{kept} seconds");
        let moments = history.moments(&instance(0), &(at(3700)..=at(7199)));
        assert_eq!(moments.len(), 3500);
        assert!(moments.iter().all(|moment| moment.at == at(moment.row[0])));
        assert!(moments.iter().all(|moment| !moment.born));
    }

    #[test]
    fn the_budget_is_kept_and_the_oldest_go_first() {
        const BUDGET: usize = 256 << 10;
        let mut history = History::new(BUDGET);
        let mut full = false;
        for second in 0..1000 {
            history.push(&sample(second, 100, 100));
            assert!(history.bytes() <= BUDGET, "{} bytes at {second}", history.bytes());
            full |= history.since() > Some(at(0));
            assert!(!full || history.bytes() > BUDGET * 3 / 4, "{} bytes at {second}", history.bytes());
            let kept = second + 1 - history.seconds() as u64;
            assert_eq!(history.since(), Some(at(kept)), "no gaps, and the newest is there");
        }
        assert!(full, "100 busy instances do not fit for 1000 seconds");
        let since = history.since().unwrap();
        assert_eq!(history.moments(&instance(5), &(since..=at(999))).len(), history.seconds());
        assert!(history.moments(&instance(5), &(at(0)..=since - Duration::from_secs(1))).is_empty());
    }

    #[test]
    fn one_second_that_does_not_fit_leaves_nothing() {
        let mut history = History::new(1000);
        history.push(&sample(0, 100, 0));
        assert_eq!((history.bytes(), history.since(), history.seconds()), (0, None, 0));
        history.push(&sample(1, 1, 0));
        let moments = history.moments(&instance(0), &(at(0)..=at(9)));
        assert_eq!(moments.len(), 1);
        assert!(!moments[0].born, "it may have existed in the second that was dropped");
    }

    #[test]
    fn an_idle_hour_costs_little() {
        const INSTANCES: usize = 50;
        let mut history = History::new(1 << 20);
        for second in 0..3600 {
            history.push(&sample(second, INSTANCES, 0));
        }
        assert_eq!(history.since(), Some(at(0)));
        // The size of the times of the seconds, and of each instance.
        assert!(history.bytes() < (64 << 10) + INSTANCES * 1500, "{} bytes", history.bytes());
    }

    #[test]
    fn readers_keep_what_they_hold() {
        let mut history = History::new(1 << 20);
        history.push(&sample(0, 1, 1));
        let reader = history.clone();
        history.push(&sample(1, 1, 1));
        assert_eq!((reader.seconds(), history.seconds()), (1, 2));
    }

    #[test]
    fn counters_are_aggregated_to_their_increase_and_gauges_to_their_mean() {
        let moment = |value: u64, born| Moment { at: at(0), row: vec![value], born };
        let counter = |moments: &[Moment]| aggregate(Kind::Counter, 0, moments);
        assert_eq!(counter(&[]), None);
        assert_eq!(counter(&[moment(5, false), moment(5, false), moment(9, false)]), Some(4.0));
        assert_eq!(counter(&[moment(5, true), moment(9, false)]), Some(9.0), "born in the period");
        assert_eq!(
            counter(&[moment(5, false), moment(9, false), moment(2, false)]),
            Some(6.0),
            "it restarted at 0"
        );
        assert_eq!(
            counter(&[moment(5, false), moment(6, true)]),
            Some(6.0),
            "a series that came back with a higher count"
        );
        assert_eq!(aggregate(Kind::Gauge, 0, &[moment(1, true), moment(4, false)]), Some(2.5));
    }
}
