//! Leases: how long a module counts as alive without a sign of life.
//!
//! A heartbeat renews the lease. After a few missed ones the lease has lapsed, and the module gets no new flows until
//! its next heartbeat; long after that it is forfeit, and the module must register again.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::settings::LeaseConfig;

impl LeaseConfig {
    /// What modules expect that have not been told otherwise.
    const DEFAULT_INTERVAL: Duration = Duration::from_secs(10);

    fn expires_after(&self) -> Duration {
        self.interval * self.missed
    }

    /// The terms for a module that has not sent a heartbeat yet: the first answer tells it our interval.
    fn before_first_heartbeat(&self) -> LeaseConfig {
        let interval = self.interval.max(Self::DEFAULT_INTERVAL);
        let evict_after = self.evict_after.max(interval * (self.missed + 1));
        LeaseConfig { interval, evict_after, ..*self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LeaseState {
    Valid,
    /// Too many heartbeats missed; the next one restores it.
    Expired,
    /// Silent for so long that the registration is void.
    Evicted,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Lease {
    renewed: Instant,
    /// A heartbeat has come.
    heard: bool,
}

impl Lease {
    pub fn new(now: Instant) -> Self {
        Lease { renewed: now, heard: false }
    }

    pub fn renew(&mut self, now: Instant) {
        self.renewed = now;
        self.heard = true;
    }

    /// Adds time in which heartbeats could not have been heard.
    pub fn extend(&mut self, by: Duration) {
        self.renewed += by;
    }

    pub fn state(&self, terms: &LeaseConfig, now: Instant) -> LeaseState {
        let terms = if self.heard { *terms } else { terms.before_first_heartbeat() };
        match now.saturating_duration_since(self.renewed) {
            silence if silence >= terms.evict_after => LeaseState::Evicted,
            silence if silence >= terms.expires_after() => LeaseState::Expired,
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
    fn lapses_after_three_missed_heartbeats_and_is_forfeit_after_five_minutes() {
        assert_eq!(after(0), LeaseState::Valid);
        assert_eq!(after(29), LeaseState::Valid);
        assert_eq!(after(30), LeaseState::Expired);
        assert_eq!(after(299), LeaseState::Expired);
        assert_eq!(after(300), LeaseState::Evicted);
    }

    #[test]
    fn a_short_interval_holds_once_the_module_has_heard_of_it() {
        let terms =
            LeaseConfig { interval: Duration::from_secs(1), missed: 3, evict_after: Duration::from_secs(20) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        assert_eq!(lease.state(&terms, at(29)), LeaseState::Valid);
        assert_eq!(lease.state(&terms, at(30)), LeaseState::Expired);
        lease.renew(at(10));
        assert_eq!(lease.state(&terms, at(12)), LeaseState::Valid);
        assert_eq!(lease.state(&terms, at(13)), LeaseState::Expired);
        assert_eq!(lease.state(&terms, at(30)), LeaseState::Evicted);
    }

    #[test]
    fn renewal_and_extension_push_the_end_away() {
        let (start, terms) = (Instant::now(), LeaseConfig::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        lease.renew(at(20));
        assert_eq!(lease.state(&terms, at(49)), LeaseState::Valid);
        lease.extend(Duration::from_secs(40));
        assert_eq!(lease.state(&terms, at(89)), LeaseState::Valid);
        assert_eq!(lease.state(&terms, at(90)), LeaseState::Expired);
    }
}
