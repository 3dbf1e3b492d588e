//! The question of a CanHandle call.

use super::RouteKey;

/// Whether this instance can handle this route.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Question {
    pub instance_id: String,
    pub route: RouteKey,
}
