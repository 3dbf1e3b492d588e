//! How long requests take: the mean, and percentiles from a histogram of fixed size.

use std::time::Duration;

/// Each power of two of microseconds has this many buckets, so that percentiles are off by 1/16 at most.
const PER_OCTAVE: u64 = 16;
const BUCKETS: usize = 61 * PER_OCTAVE as usize;

#[derive(Debug)]
pub(crate) struct Latencies {
    buckets: Box<[u64; BUCKETS]>,
    count: u64,
    sum: Duration,
}

impl Latencies {
    pub(crate) fn new() -> Latencies {
        Latencies { buckets: Box::new([0; BUCKETS]), count: 0, sum: Duration::ZERO }
    }

    pub(crate) fn record(&mut self, latency: Duration) {
        self.buckets[bucket(u64::try_from(latency.as_micros()).unwrap_or(u64::MAX))] += 1;
        self.count += 1;
        self.sum += latency;
    }

    /// In milliseconds; 0 without any.
    pub(crate) fn mean_ms(&self) -> f64 {
        if self.count == 0 { 0.0 } else { self.sum.as_secs_f64() * 1000.0 / self.count as f64 }
    }

    /// In milliseconds: the latency that this percentage of requests did not exceed; 0 without any.
    pub(crate) fn percentile_ms(&self, percent: u64) -> f64 {
        let rank = (self.count * percent).div_ceil(100);
        let mut seen = 0;
        let found = self.buckets.iter().position(|count| {
            seen += count;
            seen >= rank && seen > 0
        });
        found.map_or(0.0, |bucket| middle(bucket) / 1000.0)
    }
}

/// The number of the bucket: the highest five bits of a value decide, and those of small values are all that
/// there are.
fn bucket(micros: u64) -> usize {
    let octave = u64::from((micros | 1).ilog2().saturating_sub(PER_OCTAVE.ilog2()));
    (octave * PER_OCTAVE + (micros >> octave)) as usize
}

/// The middle of a bucket, in microseconds.
fn middle(bucket: usize) -> f64 {
    let bucket = bucket as u64;
    let octave = (bucket / PER_OCTAVE).saturating_sub(1);
    let first = (bucket - octave * PER_OCTAVE) << octave;
    first as f64 + ((1u64 << octave) - 1) as f64 / 2.0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_latency_is_near_the_middle_of_its_bucket() {
        let values =
            (0..64).flat_map(|bit| [1u64 << bit, (1u64 << bit) | ((1u64 << bit) / 3), u64::MAX >> bit]);
        for micros in values.chain(0..10_000) {
            let middle = middle(bucket(micros));
            let off = (middle - micros as f64).abs();
            assert!(off <= micros as f64 / 32.0 + 0.5, "{micros} us is taken for {middle} us");
        }
    }

    #[test]
    fn percentiles_and_the_mean_are_those_of_what_was_recorded() {
        let mut latencies = Latencies::new();
        assert_eq!((latencies.mean_ms(), latencies.percentile_ms(99)), (0.0, 0.0));
        for ms in 1..=100 {
            latencies.record(Duration::from_millis(ms));
        }
        assert_eq!(latencies.mean_ms(), 50.5);
        for percent in [50, 95, 99] {
            let ms = latencies.percentile_ms(percent);
            assert!((ms / percent as f64 - 1.0).abs() < 1.0 / 16.0, "{percent} %: {ms} ms");
        }
        latencies.record(Duration::MAX / 2);
        assert!(latencies.percentile_ms(100) > 1e15);
    }
}
