//! Rate limits as rows: each target has two chains of its limits, for new flows and for all packets, in the
//! order of their ids.
//!
//! The kernel looks up the chain of a client's longest limited prefix, so each prefix's chain continues with
//! that of the next shorter prefix that contains it: a packet that is subject to the inner limits is subject
//! to the outer ones.

use std::collections::BTreeMap;

use ipnet::IpNet;
use nlb_common::abi;
use nlb_common::limit::{MAX_BYTES, Window};

use super::ids::Ids;
use super::rows::Rows;
use super::rows::ServiceKey;
use crate::model::prefix::Addr128;
use crate::model::{Desired, LimitTarget, LimitUnit, RateLimit};

/// The enabled limits.
pub(super) fn enabled(desired: &Desired) -> impl Iterator<Item = (&String, &RateLimit)> {
    desired.rate_limits.iter().map(|(id, limit)| (id, limit.as_ref())).filter(|(_, limit)| limit.enabled)
}

/// The longest chain of limits of one kind; the kernel checks at most [`abi::LIMIT_CHAIN`] of a chain.
pub fn longest_chain(desired: &Desired) -> usize {
    let mut lengths: BTreeMap<(&LimitTarget, Kind), usize> = BTreeMap::new();
    for (_, limit) in enabled(desired) {
        *lengths.entry((&limit.target, Kind::of(limit))).or_default() += 1;
    }
    let length = |target: &LimitTarget, kind| lengths.get(&(target, kind)).copied().unwrap_or(0);
    let enclosing = |net: &IpNet, kind: Kind| -> usize {
        let prefixes = (0..=net.prefix_len()).filter_map(|bits| IpNet::new(net.addr(), bits).ok());
        prefixes.map(|outer| length(&LimitTarget::Source(outer.trunc()), kind)).sum()
    };
    let of = |((target, kind), length): (&(&LimitTarget, Kind), &usize)| match target {
        LimitTarget::Source(net) => enclosing(net, *kind),
        _ => *length,
    };
    lengths.iter().map(of).max().unwrap_or(0)
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Flows,
    Packets,
}

impl Kind {
    fn of(limit: &RateLimit) -> Self {
        match limit.unit {
            LimitUnit::NewFlows => Kind::Flows,
            LimitUnit::Packets | LimitUnit::Bytes => Kind::Packets,
        }
    }
}

/// The heads of each target's chains, and the rows of limits.
#[derive(Default)]
pub(super) struct Limited<'a> {
    targets: BTreeMap<&'a LimitTarget, abi::Limits>,
    rows: BTreeMap<u16, abi::Limit>,
}

impl<'a> Limited<'a> {
    pub(super) fn new(desired: &'a Desired, ids: &Ids<String>) -> Self {
        let mut by_target: BTreeMap<&LimitTarget, Vec<(u16, &RateLimit)>> = BTreeMap::new();
        for (id, limit) in enabled(desired) {
            if let Some(id) = ids.get(id) {
                by_target.entry(&limit.target).or_default().push((id, limit));
            }
        }
        let mut limited = Limited::default();
        let mut targets: Vec<_> = by_target.into_iter().collect();
        // A prefix's chain continues with those of the prefixes that contain it.
        targets.sort_by_key(|(target, _)| match target {
            LimitTarget::Source(net) => net.prefix_len(),
            _ => 0,
        });
        for (target, limits) in targets {
            let mut heads = match target {
                LimitTarget::Source(net) => limited.enclosing(net),
                _ => abi::Limits::NONE,
            };
            for (id, limit) in limits.into_iter().rev() {
                let head = match Kind::of(limit) {
                    Kind::Flows => &mut heads.flows,
                    Kind::Packets => &mut heads.packets,
                };
                limited.rows.insert(id, row(limit, *head));
                *head = id;
            }
            limited.targets.insert(target, heads);
        }
        limited
    }

    /// The chains of the longest limited prefix that contains this one.
    fn enclosing(&self, net: &IpNet) -> abi::Limits {
        let outer = (0..net.prefix_len()).rev().find_map(|bits| {
            let outer = IpNet::new(net.addr(), bits).ok()?.trunc();
            self.targets.get(&LimitTarget::Source(outer))
        });
        outer.copied().unwrap_or_default()
    }

    pub(super) fn service(&self, key: &ServiceKey) -> abi::Limits {
        let Some(port) = key.port else { return abi::Limits::NONE };
        self.heads(&LimitTarget::Service(key.vip, port, key.l4))
    }

    pub(super) fn route(&self, id: &str) -> abi::Limits {
        self.heads(&LimitTarget::Route(id.to_owned()))
    }

    fn heads(&self, target: &LimitTarget) -> abi::Limits {
        self.targets.get(target).copied().unwrap_or_default()
    }

    pub(super) fn add_rows(self, rows: &mut Rows) {
        rows.common_limits.all = self.heads(&LimitTarget::All);
        for (target, heads) in &self.targets {
            let LimitTarget::Source(net) = target else { continue };
            rows.limited_sources.insert(Addr128::from(*net), *heads);
            rows.common_limits.by_source.flows |= (heads.flows != 0) as u16;
            rows.common_limits.by_source.packets |= (heads.packets != 0) as u16;
        }
        rows.limits = self.rows;
    }
}

const SECOND: u64 = 1_000_000_000;

fn row(limit: &RateLimit, next: u16) -> abi::Limit {
    let (unit, largest) = match limit.unit {
        LimitUnit::NewFlows => (abi::Limit::FLOWS, 1),
        LimitUnit::Packets => (abi::Limit::PACKETS, 1),
        LimitUnit::Bytes => (abi::Limit::BYTES, MAX_BYTES),
    };
    let burst = burst(limit);
    let windows = [(limit.per_second, 1), (limit.per_minute, 60), (limit.per_hour, 3600)];
    let windows = windows.map(|(units, seconds)| Window::new(units, seconds * SECOND, burst, largest));
    abi::Limit { windows, unit, next, _pad: 0 }
}

/// The units that may come at once.
fn burst(limit: &RateLimit) -> u64 {
    let rates = [limit.per_second, limit.per_minute / 60, limit.per_hour / 3600];
    if limit.burst > 0 { limit.burst } else { rates.into_iter().max().unwrap_or(0).max(1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{L4, Texts};

    fn limit(target: LimitTarget, unit: LimitUnit) -> RateLimit {
        RateLimit {
            target,
            unit,
            per_second: 100,
            per_minute: 0,
            per_hour: 0,
            burst: 0,
            enabled: true,
            metadata: Texts::new(),
        }
    }

    fn source(net: &str) -> LimitTarget {
        LimitTarget::Source(net.parse().unwrap())
    }

    fn compiled(limits: &[(&str, RateLimit)]) -> Rows {
        let rate_limits = limits.iter().map(|(id, limit)| ((*id).to_owned(), limit.clone())).collect();
        let desired = Desired { rate_limits, ..Desired::default() };
        let ids = Ids::new(100).renew(enabled(&desired).map(|(id, _)| id.clone())).unwrap();
        let mut rows = Rows::default();
        Limited::new(&desired, &ids).add_rows(&mut rows);
        rows
    }

    fn chain(rows: &Rows, mut id: u16) -> Vec<u16> {
        let mut chain = Vec::new();
        while id != 0 {
            chain.push(id);
            id = rows.limits[&id].next;
        }
        chain
    }

    #[test]
    fn a_chain_continues_with_that_of_the_outer_prefix() {
        let rows = compiled(&[
            ("a", limit(source("10.1.2.0/24"), LimitUnit::NewFlows)),
            ("b", limit(source("10.0.0.0/8"), LimitUnit::NewFlows)),
            ("c", limit(source("10.0.0.0/8"), LimitUnit::Bytes)),
            ("d", limit(source("10.1.2.0/24"), LimitUnit::NewFlows)),
            ("e", limit(source("fd00::/8"), LimitUnit::Packets)),
        ]);
        let heads = |net: &str| rows.limited_sources[&Addr128::from(net.parse::<IpNet>().unwrap())];
        let inner = heads("10.1.2.0/24");
        assert_eq!(chain(&rows, inner.flows), [1, 4, 2]);
        assert_eq!(chain(&rows, inner.packets), [3], "the limit of the outer prefix alone");
        assert_eq!(chain(&rows, heads("10.0.0.0/8").flows), [2]);
        assert_eq!(chain(&rows, heads("fd00::/8").packets), [5]);
        assert_eq!(rows.common_limits.by_source, abi::Limits { flows: 1, packets: 1 });
    }

    #[test]
    fn the_burst_is_one_second_of_the_highest_rate() {
        let base = limit(LimitTarget::All, LimitUnit::NewFlows);
        for (second, minute, hour, burst, expected) in [
            (100, 0, 0, 0, 100),
            (100, 1200, 0, 0, 100),
            (0, 1200, 0, 0, 20),
            (0, 0, 60, 0, 1),
            (100, 0, 0, 7, 7),
        ] {
            let limit =
                RateLimit { per_second: second, per_minute: minute, per_hour: hour, burst, ..base.clone() };
            assert_eq!(super::burst(&limit), expected, "{limit:?}");
        }
    }

    #[test]
    fn chains_are_measured_with_the_prefixes_around() {
        let rate_limits = [
            ("a", limit(source("10.0.0.0/8"), LimitUnit::Packets)),
            ("b", limit(source("10.1.0.0/16"), LimitUnit::Bytes)),
            ("c", limit(source("10.1.0.0/16"), LimitUnit::NewFlows)),
            ("d", limit(source("10.2.0.0/16"), LimitUnit::Bytes)),
            ("e", limit(LimitTarget::Service("192.0.2.1".parse().unwrap(), 80, L4::Tcp), LimitUnit::Packets)),
            ("f", RateLimit { enabled: false, ..limit(source("10.1.0.0/16"), LimitUnit::Bytes) }),
        ];
        let rate_limits = rate_limits.into_iter().map(|(id, limit)| (id.to_owned(), limit)).collect();
        assert_eq!(longest_chain(&Desired { rate_limits, ..Desired::default() }), 2);
    }
}
