//! Alarms: drops that only an operator can end are logged when they begin and for as long as they last.
//!
//! Most drops are due to the dropped packet. These are due to a shortage in the NLB: counters show them too,
//! but operators mostly look at those only after a failure.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;
use tracing::warn;

use crate::model::traffic::Traffic;

/// The least time between two messages with the same reason.
const REPEAT_AFTER: Duration = Duration::from_secs(60);

/// Reasons of drops, and their remedies.
const SHORTAGES: [(&str, &str); 4] = [
    (
        "snat_ports",
        "no source port is free towards a backend: widen --snat-ports, add backends, or let them answer clients by their \
         own addresses (reply_path = nlb)",
    ),
    ("flow_table", "no room in the flow table for NAT flows: raise --max-flows"),
    ("park_full", "too many packets wait for next hops: see whether the backends' neighbours answer"),
    ("internal", "a look-up failed that cannot fail, which is a bug; please report it"),
];

/// Logs shortages. Runs until it is dropped.
pub(crate) async fn watch(mut traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    let mut alarms = Alarms::default();
    while traffic.changed().await.is_ok() {
        let now = traffic.borrow_and_update().clone();
        for (reason, packets, remedy) in alarms.look(&now, Instant::now()) {
            warn!("{packets} packets dropped as {reason}: {remedy}");
        }
    }
    std::future::pending().await
}

/// The count and time of the last message by reason.
#[derive(Default)]
struct Alarms(BTreeMap<&'static str, (u64, Instant)>);

impl Alarms {
    /// The reasons to log now, with the packets dropped since the last message.
    fn look(&mut self, traffic: &Traffic, now: Instant) -> Vec<(&'static str, u64, &'static str)> {
        let mut due = Vec::new();
        for (reason, remedy) in SHORTAGES {
            let count = traffic.exits.get(&("drop", reason)).copied().unwrap_or(0);
            let (reported, at) =
                self.0.get(reason).map_or((0, None), |(reported, at)| (*reported, Some(*at)));
            if count > reported && at.is_none_or(|at| now - at >= REPEAT_AFTER) {
                due.push((reason, count - reported, remedy));
                self.0.insert(reason, (count, now));
            }
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn traffic(reason: &'static str, packets: u64) -> Traffic {
        Traffic { exits: [(("drop", reason), packets)].into(), ..Traffic::default() }
    }

    #[test]
    fn a_shortage_is_logged_at_once_and_then_once_a_minute() {
        let (mut alarms, start) = (Alarms::default(), Instant::now());
        let mut reported = |reason, packets, second| {
            let due = alarms.look(&traffic(reason, packets), start + Duration::from_secs(second));
            due.into_iter().map(|(reason, packets, _)| (reason, packets)).collect::<Vec<_>>()
        };
        assert_eq!(reported("snat_ports", 0, 0), []);
        assert_eq!(reported("snat_ports", 7, 1), [("snat_ports", 7)]);
        assert_eq!(reported("snat_ports", 9, 2), [], "not twice within a minute");
        assert_eq!(reported("flow_table", 1, 3), [("flow_table", 1)], "another reason at once");
        assert_eq!(reported("snat_ports", 12, 61), [("snat_ports", 5)]);
        assert_eq!(reported("snat_ports", 12, 200), [], "the drops have ended");
        assert_eq!(reported("l4_header", 50, 300), [], "no shortage of the NLB");
    }

    /// The reasons are those of the data path.
    #[test]
    fn every_reason_exists() {
        use nlb_common::verdict::DropReason;
        for (reason, _) in SHORTAGES {
            assert!(DropReason::ALL.iter().any(|known| known.name() == reason), "{reason}");
        }
    }
}
