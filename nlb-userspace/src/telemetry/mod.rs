//! What operators see of a running NLB: metrics of now and of the last hour, and alarms in the log.

pub mod alarms;
pub mod metrics;
