//! Decisions without a clock, a wire or a registry: they are shown what there is, and say what is to be done.

pub mod balance;
pub mod health;
pub mod lease;
pub mod promotion;
pub mod scaling;
