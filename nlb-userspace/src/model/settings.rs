//! What an operator configures about modules and about the size of the maps.

use std::time::Duration;

use super::ForwardMode;
use super::vips::Vips;

/// What the operator configured about modules.
#[derive(Clone, Debug, PartialEq)]
pub struct Settings {
    pub vips: Vips,
    pub fail_open: bool,
    pub reject: bool,
    pub drop_closed_ports: bool,
    pub learn_routes: bool,
    pub lease: LeaseConfig,
    pub promotion: PromotionConfig,
    pub resets: OutlierConfig,
    pub max_modules: usize,
    /// Over all modules and the operator.
    pub max_routes: usize,
    /// What the maps have room for.
    pub limits: TableSizes,
    /// Let callers leave registration_id empty.
    pub accept_empty_ids: bool,
    /// Of modules that name none.
    pub forward_mode: ForwardMode,
    /// Of callers that name none.
    pub drain_timeout: Duration,
}

/// The configured patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// How often modules are asked to send heartbeats.
    pub interval: Duration,
    /// Heartbeats that may go missing before the lease lapses.
    pub missed: u32,
    /// Silence after which the module is forgotten.
    pub evict_after: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        LeaseConfig { interval: Duration::from_secs(10), missed: 3, evict_after: Duration::from_secs(300) }
    }
}

/// The configured pace and patience.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotionConfig {
    /// Between steps, and how long the version is watched after the last one.
    pub step: Duration,
    /// Of requests that fail, or of new flows that are reset: beyond it the promotion is taken back.
    pub max_error_percent: u32,
}

impl Default for PromotionConfig {
    fn default() -> Self {
        PromotionConfig { step: Duration::from_secs(30), max_error_percent: 5 }
    }
}

/// What the operator allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// Resets of new TCP flows, in percent, beyond which a module counts as failing; 0 leaves resets out of account.
    pub max_percent: u32,
    /// How long the first exclusion lasts.
    pub back_off: Duration,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        OutlierConfig { max_percent: 50, back_off: Duration::from_secs(10) }
    }
}

/// How many of each there can be: the lengths of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    pub backends: u16,
    pub services: u16,
    pub pools: u16,
    pub addresses: u16,
    pub rate_limits: u16,
    /// Over all services, as often as each of them tells its clients apart by one.
    pub source_prefixes: u32,
    /// Routes that are counted one by one.
    pub counted_routes: u16,
}

impl TableSizes {
    /// The numbers of pools, which are the places of their map: twice as many as may be in use, so that all pools can change at
    /// once and none takes the number of another that packets still look into.
    pub fn pool_numbers(&self) -> u16 {
        self.pools.saturating_mul(2)
    }
}
