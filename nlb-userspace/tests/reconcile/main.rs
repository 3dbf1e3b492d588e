//! The maps work at every step from one desired state to another, also if the maps refuse a change in the
//! middle.

mod faults;
mod generated;
mod invariants;
mod order;
