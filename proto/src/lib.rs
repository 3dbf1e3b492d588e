//! The MarchProxy wire contract between modules and the NLB.
//!
//! The `.proto` files beside this crate are the documentation. `tests/contract.rs` freezes fields 1-99 of
//! every message.

mod generated {
    tonic::include_proto!("marchproxy");
}

pub use generated::*;

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("marchproxy");
