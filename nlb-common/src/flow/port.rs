//! Whether a SNAT port that had a connection may have another one.
//!
//! The end that closes a connection first keeps it in TIME_WAIT, on Linux for 60 s. A backend in TIME_WAIT
//! answers a SYN from the same address and port with an ACK, unless the SYN's timestamp or sequence number is
//! above those of the old connection (RFC 6191 section 2); the client then resets, and tries again a second
//! later. A port therefore rests as long, while others are free. If none is, the port goes to the SYN that
//! the backend accepts.

use super::mark::{Mark, TcpClock};
use super::state::{FINS, IdleTimes, MIN_TICKS, State, phase};

/// How readily a port is given to a new flow: the larger number first.
pub mod rank {
    /// A flow uses it.
    pub const TAKEN: u32 = 0;
    /// Its flow was used and has long been idle: UDP for the closing time, half-closed TCP for four times as
    /// long as a port rests.
    pub const IDLE: u32 = 1 << 16;
    /// Its flow was hardly used: it is opening, or its entry was evicted, for two ticks or more.
    pub const OPENING: u32 = 2 << 16;
    /// Its connection has closed.
    pub const CLOSED: u32 = 3 << 16;
    /// Its connection has closed, and the backend accepts the SYN.
    pub const ACCEPTED: u32 = 4 << 16;
    /// It has rested, or never had another flow.
    pub const RESTED: u32 = u32::MAX - 1;
    /// Above all ranks.
    pub const NEVER: u32 = u32::MAX;
}

/// The last flow from a port.
#[derive(Clone, Copy)]
pub struct LastFlow {
    /// The state of its forward entry or, if that is gone, of its reply entry.
    pub state: State,
    pub is_gone: bool,
    /// Whether it is the flow itself, which is opened again or lost its entry.
    pub itself: bool,
    /// The mark of its reply entry.
    pub mark: Mark,
}

impl LastFlow {
    /// The rank of the port for a flow that begins with `syn`. Among ports of one rank, the one that was in
    /// use last is lowest. `idle` is called where a time is needed: times that are loaded at once take stack.
    #[inline(always)]
    pub fn rank_of_port(&self, syn: TcpClock, now: u16, idle: impl Fn() -> IdleTimes) -> u32 {
        let phase = self.state.phase();
        let age = self.state.age(now);
        let is_closed = phase & phase::UDP == 0 && self.state.is_closed();
        if self.itself && (self.is_gone || is_closed) {
            return rank::RESTED;
        }
        if !is_closed {
            return self.rank_of_open(phase, age, now, idle);
        }
        // Packets on their way may still belong to the old connection.
        if age < MIN_TICKS {
            return rank::TAKEN;
        }
        if phase & phase::RESET != 0 {
            // A forged reset is revoked by the next packet.
            let is_over = self.is_gone || age > idle().closing;
            return if is_over { rank::RESTED } else { rank::ACCEPTED + age as u32 };
        }
        if age > idle().time_wait {
            return rank::RESTED;
        }
        age as u32 + if self.mark.accepts(syn) { rank::ACCEPTED } else { rank::CLOSED }
    }

    /// A flow that lost its entry a moment ago may have it back with its next packet.
    #[inline(always)]
    fn rank_of_open(&self, phase: u8, age: u16, now: u16, idle: impl Fn() -> IdleTimes) -> u32 {
        if self.state.is_expired(now, &idle()) {
            return rank::RESTED;
        }
        if self.is_gone || phase & phase::ESTABLISHED == 0 {
            return if age >= MIN_TICKS { rank::OPENING + age as u32 } else { rank::TAKEN };
        }
        // RFC 5382 section 5 lets a NAT end a partially closed connection after 4 minutes.
        let limit = if phase & phase::UDP != 0 {
            idle().closing
        } else if phase & FINS != 0 {
            idle().time_wait.saturating_mul(4)
        } else {
            return rank::TAKEN;
        };
        if age > limit { rank::IDLE + age as u32 } else { rank::TAKEN }
    }
}
