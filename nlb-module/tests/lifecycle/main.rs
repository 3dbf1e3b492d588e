//! A module's life with the SDK, from registration to the last connection, against a fake NLB.

mod control;
mod fake_nlb;
mod leaving;
mod mirror;
mod registration;
mod versions;
