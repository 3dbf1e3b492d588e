//! Conversions between protobuf and the model. Invalid messages are refused here, with the name of the field.

pub mod any;
pub mod credentials;
pub mod enums;
pub mod error;
pub mod health_check;
pub mod heartbeat_report;
pub mod instance;
pub mod listing;
pub mod numbers;
pub mod pagination;
pub mod points;
pub mod route;
pub mod scaling_config;
pub mod split;
pub mod validate;
