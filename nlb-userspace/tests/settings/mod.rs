//! Settings for the rigs that run the control plane without a kernel.

mod state_dir;

use std::time::Duration;

use nlb::model::ForwardMode;
use nlb::model::settings::LeaseConfig;
use nlb::model::settings::Settings;
use nlb::model::settings::TableSizes;

pub use state_dir::StateDir;

/// Room for a few of everything, and no VIPs: routes may name any address.
pub fn settings() -> Settings {
    Settings {
        vips: Default::default(),
        fail_open: true,
        reject: false,
        drop_closed_ports: false,
        learn_routes: false,
        lease: LeaseConfig::default(),
        promotion: Default::default(),
        resets: Default::default(),
        max_modules: 16,
        max_routes: 64,
        limits: TableSizes {
            backends: 64,
            services: 64,
            pools: 64,
            addresses: 64,
            rate_limits: 64,
            source_prefixes: 1000,
            counted_routes: 64,
        },
        accept_empty_ids: false,
        forward_mode: ForwardMode::Nat,
        drain_timeout: Duration::from_secs(30),
    }
}
