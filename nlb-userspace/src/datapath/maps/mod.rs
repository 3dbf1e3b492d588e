//! The maps as something that changes are applied to.
//!
//! A change is data; a [`MapStore`] performs it. There are two: the kernel's maps, and an in-memory one for tests that
//! fails when told to. Both keep the same promise: a change either happens whole or not at all.

mod access;
pub mod bpf;
pub mod fake;
mod grace;
pub mod layout;
mod memory;
pub mod prefixes;
pub mod programs;
mod slabs;
pub mod swap;
pub mod upcalls;
