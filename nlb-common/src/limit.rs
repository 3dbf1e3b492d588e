//! Rate limits: at what moment the next packet is due.
//!
//! The generic cell rate algorithm (ITU-T I.371, annex A): a window's whole state is one word, the moment at which what it
//! let through would have been due at exactly its rate. A packet may be early by the burst and no more, and moves that
//! moment on by its own cost. One word can be exchanged at once, so all CPUs share it and their sum is exact; a packet
//! that is refused writes nothing, so that a flood does not make the CPUs wait for each other.
//!
//! Moments are nanoseconds shifted left by a window's `shift`, for rates beyond one unit in a nanosecond. They wrap around,
//! and are compared by their difference.

use crate::atomic::Word;

/// A rate: so many units in so much time.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Window {
    /// Time that one unit takes at the rate, shifted. 0 is no limit.
    pub cost: u64,
    /// Time that units may come early: the burst, shifted.
    pub tolerance: u64,
    /// A moment further ahead than this is none that charges have made: the word has wrapped around since.
    pub furthest: u64,
    pub shift: u32,
    pub _pad: u32,
}

/// The finest step that is counted in: 1 / 2^20 of a nanosecond.
const MAX_SHIFT: u32 = 20;

/// A cost of so many steps is exact to a thousandth.
const EXACT: u64 = 1 << 12;

/// How late a CPU may be with a packet, in nanoseconds: a hypervisor may stop it after it has read the clock.
const LAG: u64 = 1_000_000_000;

/// Bounds tolerances and costs, so that no sum of them comes near half of what 64 bits count.
const MAX_TIME: u64 = 1 << 59;

/// The most bytes that an IP packet has.
pub const MAX_BYTES: u64 = 40 + 65_535;

impl Window {
    /// `units` every `nanoseconds`, of which `burst` (at least 1) may come at once. One packet costs up to `largest`, which
    /// is at most [`MAX_BYTES`].
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
        // No finer than needed, so that moments seldom wrap around.
        let shift = (0..MAX_SHIFT).find(|shift| exact(*shift) || !fits(shift + 1)).unwrap_or(MAX_SHIFT);
        let cost = (time(1, shift) as u64).clamp(1, MAX_TIME / MAX_BYTES);
        let tolerance = time(burst, shift).min(MAX_TIME as u128) as u64;
        // Twice what one CPU can make it, since several may pass packets at the same time.
        let furthest = 2 * tolerance.max(cost * largest) + (LAG << shift);
        Window { cost, tolerance, furthest, shift, _pad: 0 }
    }

    /// Whether `units` more may pass at `now` (in nanoseconds). `slack` is how coarse the clock is, also in nanoseconds.
    #[inline(always)]
    pub fn admits(&self, due: &Word, now: u64, slack: u64, units: u64) -> bool {
        let slack = slack << self.shift;
        let early = self.early(due.load(), now);
        // More than the burst at once passes when nothing else did lately.
        self.cost == 0 || early <= slack || early + self.cost * units <= self.tolerance + slack
    }

    /// Counts `units` that pass at `now`.
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

    /// How far ahead of its rate the window is.
    #[inline(always)]
    fn early(&self, due: u64, now: u64) -> u64 {
        let ahead = due.wrapping_sub(now << self.shift);
        if ahead > self.furthest { 0 } else { ahead }
    }
}

/// How often a charge is tried while other CPUs charge the same window. Each failure means that one of them succeeded.
const TRIES: u32 = 16;
