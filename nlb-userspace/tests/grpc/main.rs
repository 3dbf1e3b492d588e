//! The control plane as its clients see it: a real server on loopback, real clients, and maps in memory.

mod abilities;
mod bad_input;
mod broken_modules;
mod cancelled;
mod commands;
mod config;
mod deployments;
mod fake_module;
mod figures;
mod fleet;
mod front;
mod health;
mod leaving;
mod load;
mod malformed;
mod malformed_front;
mod malformed_health;
mod metrics;
mod nlb;
mod other_languages;
mod persistence;
mod rate_limits;
mod registration;
mod reports;
mod routing;
mod scaling;
mod service;
#[path = "../settings/mod.rs"]
mod settings;
mod streams;
mod subscribers;
mod upcalls;
mod weight_requests;
mod weights;
