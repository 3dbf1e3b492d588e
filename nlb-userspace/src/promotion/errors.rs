//! How often a version errs, added up over instances whose counters may begin anew.

use std::collections::BTreeMap;

use super::Failing;

/// Fewer requests or flows than this say nothing about a rate.
const LEAST: u64 = 20;

/// What one instance has counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// By its own word.
    pub requests: u64,
    pub failed_requests: u64,
    /// As the data path saw it.
    pub new_flows: u64,
    pub resets: u64,
}

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Rate {
    pub bad: u64,
    pub all: u64,
}

#[derive(Clone, Debug)]
pub struct Errors {
    last: BTreeMap<String, Counters>,
    sum: Counters,
}

impl Errors {
    /// Whatever was counted so far does not count.
    pub fn since(counters: BTreeMap<String, Counters>) -> Self {
        Errors { last: counters, sum: Counters::default() }
    }

    pub fn add(&mut self, counters: BTreeMap<String, Counters>) {
        for (instance_id, now) in counters {
            let last = self.last.insert(instance_id, now).unwrap_or_default();
            // A counter that went back belongs to a process that began anew.
            let grown = |now: u64, last: u64| if now < last { now } else { now - last };
            self.sum.requests += grown(now.requests, last.requests);
            self.sum.failed_requests += grown(now.failed_requests, last.failed_requests);
            self.sum.new_flows += grown(now.new_flows, last.new_flows);
            self.sum.resets += grown(now.resets, last.resets);
        }
    }

    /// Which rate is above this many percent, if there is enough to tell.
    pub fn beyond(&self, percent: u32) -> Option<Failing> {
        let Counters { requests, failed_requests, new_flows, resets } = self.sum;
        let requests = Rate { bad: failed_requests, all: requests };
        let flows = Rate { bad: resets, all: new_flows };
        if requests.is_beyond(percent) {
            return Some(Failing::Requests(requests));
        }
        flows.is_beyond(percent).then_some(Failing::Resets(flows))
    }
}

impl Rate {
    fn is_beyond(self, percent: u32) -> bool {
        self.all >= LEAST && u128::from(self.bad) * 100 > u128::from(self.all) * u128::from(percent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(requests: u64, failed_requests: u64) -> BTreeMap<String, Counters> {
        [("a".to_owned(), Counters { requests, failed_requests, ..Counters::default() })].into()
    }

    #[test]
    fn what_was_before_does_not_count() {
        let mut errors = Errors::since(counted(1000, 1000));
        errors.add(counted(1100, 1005));
        assert_eq!(errors.beyond(5), None, "5 of 100 is not above 5 %");
        errors.add(counted(1100, 1006));
        assert_eq!(errors.beyond(5), Some(Failing::Requests(Rate { bad: 6, all: 100 })));
    }

    #[test]
    fn a_few_say_nothing() {
        let mut errors = Errors::since(BTreeMap::new());
        errors.add(counted(LEAST - 1, LEAST - 1));
        assert_eq!(errors.beyond(0), None);
        errors.add(counted(LEAST, LEAST - 1));
        assert!(errors.beyond(0).is_some());
    }

    #[test]
    fn a_restarted_instance_counts_from_zero() {
        let mut errors = Errors::since(counted(1000, 0));
        errors.add(counted(1040, 0));
        errors.add(counted(60, 30));
        assert_eq!(errors.beyond(5), Some(Failing::Requests(Rate { bad: 30, all: 100 })));
    }

    #[test]
    fn resets_count_by_new_flows() {
        let mut errors = Errors::since(BTreeMap::new());
        let seen = Counters { new_flows: 20, resets: 2, ..Counters::default() };
        errors.add([("a".to_owned(), seen), ("b".to_owned(), seen)].into());
        assert_eq!(errors.beyond(10), None);
        assert_eq!(errors.beyond(9), Some(Failing::Resets(Rate { bad: 4, all: 40 })));
    }
}
