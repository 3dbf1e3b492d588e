//! Pure decisions: functions of the state that they are given, without a clock, I/O or the registry.

pub mod balance;
pub mod health;
pub mod lease;
pub mod promotion;
pub mod scaling;
