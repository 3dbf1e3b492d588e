//! Counts summed by instance and by version of a deployment.
//!
//! An instance's backends are added and removed as its routes and addresses change, and a removed backend has
//! no counts. A sum of the current counts could decrease, and would be no counter. So what each backend
//! counted since the last reading is added to sums that are kept.

use std::borrow::Borrow;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::model::traffic::{Counts, Traffic};
use crate::model::{Backend, Deployment};

/// A version of a deployment.
pub(super) type Release = (Deployment, String);

#[derive(Debug, Default)]
pub(super) struct Totals {
    /// The counts of each backend at the last reading, and the version that they were added to.
    seen: BTreeMap<Arc<Backend>, (Counts, Release)>,
    pub instances: BTreeMap<String, Counts>,
    pub versions: BTreeMap<Release, Counts>,
    pub all: Counts,
}

impl Totals {
    /// Adds what was counted since the last reading. `versions` are those of the registered instances.
    pub(super) fn add(&mut self, traffic: &Traffic, versions: &BTreeMap<&str, Release>) {
        let sums = self.instances.values_mut().chain(self.versions.values_mut()).chain([&mut self.all]);
        for sum in sums {
            (sum.active_flows, sum.active_tcp_flows) = (0, 0);
        }
        let is_gone = |backend: &Arc<Backend>, _: &mut _| !traffic.backends.contains_key(backend);
        let gone: Vec<_> = self.seen.extract_if(.., is_gone).collect();
        for (backend, counts) in &traffic.backends {
            let (before, version) = self.seen.entry(backend.clone()).or_default();
            // An instance that has just been removed still counts for its version.
            if let Some(now) = versions.get(backend.instance_id.as_str()).filter(|now| *now != version) {
                version.clone_from(now);
            }
            let grown = since(counts, before);
            *before = *counts;
            let instance = value_of(&mut self.instances, backend.instance_id.as_str());
            for sum in [instance, value_of(&mut self.versions, &*version), &mut self.all] {
                *sum = [*sum, grown].into_iter().sum();
            }
        }
        // The flows of a removed backend have ended.
        for (backend, (last, version)) in gone {
            let ended = Counts {
                closed_flows: last.new_flows.saturating_sub(last.closed_flows),
                ..Counts::default()
            };
            let sums = [self.instances.get_mut(&backend.instance_id), self.versions.get_mut(&version)];
            for sum in sums.into_iter().flatten().chain([&mut self.all]) {
                *sum = [*sum, ended].into_iter().sum();
            }
        }
        for (instance_id, version) in versions {
            value_of(&mut self.instances, *instance_id);
            value_of(&mut self.versions, version);
        }
        let counting: BTreeSet<&str> = self.seen.keys().map(|backend| backend.instance_id.as_str()).collect();
        self.instances.retain(|id, _| versions.contains_key(id.as_str()) || counting.contains(id.as_str()));
        let counting = self.seen.values().map(|(_, version)| version);
        let living: BTreeSet<&Release> = versions.values().chain(counting).collect();
        self.versions.retain(|version, _| living.contains(version));
    }
}

/// The value of this key. It nearly always exists, and then the key is not copied.
fn value_of<'a, Q, K, V>(map: &'a mut BTreeMap<K, V>, key: &Q) -> &'a mut V
where
    Q: Ord + ToOwned<Owned = K> + ?Sized,
    K: Ord + Borrow<Q>,
    V: Default,
{
    if !map.contains_key(key) {
        map.insert(key.to_owned(), V::default());
    }
    map.get_mut(key).expect("the key was inserted")
}

/// The increase of counters since `before`, and the values of gauges. A counter that decreased restarted at
/// 0.
fn since(now: &Counts, before: &Counts) -> Counts {
    let grown = |now: u64, before: u64| now.checked_sub(before).unwrap_or(now);
    Counts {
        new_flows: grown(now.new_flows, before.new_flows),
        closed_flows: grown(now.closed_flows, before.closed_flows),
        active_flows: now.active_flows,
        active_tcp_flows: now.active_tcp_flows,
        packets: grown(now.packets, before.packets),
        bytes: grown(now.bytes, before.bytes),
        reply_packets: grown(now.reply_packets, before.reply_packets),
        reply_bytes: grown(now.reply_bytes, before.reply_bytes),
        resets: grown(now.resets, before.resets),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{ForwardMode, RouteKey, Snat};

    fn release(deployment: &str, version: &str) -> Release {
        (Deployment::named(deployment), version.to_owned())
    }

    fn traffic(counts: &[(&str, u16, u64)]) -> Traffic {
        let backend = |(instance_id, port, packets): &(&str, u16, u64)| {
            let backend = Backend {
                instance_id: instance_id.to_string(),
                route: Some(RouteKey { id: "web".into(), operators: false }),
                addr: "10.0.0.1".parse().unwrap(),
                port: *port,
                mode: ForwardMode::Nat,
                snat: Snat::Always,
            };
            (Arc::new(backend), Counts { packets: *packets, active_flows: 1, ..Counts::default() })
        };
        Traffic { backends: counts.iter().map(backend).collect(), ..Traffic::default() }
    }

    #[test]
    fn sums_outlive_the_backends_that_made_them() {
        let versions = BTreeMap::from([("a", release("ALB", "v1")), ("b", release("ALB", "v1"))]);
        let mut totals = Totals::default();
        totals.add(&traffic(&[("a", 80, 5), ("a", 81, 7), ("b", 80, 1)]), &versions);
        assert_eq!((totals.instances["a"].packets, totals.instances["a"].active_flows), (12, 2));
        assert_eq!((totals.versions[&release("ALB", "v1")].packets, totals.all.packets), (13, 13));
        totals.add(&traffic(&[("a", 80, 6), ("b", 80, 1)]), &versions);
        assert_eq!((totals.instances["a"].packets, totals.instances["a"].active_flows), (13, 1));
        assert_eq!((totals.versions[&release("ALB", "v1")].packets, totals.all.packets), (14, 14));
        totals.add(&traffic(&[("a", 80, 2), ("b", 80, 1)]), &versions);
        assert_eq!(totals.instances["a"].packets, 15, "a counter that decreased restarted at 0");
    }

    #[test]
    fn removed_instances_are_dropped_and_a_changed_version_counts_from_zero() {
        let mut totals = Totals::default();
        totals.add(
            &traffic(&[("a", 80, 5)]),
            &BTreeMap::from([("a", release("ALB", "v1")), ("idle", release("ALB", "v3"))]),
        );
        assert_eq!(totals.instances["idle"], Counts::default());
        totals.add(&traffic(&[("a", 80, 8)]), &BTreeMap::from([("a", release("ALB", "v2"))]));
        assert_eq!(totals.versions.keys().collect::<Vec<_>>(), [&release("ALB", "v2")]);
        assert_eq!((totals.versions[&release("ALB", "v2")].packets, totals.instances["a"].packets), (3, 8));
        totals.add(&traffic(&[("a", 80, 9)]), &BTreeMap::new());
        assert_eq!((totals.versions[&release("ALB", "v2")].packets, totals.all.packets), (4, 9));
        totals.add(&traffic(&[]), &BTreeMap::new());
        assert!(totals.instances.is_empty() && totals.versions.is_empty());
        assert_eq!(totals.all.packets, 9);
    }

    #[test]
    fn deployments_with_a_version_of_the_same_name_are_counted_apart() {
        let versions = BTreeMap::from([("a", release("ALB", "v1")), ("b", release("DBLB", "v1"))]);
        let mut totals = Totals::default();
        totals.add(&traffic(&[("a", 80, 5), ("b", 80, 1)]), &versions);
        let packets = totals.versions.values().map(|counts| counts.packets);
        assert!(totals.versions.keys().eq(versions.values()) && packets.eq([5, 1]), "{:?}", totals.versions);
    }

    #[test]
    fn flows_end_with_their_backend() {
        let versions = BTreeMap::from([("a", release("ALB", "v1"))]);
        let counting = |port: u16, new_flows: u64, closed_flows: u64| {
            let mut traffic = traffic(&[("a", port, 0)]);
            for counts in traffic.backends.values_mut() {
                *counts = Counts { new_flows, closed_flows, ..*counts };
            }
            traffic
        };
        let mut totals = Totals::default();
        totals.add(&counting(80, 5, 2), &versions);
        assert_eq!((totals.all.new_flows, totals.all.closed_flows), (5, 2));
        totals.add(&counting(81, 1, 0), &versions);
        for sums in [&totals.all, &totals.instances["a"], &totals.versions[&release("ALB", "v1")]] {
            assert_eq!((sums.new_flows, sums.closed_flows), (6, 5), "all of the first backend's");
        }
    }
}
