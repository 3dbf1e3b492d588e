//! The error rate of a version, summed over instances whose counters may restart at 0.

use std::collections::BTreeMap;
use std::fmt;

/// Fewer requests or flows than this allow no statement about a rate.
const MIN_SAMPLE: u64 = 20;

/// The counters of one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Reported by the module in its heartbeats.
    pub requests: u64,
    pub failed_requests: u64,
    /// Counted by the data path.
    pub new_flows: u64,
    pub resets: u64,
}

/// `bad` of `all`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rate {
    pub bad: u64,
    pub all: u64,
}

#[derive(Clone, Debug, Default)]
pub(super) struct Errors {
    /// From heartbeats.
    requests: Tally,
    /// From the data path, which counts since the daemon started.
    flows: Tally,
    /// The promotion was resumed: instances had counted requests before the first evaluation.
    resumed: bool,
}

/// The sum of one kind of rate.
#[derive(Clone, Debug, Default)]
struct Tally {
    last: BTreeMap<String, Rate>,
    sum: Rate,
}

impl Errors {
    /// What `counters` hold already does not count.
    pub(super) fn since(counters: BTreeMap<String, Counters>) -> Self {
        let mut errors = Errors::default();
        for (instance_id, counted) in counters {
            errors.requests.last.insert(instance_id.clone(), counted.requests());
            errors.flows.last.insert(instance_id, counted.flows());
        }
        errors
    }

    /// What an instance had counted before its first heartbeat to this daemon does not count.
    pub(super) fn resumed() -> Self {
        Errors { resumed: true, ..Errors::default() }
    }

    pub(super) fn add(&mut self, counters: BTreeMap<String, Counters>) {
        for (instance_id, counted) in counters {
            let requests = counted.requests();
            if self.resumed && !self.requests.last.contains_key(&instance_id) {
                // Before an instance's first heartbeat its counters are 0.
                if requests.all > 0 {
                    self.requests.last.insert(instance_id.clone(), requests);
                }
            } else {
                self.requests.add(&instance_id, requests);
            }
            self.flows.add_sums(&instance_id, counted.flows());
        }
    }

    /// The rate that exceeds this many percent, if a sample is large enough.
    pub(super) fn beyond(&self, percent: u32) -> Option<RollbackReason> {
        let flows = self.flows.sum;
        // A request may fail in a later report than the one that counts it, and a new process may have had
        // more requests than the one before.
        let Rate { bad, all } = self.requests.sum;
        let requests = Rate { bad: bad.min(all), all };
        if requests.is_beyond(percent) {
            return Some(RollbackReason::Requests(requests));
        }
        flows.is_beyond(percent).then_some(RollbackReason::Resets(flows))
    }
}

impl Counters {
    fn requests(self) -> Rate {
        Rate { bad: self.failed_requests, all: self.requests }
    }

    fn flows(self) -> Rate {
        Rate { bad: self.resets, all: self.new_flows }
    }
}

impl Tally {
    /// Adds a report of a process: a counter that decreased belongs to a new one, where both started at 0.
    fn add(&mut self, instance_id: &str, now: Rate) {
        let last = self.last.insert(instance_id.to_owned(), now).unwrap_or_default();
        let last = if now.bad < last.bad || now.all < last.all { Rate::default() } else { last };
        self.sum.bad += now.bad - last.bad;
        self.sum.all += now.all - last.all;
    }

    /// Adds the sums over an instance's backends: one that decreased has lost a backend, whose counts are in
    /// the sums already.
    fn add_sums(&mut self, instance_id: &str, now: Rate) {
        let last = self.last.insert(instance_id.to_owned(), now).unwrap_or_default();
        if now.bad >= last.bad && now.all >= last.all {
            self.sum.bad += now.bad - last.bad;
            self.sum.all += now.all - last.all;
        }
    }
}

impl Rate {
    fn is_beyond(self, percent: u32) -> bool {
        self.all >= MIN_SAMPLE && u128::from(self.bad) * 100 > u128::from(self.all) * u128::from(percent)
    }
}

/// Why a promotion is rolled back.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RollbackReason {
    /// The error rate of requests, from heartbeats of its instances.
    Requests(Rate),
    /// The rate of TCP resets from its backends to new flows.
    Resets(Rate),
    /// None of its instances takes new flows.
    Absent,
}

impl fmt::Display for RollbackReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RollbackReason::Requests(rate) => write!(f, "{} of {} requests failed", rate.bad, rate.all),
            RollbackReason::Resets(rate) => write!(f, "{} TCP resets in {} new flows", rate.bad, rate.all),
            RollbackReason::Absent => f.write_str("no instance of it takes new flows"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, failed_requests: u64) -> BTreeMap<String, Counters> {
        [("a".to_owned(), Counters { requests, failed_requests, ..Counters::default() })].into()
    }

    #[test]
    fn earlier_counts_do_not_count() {
        let mut errors = Errors::since(counted(1000, 1000));
        errors.add(counted(1100, 1005));
        assert_eq!(errors.beyond(5), None, "5 of 100 are not above 5 %");
        errors.add(counted(1100, 1006));
        assert_eq!(errors.beyond(5), Some(RollbackReason::Requests(Rate { bad: 6, all: 100 })));
    }

    #[test]
    fn few_requests_are_no_sample() {
        let mut errors = Errors::since(BTreeMap::new());
        errors.add(counted(MIN_SAMPLE - 1, MIN_SAMPLE - 1));
        assert_eq!(errors.beyond(0), None);
        errors.add(counted(MIN_SAMPLE, MIN_SAMPLE - 1));
        assert!(errors.beyond(0).is_some());
    }

    #[test]
    fn a_restarted_instance_counts_from_zero() {
        let mut errors = Errors::since(counted(1000, 0));
        errors.add(counted(1040, 0));
        errors.add(counted(60, 30));
        assert_eq!(errors.beyond(5), Some(RollbackReason::Requests(Rate { bad: 30, all: 100 })));
    }

    #[test]
    fn after_a_restart_the_first_counts_of_an_instance_do_not_count() {
        let mut errors = Errors::resumed();
        errors.add(counted(0, 0));
        errors.add(counted(1000, 1000));
        assert_eq!(errors.beyond(5), None);
        errors.add(counted(1100, 1006));
        assert_eq!(errors.beyond(5), Some(RollbackReason::Requests(Rate { bad: 6, all: 100 })));
        let seen = Counters { new_flows: 20, resets: 20, ..Counters::default() };
        let mut errors = Errors::resumed();
        errors.add([("a".to_owned(), seen)].into());
        let resets = Some(RollbackReason::Resets(Rate { bad: 20, all: 20 }));
        assert_eq!(errors.beyond(5), resets, "the data path counts since the daemon started");
    }

    #[test]
    fn resets_count_by_new_flows() {
        let mut errors = Errors::since(BTreeMap::new());
        let seen = Counters { new_flows: 20, resets: 2, ..Counters::default() };
        errors.add([("a".to_owned(), seen), ("b".to_owned(), seen)].into());
        assert_eq!(errors.beyond(10), None);
        assert_eq!(errors.beyond(9), Some(RollbackReason::Resets(Rate { bad: 4, all: 40 })));
    }

    #[test]
    fn no_more_requests_fail_than_there_are() {
        // (requests, failed) of an instance's reports, and the sum.
        for (reports, sum) in [
            (&[(18, 0), (100, 100)][..], (100, 100)),
            (&[(30, 25), (50, 80)], (50, 50)),
            (&[(100, 4), (90, 50)], (190, 54)),
            (&[(100, 90), (120, 30)], (220, 120)),
        ] {
            let mut errors = Errors::default();
            reports.iter().for_each(|(all, bad)| errors.add(counted(*all, *bad)));
            let Some(RollbackReason::Requests(Rate { bad, all })) = errors.beyond(0) else {
                panic!("{reports:?}")
            };
            assert_eq!((all, bad), sum, "{reports:?}");
        }
    }
}
