//! The part of the MarchProxy NLB that runs in user space.
//!
//! Each folder is a layer, which the lints call a room, and imports only rooms below it; from the top down:
//!
//! | room | what it is |
//! |---|---|
//! | `cli` | the `nlb` command |
//! | `daemon` | puts the daemon together and runs it |
//! | `grpc` | the gRPC services, and the calls to modules |
//! | `datapath` | all access to the kernel |
//! | `controllers` | tasks that observe something and write the registry |
//! | `telemetry` | metrics and alarms |
//! | `store` | persisted state on disk |
//! | `registry` | the single writer of the desired state |
//! | `policy` | pure decisions |
//! | `reconcile` | the loop that applies the desired state to the maps |
//! | `compile` | compiles the desired state to the rows of the maps |
//! | `config` | settings from flags, environment and file |
//! | `model` | the desired state as plain data |
//!
//! `cargo xtask tidy` checks the order of the rooms.

// What no other crate can name is `pub(crate)`, so that the compiler reports it once nothing uses it.
#![warn(unreachable_pub)]

pub mod cli;
pub mod compile;
pub mod config;
pub mod controllers;
pub mod daemon;
pub mod datapath;
pub mod grpc;
pub mod model;
pub mod policy;
pub mod reconcile;
pub mod registry;
pub mod store;
pub mod telemetry;
