//! The control plane as its clients see it: a real server on loopback, real clients, and maps in memory.

mod commands;
mod config;
mod fleet;
mod leaving;
mod malformed;
mod nlb;
mod registration;
mod routing;
mod service;
mod weights;
