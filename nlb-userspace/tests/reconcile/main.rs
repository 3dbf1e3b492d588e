//! On the way from one desired state to another, and when the maps refuse a change in the middle of it: the maps work at
//! every step.

mod faults;
mod generated;
mod invariants;
mod order;
