//! Leases: how long a registration is valid without a heartbeat.
//!
//! A heartbeat renews the lease. After a few missed heartbeats the lease is expired, and the module gets no
//! new flows until its next heartbeat. A lease that has been expired for long is evicted, and the module must
//! register again.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::settings::LeaseConfig;

impl LeaseConfig {
    /// The heartbeat interval of modules that do not know the configured one.
    const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

    fn expires_after(&self) -> Duration {
        self.interval * self.missed
    }

    /// The configuration for a module that has not sent a heartbeat yet: the answer to the first one contains
    /// the interval.
    fn before_first_heartbeat(&self) -> LeaseConfig {
        let interval = self.interval.max(Self::DEFAULT_INTERVAL);
        let evict_after = self.evict_after.max(interval * (self.missed + 1));
        LeaseConfig { interval, evict_after, ..*self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Valid,
    /// Too many heartbeats missed; the next heartbeat makes the lease valid again.
    Expired,
    /// No heartbeat for so long that the registration ends.
    Evicted,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lease {
    renewed: Instant,
    /// Whether a heartbeat has come.
    confirmed: bool,
}

impl Lease {
    pub fn new(now: Instant) -> Self {
        Lease { renewed: now, confirmed: false }
    }

    pub fn renew(&mut self, now: Instant) {
        self.renewed = now;
        self.confirmed = true;
    }

    /// Expires the lease before its time. The next heartbeat makes it valid again.
    pub fn expire(&mut self, config: &LeaseConfig, now: Instant) {
        self.confirmed = true;
        self.renewed = now.checked_sub(config.expires_after()).unwrap_or(self.renewed);
    }

    /// Adds a time in which no heartbeat could be received.
    pub fn extend(&mut self, by: Duration) {
        self.renewed += by;
    }

    pub fn state(&self, config: &LeaseConfig, now: Instant) -> LeaseState {
        let config = if self.confirmed { *config } else { config.before_first_heartbeat() };
        match now.saturating_duration_since(self.renewed) {
            age if age >= config.evict_after => LeaseState::Evicted,
            age if age >= config.expires_after() => LeaseState::Expired,
            _ => LeaseState::Valid,
        }
    }

    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> LeaseState {
        let start = Instant::now();
        Lease::new(start).state(&LeaseConfig::default(), start + Duration::from_secs(seconds))
    }

    #[test]
    fn expires_after_three_missed_heartbeats_and_is_evicted_after_five_minutes() {
        assert_eq!(after(0), LeaseState::Valid);
        assert_eq!(after(29), LeaseState::Valid);
        assert_eq!(after(30), LeaseState::Expired);
        assert_eq!(after(299), LeaseState::Expired);
        assert_eq!(after(300), LeaseState::Evicted);
    }

    #[test]
    fn a_short_interval_counts_from_the_first_heartbeat() {
        let config =
            LeaseConfig { interval: Duration::from_secs(1), missed: 3, evict_after: Duration::from_secs(20) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        assert_eq!(lease.state(&config, at(29)), LeaseState::Valid);
        assert_eq!(lease.state(&config, at(30)), LeaseState::Expired);
        lease.renew(at(10));
        assert_eq!(lease.state(&config, at(12)), LeaseState::Valid);
        assert_eq!(lease.state(&config, at(13)), LeaseState::Expired);
        assert_eq!(lease.state(&config, at(30)), LeaseState::Evicted);
    }

    #[test]
    fn renewal_and_extension_push_the_end_away() {
        let (start, config) = (Instant::now(), LeaseConfig::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        lease.renew(at(20));
        assert_eq!(lease.state(&config, at(49)), LeaseState::Valid);
        lease.extend(Duration::from_secs(40));
        assert_eq!(lease.state(&config, at(89)), LeaseState::Valid);
        assert_eq!(lease.state(&config, at(90)), LeaseState::Expired);
    }
}
