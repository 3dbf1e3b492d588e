//! Calls to modules, and the tasks that make them.

pub(crate) mod active_version;
pub(crate) mod can_handle;
pub(crate) mod fan_out;
pub(crate) mod health_prober;
pub(crate) mod peers;
pub(crate) mod route_learning;
