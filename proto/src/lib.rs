//! The MarchProxy wire contract: what modules and the NLB say to each other.
//!
//! The `.proto` files beside this crate are the documentation. Fields 1-99 of every message are frozen by
//! `tests/contract.rs`.

mod generated {
    tonic::include_proto!("marchproxy");
}

pub use generated::*;

/// The compiled `.proto` files, for server reflection.
pub const FILE_DESCRIPTOR_SET: &[u8] = tonic::include_file_descriptor_set!("marchproxy");
