//! The maps that changes are applied to.
//!
//! A change is data; a [`MapStore`] performs it. One implementation writes the kernel's maps; another is in
//! memory, for tests, and fails on demand. Both apply a change completely or not at all.

mod access;
pub mod bpf;
pub mod fake;
mod grace;
pub(crate) mod layout;
pub mod macs;
pub(super) mod memory;
pub(crate) mod prefixes;
pub(crate) mod programs;
mod slabs;
pub(crate) mod swap;
pub mod upcalls;
