//! Leases: how long a module counts as alive without a sign of life.
//!
//! A heartbeat renews the lease. After a few missed ones the lease has lapsed, and the module gets no new flows until
//! its next heartbeat; long after that it is forfeit, and the module must register again.

use std::time::Duration;

use tokio::time::Instant;

use crate::model::settings::LeaseConfig;

impl LeaseConfig {
    /// What modules expect that have not been told otherwise.
    const CUSTOMARY_INTERVAL: Duration = Duration::from_secs(10);

    fn lapse_after(&self) -> Duration {
        self.interval * self.missed
    }

    /// The terms for a module that has not sent a heartbeat yet: the first answer tells it our interval.
    fn at_first(&self) -> LeaseConfig {
        let interval = self.interval.max(Self::CUSTOMARY_INTERVAL);
        let evict_after = self.evict_after.max(interval * (self.missed + 1));
        LeaseConfig { interval, evict_after, ..*self }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    Current,
    /// Too many heartbeats missed; the next one restores it.
    Lapsed,
    /// Silent for so long that the registration is void.
    Forfeit,
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

    pub fn standing(&self, terms: &LeaseConfig, now: Instant) -> Standing {
        let terms = if self.heard { *terms } else { terms.at_first() };
        match now.saturating_duration_since(self.renewed) {
            silence if silence >= terms.evict_after => Standing::Forfeit,
            silence if silence >= terms.lapse_after() => Standing::Lapsed,
            _ => Standing::Current,
        }
    }

    pub fn age(&self, now: Instant) -> Duration {
        now.saturating_duration_since(self.renewed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(seconds: u64) -> Standing {
        let start = Instant::now();
        Lease::new(start).standing(&LeaseConfig::default(), start + Duration::from_secs(seconds))
    }

    #[test]
    fn lapses_after_three_missed_heartbeats_and_is_forfeit_after_five_minutes() {
        assert_eq!(after(0), Standing::Current);
        assert_eq!(after(29), Standing::Current);
        assert_eq!(after(30), Standing::Lapsed);
        assert_eq!(after(299), Standing::Lapsed);
        assert_eq!(after(300), Standing::Forfeit);
    }

    #[test]
    fn a_short_interval_holds_once_the_module_has_heard_of_it() {
        let terms =
            LeaseConfig { interval: Duration::from_secs(1), missed: 3, evict_after: Duration::from_secs(20) };
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        assert_eq!(lease.standing(&terms, at(29)), Standing::Current);
        assert_eq!(lease.standing(&terms, at(30)), Standing::Lapsed);
        lease.renew(at(10));
        assert_eq!(lease.standing(&terms, at(12)), Standing::Current);
        assert_eq!(lease.standing(&terms, at(13)), Standing::Lapsed);
        assert_eq!(lease.standing(&terms, at(30)), Standing::Forfeit);
    }

    #[test]
    fn renewal_and_extension_push_the_end_away() {
        let (start, terms) = (Instant::now(), LeaseConfig::default());
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lease = Lease::new(start);
        lease.renew(at(20));
        assert_eq!(lease.standing(&terms, at(49)), Standing::Current);
        lease.extend(Duration::from_secs(40));
        assert_eq!(lease.standing(&terms, at(89)), Standing::Current);
        assert_eq!(lease.standing(&terms, at(90)), Standing::Lapsed);
    }
}
