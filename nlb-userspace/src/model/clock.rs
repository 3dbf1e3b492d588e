//! Time as it comes into a change: read once, and passed on.

use std::time::SystemTime;

use tokio::time::Instant;

/// Both clocks, read once per call: one for deadlines, one for people.
#[derive(Clone, Copy, Debug)]
pub struct Now {
    pub at: Instant,
    pub wall: SystemTime,
}

impl Now {
    pub fn read() -> Self {
        Now { at: Instant::now(), wall: SystemTime::now() }
    }
}
