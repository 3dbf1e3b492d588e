//! Every transition of an outlier detector.

use super::*;

const CONFIG: OutlierConfig = OutlierConfig { max_percent: 50, back_off: Duration::from_secs(10) };

/// A detector with a clock that starts at 0, and counters that the test increments.
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
        self.outlier.observe(self.counters, &CONFIG, now);
        self.outlier.conclude(self.group, &CONFIG, now)
    }

    /// Whether the module is known to reset too many flows at that second.
    fn known(&self, second: u64) -> Option<bool> {
        self.outlier.resets(&CONFIG, self.start + Duration::from_secs(second))
    }
}

fn opened(flows: u64, resets: u64, seconds: u64) -> Option<Change> {
    let rate = Counters { flows, resets };
    Some(Change::Opened { rate, back_off: Duration::from_secs(seconds) })
}

#[test]
fn too_many_resets_eject_a_module() {
    let mut rig = Rig::new();
    assert_eq!(
        rig.at(1, 20, 10),
        None,
        "a rate equal to the bound is allowed, and earlier flows do not count"
    );
    assert_eq!(rig.at(2, 20, 11), opened(40, 21, 10));
}

#[test]
fn few_flows_are_no_sample_and_old_ones_expire() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(1, 19, 19), None);
    assert_eq!(rig.at(11, 1, 1), None, "the 19 flows are ten seconds old");
    assert_eq!(rig.at(12, 19, 19), opened(20, 20, 10));
}

#[test]
fn a_half_open_module_that_serves_is_no_longer_ejected() {
    let mut rig = Rig::new();
    assert_eq!(rig.at(1, 20, 20), opened(20, 20, 10));
    assert_eq!(rig.at(5, 0, 50), None, "resets of its remaining flows do not count");
    assert_eq!(rig.at(10, 0, 0), None);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(12, 19, 0), None);
    assert_eq!(rig.at(13, 1, 0), Some(Change::Closed { proven: true }));
    assert_eq!(rig.at(14, 20, 20), opened(20, 20, 10), "the back-off starts at its first value");
}

#[test]
fn each_further_ejection_doubles_the_back_off_up_to_a_bound() {
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
fn a_half_open_module_without_traffic_is_no_longer_ejected_but_unproven() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(20, 5, 5), None);
    assert_eq!(rig.at(21, 0, 0), Some(Change::Closed { proven: false }));
    assert_eq!(rig.at(22, 20, 20), opened(20, 20, 20), "a further ejection");
}

#[test]
fn no_module_is_ejected_if_most_of_the_group_reset() {
    let mut rig = Rig::new();
    rig.group = Group::Resets;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(9, 20, 20), None, "however long");
    rig.group = Group::Serves;
    assert_eq!(rig.at(10, 0, 0), opened(40, 40, 10));
}

#[test]
fn an_ejection_ends_as_soon_as_most_of_the_group_reset() {
    for second in [5, 12] {
        let mut rig = Rig::new();
        rig.at(1, 20, 20);
        assert_eq!(rig.at(second - 1, 0, 0), (second == 12).then_some(Change::HalfOpened));
        rig.group = Group::Resets;
        assert_eq!(rig.at(second, 0, 0), Some(Change::Acquitted));
        rig.group = Group::Serves;
        assert_eq!(rig.at(second + 1, 0, 0), None, "earlier samples do not count");
        assert_eq!(rig.at(second + 2, 20, 20), opened(20, 20, 10), "the back-off starts at its first value");
    }
}

#[test]
fn an_ejection_waits_a_moment_for_modules_with_few_flows() {
    let mut rig = Rig::new();
    rig.group = Group::Undecided;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(3, 10, 10), None);
    assert_eq!(rig.at(4, 10, 10), opened(40, 40, 10), "the wait is bounded");

    let mut rig = Rig::new();
    rig.group = Group::Undecided;
    assert_eq!(rig.at(1, 20, 20), None);
    assert_eq!(rig.at(2, 40, 0), None, "the rate is below the bound");
    assert_eq!(rig.at(5, 60, 60), None, "the wait starts over");
    rig.group = Group::Serves;
    assert_eq!(rig.at(6, 0, 0), opened(120, 80, 10), "the others are known to serve");
}

#[test]
fn a_further_ejection_does_not_wait() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    rig.group = Group::Undecided;
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.at(12, 20, 20), opened(20, 20, 20));
}

#[test]
fn the_rate_of_few_flows_takes_longer_and_holds_longer() {
    let mut rig = Rig::new();
    rig.group = Group::Resets;
    for second in 1..20 {
        rig.at(second, 1, 1);
        assert_eq!(rig.known(second), None);
    }
    rig.at(20, 1, 1);
    assert_eq!(rig.known(20), Some(true), "twenty flows in twenty seconds");
    assert_eq!((rig.known(319), rig.known(320)), (Some(true), None));
    for second in 21..41 {
        rig.at(second, 1, 0);
    }
    assert_eq!(rig.known(41), Some(false), "twenty others");
    rig.at(42, 30, 30);
    assert_eq!(rig.known(42), Some(true), "many flows decide at once");
}

#[test]
fn an_ejected_module_counts_as_resetting_until_flows_show_otherwise() {
    let mut rig = Rig::new();
    rig.at(1, 20, 20);
    assert_eq!(rig.at(11, 0, 0), Some(Change::HalfOpened));
    assert_eq!(rig.known(11), Some(true));
    rig.at(12, 20, 0);
    assert_eq!(rig.known(12), Some(false));
}

#[test]
fn counters_that_restart_count_from_zero() {
    let mut rig = Rig::new();
    rig.counters = Counters::default();
    assert_eq!(rig.at(1, 30, 0), None);
    assert_eq!(rig.at(2, 70, 70), opened(100, 70, 10));
}
