//! The MarchProxy NLB: everything of it that runs in user space.
//!
//! One folder is one room, and a room imports only rooms that stand below it; from the top down:
//!
//! | room | what it is |
//! |---|---|
//! | `cli` | the `nlb` command |
//! | `daemon` | puts the daemon together and runs it |
//! | `grpc` | the gRPC services, and the calls to modules |
//! | `datapath` | all that touches the kernel |
//! | `controllers` | tasks that observe something and write the registry |
//! | `telemetry` | metrics and alarms |
//! | `store` | what outlives the daemon, on disk |
//! | `registry` | the single writer of desired state |
//! | `policy` | pure decisions |
//! | `reconcile` | the loop that brings the maps to what is desired |
//! | `compile` | desired state to the rows of the maps |
//! | `config` | settings from flags, environment and file |
//! | `model` | desired state as plain data |
//!
//! `cargo xtask tidy` holds the order of the rooms.

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
