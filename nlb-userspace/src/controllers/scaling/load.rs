//! The load of a group, from its heartbeats and from the data path.

use std::collections::BTreeSet;

use crate::model::traffic::Traffic;
use crate::policy::scaling::load::Load;
use crate::registry::Record;

pub(super) fn of(members: &[&Record], traffic: &Traffic) -> Load {
    let ids: BTreeSet<&str> = members.iter().map(|record| record.registration.instance_id.as_str()).collect();
    let backends = traffic.backends.iter();
    let flows = backends.filter(|(backend, _)| ids.contains(backend.instance_id.as_str()));
    Load {
        instances: members.len().try_into().unwrap_or(u32::MAX),
        cpu_percent: mean(members.iter().filter_map(|r| Some(r.report.as_ref()?.cpu_usage_percent))),
        memory_percent: mean(members.iter().filter_map(|record| memory_percent(record))),
        connections: flows.map(|(_, counts)| counts.active_flows).sum(),
    }
}

/// The contract has no field for the size of memory: an instance that wants to be measured by it reports it
/// in its custom_stats or in its metadata.
fn memory_percent(record: &Record) -> Option<f64> {
    const TOTAL: &str = "memory_total_mb";
    let report = record.report.as_ref()?;
    let total = report.custom.get(TOTAL).or_else(|| record.registration.metadata.get(TOTAL))?;
    let total: f64 = total.parse().ok().filter(|total: &f64| total.is_finite() && *total > 0.0)?;
    Some(100.0 * report.memory_usage_mb / total)
}

fn mean(values: impl Iterator<Item = f64>) -> Option<f64> {
    let (count, sum) = values.fold((0u32, 0.0), |(count, sum), value| (count + 1, sum + value));
    (count > 0).then(|| sum / f64::from(count))
}
