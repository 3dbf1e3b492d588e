//! The flow table: the backend of each flow.
//!
//! It is a set-associative cache in a plain array, shared by both directions. A flow's hash selects a bucket
//! of four entries of 32 bytes, which is two adjacent cache lines. There is no lock and no helper call, and a
//! hit writes only the time, twice a second.
//!
//! A *forward* entry has a key of client and VIP, and holds the backend. A *reply* entry, which only NAT
//! needs, has a key of the backend's packets, and holds the number of the forward entry, where the rest is
//! looked up. It is valid only while the forward entry matches it.

mod key;
mod mark;
pub mod port;
mod state;
mod table;

pub use key::{Direction, Key};
pub use mark::{Mark, TcpClock};
pub use state::{IdleTimes, State, first_phase, next_phase, phase};
pub use table::{Bucket, Entry, WAYS};
