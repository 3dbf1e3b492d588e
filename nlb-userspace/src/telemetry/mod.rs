//! What operators observe of a running NLB: current metrics, those of the last hour, and alarms in the log.

pub(crate) mod alarms;
pub mod metrics;
