//! Calls to modules, and the tasks that make them.

pub mod active_version;
pub mod can_handle;
pub mod fan_out;
pub mod health_prober;
pub mod peers;
pub mod route_learning;
