//! The flow table: which backend a flow belongs to.
//!
//! A set-associative cache in a plain array, shared by both directions. A flow's hash picks a bucket of four entries of
//! 32 bytes, two cache lines that lie side by side. There is no lock and no helper call, and a hit writes nothing but,
//! twice a second, the time.
//!
//! A *forward* entry is keyed by client and VIP and holds the backend. A *reply* entry, which only NAT needs, is keyed
//! by what the backend's packets look like and holds the place of the forward entry, where the rest is looked up; it
//! counts only while that entry still points back at it.

mod key;
mod state;
mod table;

pub use key::{Direction, Key};
pub use state::{IdleTimes, State, first_phase, next_phase, phase};
pub use table::{Bucket, Entry, WAYS};
