//! GetLoadDistribution: the load of every instance, and how even the loads are.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, SystemTime};

use nlb_proto::{GetLoadDistributionRequest, GetLoadDistributionResponse, LoadInfo, ModuleType};

use super::control::Control;
use super::registration::by_instance;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::{enums, validate};
use crate::model::Health;
use crate::model::traffic::Traffic;
use crate::policy::balance::{self, Load, Vitals};
use crate::registry::{Record, State};
use crate::telemetry::metrics::catalogue::{
    ACTIVE_FLOWS, CPU, Kind, LATENCY, MEMORY, NEW_FLOWS, QUEUE, REPORTS,
};
use crate::telemetry::metrics::{HOUR, Subject, View, history};

/// The time over which current rates are computed.
const RATE_WINDOW: Duration = Duration::from_secs(10);

impl Control {
    pub fn load_distribution(
        &self,
        request: GetLoadDistributionRequest,
    ) -> Result<GetLoadDistributionResponse, CallError> {
        let module_type = validate::known::<ModuleType>("module_type_filter", request.module_type_filter)?;
        let state = self.registry.snapshot();
        let mut loads = self.loads(&state, |record| {
            let own = enums::module_type_to_wire(record.registration.module.module_type);
            module_type == ModuleType::Unspecified || own == module_type
        });
        if request.include_historical {
            let view = self.metrics.view();
            loads.iter_mut().for_each(|load| add_rates(load, &view));
        }
        let infos = loads.iter().zip(balance::scores(&loads)).map(|(load, score)| info(load, score));
        Ok(GetLoadDistributionResponse {
            distribution: infos.map(|info| (info.instance_id.clone(), info)).collect(),
            balance_score: balance::balance(&loads),
            measured_at: Some(SystemTime::now().into()),
        })
    }

    /// The current load of the selected instances.
    pub fn loads(&self, state: &State, wanted: impl Fn(&Record) -> bool) -> Vec<Load> {
        let traffic = self.traffic.borrow().clone();
        let counts = by_instance(&traffic);
        let full = full_instances(state, &traffic);
        let view = self.metrics.view();
        let records: BTreeMap<_, _> = state.modules.iter().filter(|(_, record)| wanted(record)).collect();
        let load = |(id, record): (&String, &std::sync::Arc<Record>)| {
            let module = &record.registration.module;
            let is_split = !state.rollouts.of(&module.deployment).version_weights.is_empty();
            let release = is_split.then(|| (module.deployment.clone(), module.version.clone()));
            let capacity = match record.health() {
                _ if full.contains(id.as_str()) => 0.0,
                Health::Healthy => f64::from(record.asked_weight),
                Health::Degraded => f64::from(record.asked_weight) / 2.0,
                Health::Starting | Health::Unhealthy | Health::Stopping => 0.0,
            };
            let active_flows = counts.get(id).map_or(0, |counts| counts.active_flows);
            Load {
                instance_id: id.clone(),
                group: Some((module.module_type, release)),
                capacity,
                active_flows: active_flows as f64,
                new_flows_per_second: rate(id, &view, RATE_WINDOW),
                vitals: record.report.as_ref().map(|report| Vitals {
                    cpu_percent: report.cpu_usage_percent,
                    memory_mb: report.memory_usage_mb,
                    latency_ms: report.avg_latency_ms,
                    queue_depth: report.queue_depth() as f64,
                }),
            }
        };
        records.into_iter().map(load).collect()
    }
}

/// The instances that have as many active flows as they may have. The data path counts exactly, and these
/// counts are of the last second.
pub(super) fn full_instances<'a>(state: &'a State, traffic: &Traffic) -> BTreeSet<&'a str> {
    let modules = state.modules.iter().map(|(id, record)| (id.as_str(), &record.registration.module));
    let limited = modules.filter(|(_, module)| module.max_connections > 0);
    let full =
        limited.filter(|(id, module)| traffic.instance(id).active_flows >= u64::from(module.max_connections));
    full.map(|(id, _)| id).collect()
}

/// New flows per second over the last `time`, as far as the history reaches.
fn rate(instance_id: &str, view: &View, time: Duration) -> f64 {
    let newest = view.latest.at;
    let subject = Subject::Instance { instance_id: instance_id.to_owned() };
    let moments = view.history.moments(&subject, &(newest - time..=newest));
    let increase = history::aggregate(Kind::Counter, NEW_FLOWS, &moments).unwrap_or_default();
    // A new series was counted for one second more than there are gaps between its samples.
    let gaps = moments.len() - usize::from(moments.first().is_some_and(|first| !first.born));
    if gaps == 0 { 0.0 } else { increase / gaps as f64 }
}

/// Replaces the current load by the means of the last hour.
fn add_rates(load: &mut Load, view: &View) {
    let newest = view.latest.at;
    let hour = newest - HOUR..=newest;
    let instance_id = || load.instance_id.clone();
    let flows = view.history.moments(&Subject::Instance { instance_id: instance_id() }, &hour);
    let reports = view.history.moments(&Subject::Report { instance_id: instance_id() }, &hour);
    let mean = |column: usize| {
        let held = history::aggregate(Kind::Gauge, column, &reports)?;
        Some(REPORTS[column].value(held))
    };
    load.active_flows = history::aggregate(Kind::Gauge, ACTIVE_FLOWS, &flows).unwrap_or_default();
    load.new_flows_per_second = rate(&load.instance_id, view, HOUR);
    load.vitals = mean(CPU).zip(mean(MEMORY)).zip(mean(LATENCY)).zip(mean(QUEUE)).map(
        |(((cpu, memory), latency), queue_depth)| Vitals {
            cpu_percent: cpu * 100.0,
            memory_mb: memory / (1024.0 * 1024.0),
            latency_ms: latency * 1000.0,
            queue_depth,
        },
    );
}

fn info(load: &Load, load_score: f64) -> LoadInfo {
    let vitals = load.vitals.unwrap_or_default();
    // Casts from floats saturate.
    LoadInfo {
        instance_id: load.instance_id.clone(),
        active_connections: load.active_flows.round() as i32,
        cpu_usage_percent: vitals.cpu_percent,
        memory_usage_mb: vitals.memory_mb,
        requests_per_second: load.new_flows_per_second.round() as i64,
        avg_latency_ms: vitals.latency_ms,
        queue_depth: vitals.queue_depth.round() as i32,
        load_score,
    }
}
