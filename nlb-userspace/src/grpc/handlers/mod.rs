//! The handlers of calls: they request changes from the registry, or read its state.

pub mod config;
pub mod control;
pub mod lifecycle;
pub mod load;
pub mod maintenance;
pub mod metrics;
pub mod metrics_stream;
pub mod module_routes;
pub mod rate_limits;
pub mod rebalance;
pub mod registration;
pub mod relay;
pub mod report_metrics;
pub mod routing;
pub mod routing_table;
pub mod scaling;
pub mod statistics;
pub mod status;
pub mod versions;
