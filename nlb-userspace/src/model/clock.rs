//! The time of a change, which is read once and then an argument.

use std::time::SystemTime;

use tokio::time::Instant;

/// Both clocks, read once per call: one for deadlines, one for display.
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
