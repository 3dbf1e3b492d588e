//! Tasks that observe something (time, modules, names, the data path's counters) and write the registry.

pub(crate) mod active_version;
pub(crate) mod can_handle;
pub(crate) mod drain;
pub mod health_checks;
pub mod lease_watcher;
pub mod network_watcher;
pub(crate) mod promotion_watcher;
pub mod reset_watcher;
pub mod resolve;
pub mod route_learning;
pub(crate) mod scaling;
