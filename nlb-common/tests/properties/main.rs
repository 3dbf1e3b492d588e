//! Properties of the packet logic, over generated packets and flows.
//!
//! Here and not beside the code, because generators need `std`, which the crate itself must do without.

mod checksum;
mod contention;
mod flow;
mod gue;
mod limit;
mod packet;
mod parse;
mod quic;
mod rewrite;
mod upcall;
