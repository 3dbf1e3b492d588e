//! What the data path has counted, as plain numbers.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Backend, L4};

/// The data path's counts at one moment. Counters only grow; gauges are current values.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Traffic {
    pub backends: BTreeMap<Arc<Backend>, Counts>,
    /// Gauge: flows by service.
    pub service_flows: BTreeMap<(IpAddr, u16, L4), u64>,
    /// By limit id, since the limit was set.
    pub limits: BTreeMap<String, LimitCounts>,
    /// Packets by exit: (verdict, reason), as in `nlb_common::verdict`.
    pub exits: BTreeMap<(&'static str, &'static str), u64>,
    pub packets_seen: u64,
    /// Packets forwarded by hash alone, because the flow table had no room for their flow.
    pub unrecorded: u64,
    /// New flows that found every instance of their pool full.
    pub full: u64,
    /// Packets without a service that should have raised an upcall, and did not.
    pub unasked: u64,
    /// Packets that the data path counted as sent, and the kernel could not redirect: by interface and by the
    /// kernel's error, such as `EOPNOTSUPP`.
    pub lost_redirects: BTreeMap<(String, String), u64>,
}

/// Counts of one backend, or of several added up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Flows that were recorded.
    pub new_flows: u64,
    /// The flows of `new_flows` that have ended: closed, idle for too long, or evicted from the flow table. A
    /// flow that continues after that is not counted again.
    pub closed_flows: u64,
    /// Gauge: flows that are neither closed nor idle for too long.
    pub active_flows: u64,
    /// The TCP flows of `active_flows`, which a drain waits for.
    pub active_tcp_flows: u64,
    /// Packets from clients, as received.
    pub packets: u64,
    pub bytes: u64,
    /// Packets from the backend, if its replies pass the NLB.
    pub reply_packets: u64,
    pub reply_bytes: u64,
    pub resets: u64,
}

/// Counts of one rate limit, in its unit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LimitCounts {
    pub passed: u64,
    pub refused: u64,
}

impl Traffic {
    /// The counts of all backends of an instance.
    pub fn instance(&self, instance_id: &str) -> Counts {
        self.backends.iter().filter(|(b, _)| b.instance_id == instance_id).map(|(_, c)| *c).sum()
    }

    pub fn total(&self) -> Counts {
        self.backends.values().copied().sum()
    }
}

impl std::iter::Sum for Counts {
    fn sum<I: Iterator<Item = Counts>>(counts: I) -> Counts {
        counts.fold(Counts::default(), |a, b| Counts {
            new_flows: a.new_flows + b.new_flows,
            closed_flows: a.closed_flows + b.closed_flows,
            active_flows: a.active_flows + b.active_flows,
            active_tcp_flows: a.active_tcp_flows + b.active_tcp_flows,
            packets: a.packets + b.packets,
            bytes: a.bytes + b.bytes,
            reply_packets: a.reply_packets + b.reply_packets,
            reply_bytes: a.reply_bytes + b.reply_bytes,
            resets: a.resets + b.resets,
        })
    }
}
