//! Whose turn it is to be asked about. Knows no wire, and the time only as it is told.

use std::collections::{BTreeSet, VecDeque};
use std::time::Duration;

use tokio::time::Instant;

use crate::model::destination::L4Destination;
use crate::model::upcall::Question;

/// Destinations that wait. At the pace below the last of them is asked about while its question is open in the kernel.
pub const WAITING: usize = 64;

/// Destinations that modules are asked about at a time.
pub const MAX_IN_FLIGHT: usize = 16;

/// From one destination to the next: 20 a second.
pub const PACE: Duration = Duration::from_millis(50);

pub struct UpcallQueue {
    waiting: VecDeque<Question>,
    /// What waits, and what is being asked about.
    known: BTreeSet<L4Destination>,
    /// When the next may be asked about.
    next: Instant,
}

impl UpcallQueue {
    pub fn new(now: Instant) -> Self {
        UpcallQueue { waiting: VecDeque::new(), known: BTreeSet::new(), next: now }
    }

    /// Gives the question back if too many wait. One about a destination that is known already is settled with that: the
    /// kernel had forgotten that it asked.
    pub fn take(&mut self, question: Question) -> Result<(), Question> {
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

    /// When to call [`UpcallQueue::next`], unless it takes something else to happen first.
    pub fn alarm(&self) -> Option<Instant> {
        let in_hand = self.known.len() - self.waiting.len();
        (!self.waiting.is_empty() && in_hand < MAX_IN_FLIGHT).then_some(self.next)
    }

    /// The question whose turn has come. It is in hand until it is done.
    pub fn next(&mut self, now: Instant) -> Option<Question> {
        self.alarm().filter(|at| *at <= now)?;
        self.next = now + PACE;
        self.waiting.pop_front()
    }

    pub fn done(&mut self, destination: &L4Destination) {
        self.known.remove(destination);
    }
}
