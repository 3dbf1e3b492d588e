//! Pure decisions: functions of the state that they are given, without a clock, I/O or the registry.

pub(crate) mod balance;
pub mod health;
pub(crate) mod lease;
pub(crate) mod promotion;
pub(crate) mod scaling;
