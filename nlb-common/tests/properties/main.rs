//! Properties of the packet logic, over generated packets and flows.
//!
//! They are here and not beside the code, because generators need `std`, which the crate does not use.

mod checksum;
mod contention;
mod flow;
mod gue;
mod limit;
mod packet;
mod parse;
mod port;
mod quic;
mod rewrite;
mod upcall;
