//! Tasks that observe something (time, modules, names, the data path's counters) and write the registry.

pub mod active_version;
pub mod can_handle;
pub mod drain;
pub mod health_checks;
pub mod lease_watcher;
pub mod promotion_watcher;
pub mod reset_watcher;
pub mod resolve;
pub mod route_learning;
pub mod scaling;
