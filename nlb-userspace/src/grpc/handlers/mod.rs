//! The handlers of calls: they request changes from the registry, or read its state.

pub(crate) mod config;
pub(crate) mod control;
pub(crate) mod lifecycle;
pub(crate) mod load;
pub(crate) mod maintenance;
pub(crate) mod metrics;
pub(crate) mod metrics_stream;
pub(crate) mod module_routes;
pub(crate) mod rate_limits;
pub(crate) mod rebalance;
pub(crate) mod registration;
pub(crate) mod relay;
pub(crate) mod report_metrics;
pub(crate) mod routing;
pub(crate) mod routing_table;
pub(crate) mod scaling;
pub(crate) mod statistics;
pub(crate) mod status;
pub(crate) mod versions;
