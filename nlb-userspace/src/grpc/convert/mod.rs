//! Conversions between protobuf and the model. Invalid messages are refused here, with the name of the field.

pub(crate) mod any;
pub(crate) mod credentials;
pub(crate) mod deployment;
pub(crate) mod enums;
pub(crate) mod error;
pub(crate) mod health_check;
pub(crate) mod heartbeat_report;
pub(crate) mod instance;
pub(crate) mod listing;
pub(crate) mod numbers;
pub(crate) mod pagination;
pub(crate) mod points;
pub(crate) mod route;
pub(crate) mod scaling_config;
pub(crate) mod split;
pub(crate) mod validate;
