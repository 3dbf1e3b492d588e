//! The MarchProxy NLB: everything of it that runs in user space.
//!
//! `grpc` turns calls into `model`; `registry` holds what is desired; `compile` turns that into the contents of the
//! kernel's maps, and `reconcile` brings the maps there. `stats` reads what the kernel counted.

pub mod ability;
pub mod alarms;
pub mod cli;
pub mod compile;
pub mod config;
pub mod datapath;
pub mod decap;
pub mod descriptors;
pub mod drain;
pub mod grpc;
pub mod health;
pub mod inject;
pub mod inward;
pub mod lease;
pub mod link;
pub mod load;
pub mod loader;
pub mod maps;
pub mod metrics;
pub mod model;
pub mod netlink;
pub mod nexthop;
pub mod park;
pub mod plan;
pub mod promotion;
pub mod reconcile;
pub mod registry;
pub mod resolve;
pub mod scaling;
pub mod serve;
pub mod shutdown;
pub mod stats;
pub mod store;
pub mod upcall;
pub mod vips;
pub mod ways;
pub mod wires;
pub mod wish;
