//! Rate limits.
//!
//! This is the generic cell rate algorithm (ITU-T I.371, annex A): the state of a window is one word, the
//! theoretical arrival time of the next unit at exactly the window's rate. A packet may come early by at most
//! the burst, and advances that time by its own cost. All CPUs exchange the one word, so their sum is exact;
//! a refused packet writes nothing, so a flood causes no contention.
//!
//! Times are nanoseconds shifted left by a window's `shift`, for rates beyond one unit in a nanosecond. They
//! wrap around, and are compared by their difference.

use crate::atomic::Word;

/// A rate: a number of units in a time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// The time of one unit at the rate, shifted. 0 means no limit.
    pub cost: u64,
    /// How early units may come: the burst, shifted.
    pub tolerance: u64,
    /// No charge advances the word further than this. A word further ahead has wrapped around.
    pub furthest: u64,
    pub shift: u32,
    pub _pad: u32,
}

/// The finest step of time: 1 / 2^20 of a nanosecond.
const MAX_SHIFT: u32 = 20;

/// A cost of at least so many steps is exact to a thousandth.
const EXACT: u64 = 1 << 12;

/// How late a CPU may charge a packet, in nanoseconds: a hypervisor may stop the CPU between its reading of
/// the clock and the charge.
const LAG: u64 = 1_000_000_000;

/// Bounds tolerances and costs, so that their sums stay far below half of 64 bits.
const MAX_TIME: u64 = 1 << 59;

/// The most bytes of an IP packet.
pub const MAX_BYTES: u64 = 40 + 65_535;

impl Window {
    /// `units` every `nanoseconds`, with a burst of at least 1. One packet costs at most `largest`, which is
    /// at most [`MAX_BYTES`].
    pub fn new(units: u64, nanoseconds: u64, burst: u64, largest: u64) -> Window {
        if units == 0 {
            return Window::default();
        }
        let time = |units_of_cost: u64, shift: u32| {
            (nanoseconds as u128 * units_of_cost as u128).checked_shl(shift).unwrap_or(u128::MAX)
                / units as u128
        };
        let burst = burst.max(1);
        let fits = |shift: u32| time(burst.max(MAX_BYTES), shift) <= MAX_TIME as u128;
        let exact = |shift: u32| time(1, shift) >= EXACT as u128;
        // The shift is no larger than needed, so that times seldom wrap around.
        let shift = (0..MAX_SHIFT).find(|shift| exact(*shift) || !fits(shift + 1)).unwrap_or(MAX_SHIFT);
        let cost = (time(1, shift) as u64).clamp(1, MAX_TIME / MAX_BYTES);
        let tolerance = time(burst, shift).min(MAX_TIME as u128) as u64;
        // Twice as far as one CPU can advance the word, since several CPUs may charge at the same time.
        let furthest = 2 * tolerance.max(cost * largest) + (LAG << shift);
        Window { cost, tolerance, furthest, shift, _pad: 0 }
    }

    /// Whether `units` more may pass at `now`, in nanoseconds. `slack` is the resolution of the clock.
    #[inline(always)]
    pub fn admits(&self, due: &Word, now: u64, slack: u64, units: u64) -> bool {
        let slack = slack << self.shift;
        let early = self.early(due.load(), now);
        // A packet larger than the burst passes if the window is idle.
        self.cost == 0 || early <= slack || early + self.cost * units <= self.tolerance + slack
    }

    /// Charges `units` at `now`.
    #[inline(always)]
    pub fn charge(&self, due: &Word, now: u64, units: u64) {
        if self.cost == 0 {
            return;
        }
        let mut tries = 0;
        while tries < TRIES {
            let before = due.load();
            let start = (now << self.shift).wrapping_add(self.early(before, now));
            if due.exchange(before, start.wrapping_add(self.cost * units)) {
                return;
            }
            tries += 1;
        }
    }

    /// How far the window is ahead of its rate.
    #[inline(always)]
    fn early(&self, due: u64, now: u64) -> u64 {
        let ahead = due.wrapping_sub(now << self.shift);
        if ahead > self.furthest { 0 } else { ahead }
    }
}

/// How often a charge is tried while other CPUs charge the same window. Each failure means that one of them
/// succeeded.
const TRIES: u32 = 16;
