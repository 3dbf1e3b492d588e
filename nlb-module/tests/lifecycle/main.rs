//! A module's life with the SDK, from registration to the last connection, against an NLB that does as a test wants.

mod control;
mod fake_nlb;
mod leaving;
mod mirror;
mod registration;
mod versions;
