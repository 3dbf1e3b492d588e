//! The queue of destinations that modules are asked about. Has no I/O, and the time is an argument.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::destination::L4Destination;
use crate::model::upcall::Question;

/// The most destinations that wait. At the pace below, the last one is asked about while its upcall is
/// pending.
pub(super) const WAITING: usize = 64;

/// The most destinations that modules are asked about at a time.
pub(super) const MAX_IN_FLIGHT: usize = 16;

/// The time from one destination to the next: 20 a second.
pub(super) const PACE: Duration = Duration::from_millis(50);

pub(super) struct UpcallQueue {
    waiting: VecDeque<Question>,
    /// Destinations that wait, and those that modules are being asked about.
    known: BTreeSet<L4Destination>,
    /// When modules may be asked about the next destination.
    next: Instant,
}

impl UpcallQueue {
    pub(super) fn new(now: Instant) -> Self {
        UpcallQueue { waiting: VecDeque::new(), known: BTreeSet::new(), next: now }
    }

    /// Adds a question, or returns it if too many wait. A question about a known destination needs nothing
    /// more: its upcall had expired in the kernel.
    pub(super) fn take(&mut self, question: Question) -> Result<(), Question> {
        if self.known.contains(&question.destination) {
            return Ok(());
        }
        if self.waiting.len() >= WAITING {
            return Err(question);
        }
        self.known.insert(question.destination);
        self.waiting.push_back(question);
        Ok(())
    }

    /// When to call [`UpcallQueue::next`]; `None` if another event has to come first.
    pub(super) fn alarm(&self) -> Option<Instant> {
        let in_flight = self.known.len() - self.waiting.len();
        (!self.waiting.is_empty() && in_flight < MAX_IN_FLIGHT).then_some(self.next)
    }

    /// The next question, if its time has come. It is in flight until it is done.
    pub(super) fn next(&mut self, now: Instant) -> Option<Question> {
        self.alarm().filter(|at| *at <= now)?;
        self.next = now + PACE;
        self.waiting.pop_front()
    }

    pub(super) fn done(&mut self, destination: &L4Destination) {
        self.known.remove(destination);
    }
}
