//! Alarms: losses that only an operator can end are logged when they begin and for as long as they last.
//!
//! Most drops are due to the dropped packet. These are due to a shortage in the NLB, or to an interface that
//! takes no redirected packets: counters show them too, but operators mostly look at those only after a
//! failure.

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

/// The remedies for failed redirects, by the kernel's error.
const REDIRECT_REMEDIES: [(&str, &str); 5] = [
    ("EOPNOTSUPP", NOT_READY),
    ("ENXIO", NOT_READY),
    ("ENETDOWN", "the interface is down: `ip link set dev <it> up`"),
    ("EMSGSIZE", "the packets are longer than the interface's MTU: give all interfaces one MTU"),
    ("ENOBUFS", "the driver's queues are full: raise their number or length (`ethtool -L`, `ethtool -G`)"),
];

/// `EOPNOTSUPP` since Linux 6.3, `ENXIO` before.
const NOT_READY: &str = "it does not take redirected packets. A veth takes them once its other end has GRO or an XDP program: run \
                         `ethtool -K <its other end> gro on` there. If a driver cannot take them, use --xdp-mode generic";

/// Logs such losses. Runs until it is dropped.
pub(crate) async fn watch(mut traffic: watch::Receiver<Arc<Traffic>>) -> Infallible {
    let mut alarms = Alarms::default();
    while traffic.changed().await.is_ok() {
        let now = traffic.borrow_and_update().clone();
        for message in alarms.look(&now, Instant::now()) {
            warn!("{message}");
        }
    }
    std::future::pending().await
}

/// The count and time of the last message about each loss.
#[derive(Default)]
struct Alarms(BTreeMap<String, (u64, Instant)>);

impl Alarms {
    /// The messages that are due now, with the packets lost since the last one about the same.
    fn look(&mut self, traffic: &Traffic, now: Instant) -> Vec<String> {
        let mut due = Vec::new();
        for (reason, remedy) in SHORTAGES {
            let count = traffic.exits.get(&("drop", reason)).copied().unwrap_or(0);
            if let Some(packets) = self.due(format!("drop {reason}"), count, now) {
                due.push(format!("{packets} packets dropped as {reason}: {remedy}"));
            }
        }
        for ((interface, error), count) in &traffic.lost_redirects {
            if let Some(packets) = self.due(format!("redirect {interface} {error}"), *count, now) {
                let known = REDIRECT_REMEDIES.iter().find(|(known, _)| known == error);
                let remedy = known.map_or(String::new(), |(_, remedy)| format!(": {remedy}"));
                due.push(format!("{packets} packets redirected to {interface} are lost ({error}){remedy}"));
            }
        }
        due
    }

    /// How many packets to log for a loss, if it is time for that.
    fn due(&mut self, loss: String, count: u64, now: Instant) -> Option<u64> {
        let (reported, at) = self.0.get(&loss).map_or((0, None), |(reported, at)| (*reported, Some(*at)));
        let due = count > reported && at.is_none_or(|at| now - at >= REPEAT_AFTER);
        due.then(|| {
            self.0.insert(loss, (count, now));
            count - reported
        })
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
            due.iter()
                .map(|message| message.split_once(':').expect("a remedy").0.to_owned())
                .collect::<Vec<_>>()
        };
        const NONE: [&str; 0] = [];
        assert_eq!(reported("snat_ports", 0, 0), NONE);
        assert_eq!(reported("snat_ports", 7, 1), ["7 packets dropped as snat_ports"]);
        assert_eq!(reported("snat_ports", 9, 2), NONE, "not twice within a minute");
        assert_eq!(
            reported("flow_table", 1, 3),
            ["1 packets dropped as flow_table"],
            "another reason at once"
        );
        assert_eq!(reported("snat_ports", 12, 61), ["5 packets dropped as snat_ports"]);
        assert_eq!(reported("snat_ports", 12, 200), NONE, "the drops have ended");
        assert_eq!(reported("l4_header", 50, 300), NONE, "no shortage of the NLB");
    }

    #[test]
    fn failed_redirects_are_logged_by_interface_with_the_remedy() {
        let (mut alarms, start) = (Alarms::default(), Instant::now());
        let mut reported = |lost: &[(&str, &str, u64)], second| {
            let lost = lost
                .iter()
                .map(|(interface, error, packets)| ((interface.to_string(), error.to_string()), *packets));
            let traffic = Traffic { lost_redirects: lost.collect(), ..Traffic::default() };
            alarms.look(&traffic, start + Duration::from_secs(second))
        };
        let first = reported(&[("eth0", "EOPNOTSUPP", 3), ("eth1", "EINVAL", 2)], 0);
        assert_eq!(first.len(), 2);
        assert!(first[0].starts_with("3 packets redirected to eth0 are lost (EOPNOTSUPP): "), "{first:?}");
        assert!(first[0].contains("`ethtool -K <its other end> gro on`"), "{first:?}");
        assert_eq!(first[1], "2 packets redirected to eth1 are lost (EINVAL)");
        assert!(reported(&[("eth0", "EOPNOTSUPP", 9)], 30).is_empty(), "not twice within a minute");
        let again = reported(&[("eth0", "EOPNOTSUPP", 9), ("eth1", "EINVAL", 2)], 60);
        assert!(again.len() == 1 && again[0].starts_with("6 packets redirected to eth0"), "{again:?}");
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
