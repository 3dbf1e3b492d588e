//! Properties of the packet logic, over generated packets and flows.
//!
//! Here and not beside the code, because generators need `std`, which the crate itself must do without.

mod checksum;
mod contention;
mod flow;
mod limit;
mod packet;
mod parse;
mod rewrite;
mod upcall;
