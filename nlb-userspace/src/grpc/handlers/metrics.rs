//! GetNLBMetrics, GetModuleMetrics and StreamNLBMetrics: the NLB's own metrics, and what modules reported.

use std::collections::HashMap;
use std::future::ready;

use nlb_proto::{
    GetModuleMetricsRequest, GetModuleMetricsResponse, GetNlbMetricsRequest, GetNlbMetricsResponse,
    MetricDataPoint, ModuleMetrics, ModuleType, StreamNlbMetricsRequest, StreamNlbMetricsResponse,
};
use prost_types::Timestamp;

use super::control::Control;
use super::metrics_stream::Subscription;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::points::{Points, extent, select, spawn_blocking};
use crate::grpc::convert::{enums, validate};
use crate::registry::State;
use crate::telemetry::metrics::reported::Ledger;

impl Control {
    pub async fn nlb_metrics(
        &self,
        request: GetNlbMetricsRequest,
    ) -> Result<GetNlbMetricsResponse, CallError> {
        let view = self.metrics.view();
        let times = (request.start_time, request.end_time);
        let extent = extent(times, request.aggregate, &view)?;
        let ledgers = self.metrics.reported.all();
        let selection = select(&request.metric_names, &[])?;
        let state = self.registry.snapshot();
        spawn_blocking(move || {
            let mut points = Points::new(&selection, &extent);
            let metrics = points.own(&view, |_| true)?;
            let modules = ledgers.iter().map(|(id, ledger)| {
                Ok((id.clone(), module_metrics(&state, id, ledger, points.reported(ledger)?)))
            });
            let module_metrics = modules.collect::<Result<HashMap<_, _>, CallError>>()?;
            let collected_at = Some(view.latest.at.into());
            let history_since = view.history.since().map(Into::into);
            Ok(GetNlbMetricsResponse { metrics, module_metrics, collected_at, history_since })
        })
        .await
    }

    pub async fn metrics_of_module(
        &self,
        request: GetModuleMetricsRequest,
    ) -> Result<GetModuleMetricsResponse, CallError> {
        let instance_id = validate::id("instance_id", &request.instance_id)?;
        let view = self.metrics.view();
        let extent = extent((request.start_time, request.end_time), false, &view)?;
        let state = self.registry.snapshot();
        let module_type = state.record(&instance_id)?.registration.module.module_type;
        let ledger = self.metrics.reported.of(&instance_id);
        let selection = select(&request.metric_names, &[])?;
        spawn_blocking(move || {
            let mut points = Points::new(&selection, &extent);
            let mut metrics = points.own(&view, |subject| subject.instance_id() == Some(&instance_id))?;
            if let Some(ledger) = ledger {
                metrics.extend(points.reported(&ledger)?);
            }
            let collected_at: Option<Timestamp> = Some(view.latest.at.into());
            let metrics = ModuleMetrics {
                instance_id,
                module_type: enums::module_type_to_wire(module_type).into(),
                metrics,
                collected_at,
            };
            let history_since = view.history.since().map(Into::into);
            Ok(GetModuleMetricsResponse { metrics: Some(metrics), collected_at, history_since })
        })
        .await
    }

    pub fn subscribe(
        &self,
        request: StreamNlbMetricsRequest,
    ) -> Result<Subscription<StreamNlbMetricsResponse>, CallError> {
        let interval = validate::unsigned_32("interval_seconds", request.interval_seconds)?.max(1);
        let selection = select(&request.metric_names, &[])?;
        let (registry, reported) = (self.registry.clone(), self.metrics.reported.clone());
        let include_modules = request.include_modules;
        Ok(Subscription::start(self.metrics.clone(), interval.into(), move |view| {
            let mut points = Points::latest(&selection);
            let mut response = StreamNlbMetricsResponse {
                metrics: points.own(&view, |_| true).unwrap_or_default(),
                timestamp: Some(view.latest.at.into()),
                ..Default::default()
            };
            if include_modules {
                let state = registry.snapshot();
                let modules = reported.all().into_iter().filter_map(|(id, ledger)| {
                    let own = module_metrics(&state, &id, &ledger, points.reported(&ledger).ok()?);
                    Some((id, own))
                });
                response.module_metrics = modules.collect();
            }
            ready(Ok(response))
        }))
    }
}

fn module_metrics(
    state: &State,
    instance_id: &str,
    ledger: &Ledger,
    metrics: Vec<MetricDataPoint>,
) -> ModuleMetrics {
    let module_type = state.record(instance_id).map(|record| record.registration.module.module_type);
    let module_type = module_type.map_or(ModuleType::Unspecified, enums::module_type_to_wire).into();
    let collected_at = Some(ledger.collected_at.into());
    ModuleMetrics { instance_id: instance_id.to_owned(), module_type, metrics, collected_at }
}
