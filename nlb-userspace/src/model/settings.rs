//! Settings of operators about modules, and the sizes of the maps.

use std::time::Duration;

use super::ForwardMode;
use super::vips::Vips;

/// Settings about modules.
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
    /// The limit over all modules and the operator.
    pub max_routes: usize,
    /// The sizes of the maps.
    pub limits: TableSizes,
    /// Whether callers may leave registration_id empty.
    pub accept_empty_ids: bool,
    /// The forward mode of modules that give none.
    pub forward_mode: ForwardMode,
    /// The drain timeout of calls that give none.
    pub drain_timeout: Duration,
}

/// The configuration of leases.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeaseConfig {
    /// The heartbeat interval that modules are asked for.
    pub interval: Duration,
    /// Missed heartbeats after which the lease is expired.
    pub missed: u32,
    /// The time without a heartbeat after which the module is evicted.
    pub evict_after: Duration,
}

impl Default for LeaseConfig {
    fn default() -> Self {
        LeaseConfig { interval: Duration::from_secs(10), missed: 3, evict_after: Duration::from_secs(300) }
    }
}

/// The configuration of promotions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PromotionConfig {
    /// The time between steps, and from the last step to the completion.
    pub step: Duration,
    /// The share of failed requests, or of reset new flows, above which a promotion is rolled back.
    pub max_error_percent: u32,
}

impl Default for PromotionConfig {
    fn default() -> Self {
        PromotionConfig { step: Duration::from_secs(30), max_error_percent: 5 }
    }
}

/// The configuration of outlier detection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OutlierConfig {
    /// The share of new TCP flows with a reset, in percent, above which a module is ejected; 0 disables
    /// outlier detection.
    pub max_percent: u32,
    /// The duration of the first ejection.
    pub back_off: Duration,
}

impl Default for OutlierConfig {
    fn default() -> Self {
        OutlierConfig { max_percent: 50, back_off: Duration::from_secs(10) }
    }
}

/// The sizes of the maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TableSizes {
    pub backends: u16,
    pub services: u16,
    pub pools: u16,
    pub addresses: u16,
    pub rate_limits: u16,
    /// Source prefixes over all services, each counted once for each service that has it.
    pub source_prefixes: u32,
    /// Routes that are counted individually.
    pub counted_routes: u16,
}

impl TableSizes {
    /// The ids of pools, which are the indexes of their map: twice as many as may be in use, so that all
    /// pools can change at once, and none takes the id of another that packets still look up.
    pub fn pool_numbers(&self) -> u16 {
        self.pools.saturating_mul(2)
    }
}
