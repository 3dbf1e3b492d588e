//! Every transition of a breaker.

use super::*;

const TERMS: OutlierConfig = OutlierConfig { max_percent: 50, back_off: Duration::from_secs(10) };

/// A breaker under a clock that starts at 0, and counters that are told what is added.
struct Rig {
    outlier: OutlierDetector,
    counters: Counters,
    group: Group,
    start: Instant,
}

impl Rig {
    fn new() -> Rig {
        let counters = Counters { flows: 1000, resets: 1000 };
        Rig { outlier: OutlierDetector::new(counters), counters, group: Group::Serves, start: Instant::now() }
    }

    fn at(&mut self, second: u64, flows: u64, resets: u64) -> Option<Change> {
        self.counters = self.counters.plus(Counters { flows, resets });
        let now = self.start + Duration::from_secs(second);
        self.outlier.observe(self.counters, &TERMS, now);
        self.outlier.conclude(self.group, &TERMS, now)
    }

    /// What is known of its module then.
    fn known(&self, second: u64) -> Option<bool> {
        self.outlier.resets(&TERMS, self.start + Duration::from_secs(second))
    }
}

fn opened(flows: u64, resets: u64, seconds: u64) -> Option<Change> {
    let rate = Counters { flows, resets };
    Some(Change::Opened { rate, back_off: Duration::from_secs(seconds) })
}

#[test]
fn too_many_resets_open_it() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(1, 20, 10), None, "the bound itself is allowed, and what was before does not count");
    assert_eq!(rig.at(2, 20, 11), opened(40, 21, 10));
}

#[test]
fn a_few_flows_say_nothing_and_old_ones_are_forgotten() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(1, 19, 19), None);
    assert_eq!(rig.at(11, 1, 1), None, "the 19 are ten seconds ago");
    assert_eq!(rig.at(12, 19, 19), opened(20, 20, 10));
}

#[test]
fn it_is_tried_again_and_closes_when_flows_go_well() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(1, 20, 20), opened(20, 20, 10));
    assert_eq!(rig.at(5, 0, 50), None, "resets of its last flows do not count");
    assert_eq!(rig.at(10, 0, 0), None);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(12, 19, 0), None);
    assert_eq!(rig.at(13, 1, 0), Some(Change::Closed { proven: true }));
    assert_eq!(rig.at(14, 20, 20), opened(20, 20, 10), "the back-off starts over");
}

#[test]
fn every_relapse_doubles_the_back_off_up_to_a_bound() {
    let mut rig = Rig::new();
    let mut second = 1;
    for back_off in [10, 20, 40, 80, 160, 300, 300] {
        assert_eq!(rig.at(second, 20, 20), opened(20, 20, back_off));
        second += back_off;
        assert_eq!(rig.at(second - 1, 0, 0), None);
        assert_eq!(rig.at(second, 0, 0), Some(Change::HalfOpened));
        second += 1;
    }
}

#[test]
fn a_trial_without_traffic_ends_in_its_favour_but_is_no_proof() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(20, 5, 5), None);
    assert_eq!(rig.at(21, 0, 0), Some(Change::Closed { proven: false }));
    assert_eq!(rig.at(22, 20, 20), opened(20, 20, 20), "a relapse");
}

#[test]
fn it_does_not_open_where_most_of_the_group_reset() {
    let mut rig = Rig::new();
    rig.group = Group::Resets;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(9, 20, 20), None, "however long");
    rig.group = Group::Serves;
    assert_eq!(rig.at(10, 0, 0), opened(40, 40, 10));
}

#[test]
fn it_closes_as_soon_as_most_of_the_group_reset() {
    for second in [5, 12] {
        let mut rig = Rig::new();
        rig.at(1, 20, 20);
        assert_eq!(rig.at(second - 1, 0, 0), (second == 12).then_some(Change::HalfOpened));
        rig.group = Group::Resets;
        assert_eq!(rig.at(second, 0, 0), Some(Change::Acquitted));
        rig.group = Group::Serves;
        assert_eq!(rig.at(second + 1, 0, 0), None, "it has a clean sheet");
        assert_eq!(rig.at(second + 2, 20, 20), opened(20, 20, 10), "and no relapse");
    }
}

#[test]
fn it_waits_a_moment_for_others_that_have_too_few_flows() {
    let mut rig = Rig::new();
    rig.group = Group::Undecided;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(3, 10, 10), None);
    assert_eq!(rig.at(4, 10, 10), opened(40, 40, 10), "and no longer");

    let mut rig = Rig::new();
    rig.group = Group::Undecided;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(2, 40, 0), None, "it does better");
    assert_eq!(rig.at(5, 60, 60), None, "the wait begins anew");
    rig.group = Group::Serves;
    assert_eq!(rig.at(6, 0, 0), opened(120, 80, 10), "they have shown that they serve");
}

#[test]
fn a_relapse_needs_no_wait() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    rig.group = Group::Undecided;
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(12, 20, 20), opened(20, 20, 20));
}

#[test]
fn what_is_known_of_few_flows_takes_longer_and_holds_longer() {
    let mut rig = Rig::new();
    rig.group = Group::Resets;
    for second in 1..20 {
        rig.at(second, 1, 1);
        assert_eq!(rig.known(second), None);
    }
    rig.at(20, 1, 1);
    assert_eq!(rig.known(20), Some(true), "of twenty flows in as many seconds");
    assert_eq!((rig.known(319), rig.known(320)), (Some(true), None));
    for second in 21..41 {
        rig.at(second, 1, 0);
    }
    assert_eq!(rig.known(41), Some(false), "of twenty others");
    rig.at(42, 30, 30);
    assert_eq!(rig.known(42), Some(true), "many flows tell at once");
}

#[test]
fn who_is_excluded_resets_until_flows_show_otherwise() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.known(11), Some(true));
    rig.at(12, 20, 0);
    assert_eq!(rig.known(12), Some(false));
}

#[test]
fn counters_that_begin_anew_count_from_zero() {
    let mut rig = Rig::new();
    rig.counters = Counters::default();
    assert_eq!(rig.at(1, 30, 0), None);
    assert_eq!(rig.at(2, 70, 70), opened(100, 70, 10));
}
