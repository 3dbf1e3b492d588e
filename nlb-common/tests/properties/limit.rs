//! Rate limits: no more than the rate and the burst, and no less than the rate if there is demand.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;

use nlb_common::atomic::Word;
use nlb_common::limit::{MAX_BYTES, Window};
use proptest::prelude::*;

const SECOND: u64 = 1_000_000_000;
const MINUTE: u64 = 60 * SECOND;
const HOUR: u64 = 60 * MINUTE;

fn passes(window: &Window, due: &Word, now: u64, slack: u64, units: u64) -> bool {
    let passes = window.admits(due, now, slack, units);
    if passes {
        window.charge(due, now, units);
    }
    passes
}

/// How much passes in `span` with one attempt every `step`, by a clock that ticks every `tick`.
fn passed(window: &Window, start: u64, span: u64, step: u64, tick: u64) -> u64 {
    let due = Word::default();
    let mut passed = 0;
    let mut now = start;
    while now < start + span {
        passed += passes(window, &due, now / tick * tick, tick, 1) as u64;
        now += step;
    }
    passed
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// In ten seconds of twice the rate: the burst and the rate, within 1 % and a tick.
    #[test]
    fn the_rate_holds_whatever_the_clock(
        rate in 20_u64..50_000,
        burst in 1_u64..200,
        hertz in prop::sample::select(vec![100_u64, 250, 1000]),
        start in 1_u64..u64::MAX / 4,
    ) {
        let (tick, span) = (SECOND / hertz, 10 * SECOND);
        let window = Window::new(rate, SECOND, burst, 1);
        let got = passed(&window, start, span, SECOND / (2 * rate), tick) as f64;
        let wanted = (rate * 10 + burst) as f64;
        let slack = rate as f64 / hertz as f64 + 1.0;
        prop_assert!((got - wanted).abs() <= wanted * 0.01 + slack, "{got} of {wanted}");
    }

    /// Costs are exact enough for any rate that fits the fields of a RateLimit.
    #[test]
    fn the_cost_of_a_unit_is_exact_to_a_thousandth(
        units in 1_u64..100_000_000_000,
        length in prop::sample::select(vec![SECOND, MINUTE, HOUR]),
    ) {
        let window = Window::new(units, length, units / (length / SECOND), MAX_BYTES);
        let exact = length as f64 / units as f64;
        let counted = window.cost as f64 / (1_u64 << window.shift) as f64;
        prop_assert!((counted / exact - 1.0).abs() < 0.001, "{counted} ns for {exact} ns");
    }

    /// Nothing overflows, whatever limit is configured.
    #[test]
    fn any_limit_admits_something_and_then_refuses(
        units in 1..i64::MAX as u64,
        length in prop::sample::select(vec![SECOND, MINUTE, HOUR]),
        burst in 0..i64::MAX as u64,
        now in any::<u64>(),
        packet in 1..MAX_BYTES,
    ) {
        let window = Window::new(units, length, burst, MAX_BYTES);
        let due = Word::default();
        due.store(now << window.shift);
        prop_assert!(window.admits(&due, now, 0, packet), "an unused limit admits any packet");
        window.charge(&due, now, packet);
        due.store((now << window.shift).wrapping_add(window.tolerance + 1));
        prop_assert!(!window.admits(&due, now, 0, packet), "a used-up burst admits none");
    }
}

#[test]
fn a_burst_may_come_at_once_and_comes_back_with_time() {
    let window = Window::new(100, SECOND, 10, 1);
    let due = Word::default();
    let at = |now, due: &Word| (0..1000).filter(|_| passes(&window, due, now, 0, 1)).count();
    let start = 5 * SECOND;
    assert_eq!(at(start, &due), 10);
    assert_eq!(at(start + SECOND / 100, &due), 1);
    assert_eq!(at(start + SECOND / 20, &due), 4);
    assert_eq!(at(start + 3 * SECOND, &due), 10, "never more than the burst");
}

#[test]
fn a_packet_beyond_the_burst_passes_when_nothing_else_did() {
    let window = Window::new(1000, SECOND, 1000, MAX_BYTES);
    let due = Word::default();
    let start = 7 * SECOND;
    assert!(passes(&window, &due, start, 0, 1500));
    assert!(!passes(&window, &due, start + SECOND, 0, 1500), "the first is not paid for yet");
    assert!(passes(&window, &due, start + 3 * SECOND / 2, 0, 1500));
}

#[test]
fn an_unset_window_limits_nothing() {
    let window = Window::default();
    let due = Word::default();
    assert!((0..1000).all(|_| passes(&window, &due, 1, 0, 65_535)));
    assert_eq!(due.load(), 0, "and writes nothing");
}

/// At the finest fractions the time wraps around every few hours.
#[test]
fn a_limit_that_rested_for_months_is_as_good_as_new() {
    let window = Window::new(1000, SECOND, 1000, MAX_BYTES);
    let due = Word::default();
    let mut now = SECOND;
    for rest in [1, 60, 3600, 86_400, 30 * 86_400, 200 * 86_400] {
        now += rest * SECOND;
        let burst = (0..2000).filter(|_| passes(&window, &due, now, 0, 1)).count();
        assert_eq!(burst, 1000, "after {rest} s");
    }
}

/// The limit is shared by all threads.
#[test]
fn threads_share_one_limit_exactly() {
    let window = Window::new(1_000_000, SECOND, 1000, 1);
    let (due, now, total) = (Word::default(), AtomicU64::new(SECOND), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..400_000 {
                    // Every attempt advances the shared clock by 100 ns: ten times the rate.
                    let now = now.fetch_add(100, Ordering::Relaxed);
                    if passes(&window, &due, now, 0, 1) {
                        total.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    let wanted = 1000 + 1_600_000 * 100 / 1000;
    let total = total.into_inner();
    // A thread may be stopped between the check and the charge, and pass what another thread has used up
    // meanwhile.
    assert!(total.abs_diff(wanted) <= wanted / 100, "{total} of {wanted}");
}
