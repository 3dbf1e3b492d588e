//! One valid request for each call, with every message inside it filled in, so that a test's bad value is its
//! only fault.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb::model::settings::LeaseConfig;
use nlb::model::settings::Settings;
use nlb::registry::{Commit, State};
use nlb_proto::*;
use prost::Message;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;
use tonic::transport::Channel;

use crate::config;
use crate::fake_module::{Fake, FakeHandle};
use crate::fleet::{registration_at, route, without_control};
use crate::nlb::Nlb;
use crate::settings::StateDir;

/// An instance whose own server accepts all calls.
const MODULE: &str = "alb-1";

/// A fleet in which every valid request succeeds.
pub struct Fleet {
    pub nlb: Nlb,
    pub channel: Channel,
    module: FakeHandle,
    registration_id: String,
    /// A time after any lease was renewed.
    later: Instant,
    _state_dir: StateDir,
}

impl Fleet {
    pub async fn start() -> Fleet {
        let state_dir = StateDir::new();
        let mut nlb = config::start(&state_dir).await;
        // No module sends heartbeats, so leases have to outlast the test.
        let hour = Duration::from_secs(3600);
        let lease = LeaseConfig { interval: hour, missed: 3, evict_after: 10 * hour };
        let settings = Settings { lease, ..(*nlb.registry.settings()).clone() };
        nlb.registry.configure(settings, Commit::Apply).expect("no module is registered yet");
        let module = nlb.add_fake(MODULE, 1, "v1", Fake::CONFIRMS).await;
        nlb.add_fake("alb-2", 2, "v2", Fake::CONFIRMS).await;
        // The test learns the id by registering again; the address stays the same.
        let instance = nlb.listed(MODULE).await;
        let again =
            RegisterModuleRequest { instance, initial_routes: vec![route("web")], ..Default::default() };
        let registration_id = nlb.add(again).await;
        let split = SetTrafficWeightRequest { version: "v2".into(), weight: 10, ..Default::default() };
        assert!(nlb.front.set_traffic_weight(split).await.unwrap().into_inner().success);
        let limit = SetRateLimitRequest { limit: Some(limit()), ..Default::default() };
        assert!(nlb.front.set_rate_limit(limit).await.unwrap().into_inner().success);
        let server = Channel::from_shared(format!("http://{}", nlb.address)).unwrap();
        let channel = server.connect().await.unwrap();
        let later = Instant::now() + 24 * hour;
        Fleet { nlb, channel, module, registration_id, later, _state_dir: state_dir }
    }

    /// Everything that a call could change: the desired state, and the calls that a module got.
    pub fn state(&self) -> String {
        let mut state = State::clone(&self.nlb.registry.snapshot());
        self.align_leases(&mut state);
        format!("{state:?} {:?}", self.module.calls())
    }

    /// On a busy machine the NLB may extend all leases by the time of a standstill. A call could renew one
    /// lease, which is visible as a difference from the others.
    fn align_leases(&self, state: &mut State) {
        let ages = state.modules.values().map(|record| record.lease.age(self.later));
        let Some(shift) = ages.min() else { return };
        let aligned = state.modules.iter().map(|(instance_id, record)| {
            let mut record = record.as_ref().clone();
            record.lease.extend(shift);
            (instance_id.clone(), Arc::new(record))
        });
        state.modules = aligned.collect();
    }

    /// The shortest valid heartbeat.
    pub fn heartbeat(&self) -> HeartbeatRequest {
        let (instance_id, registration_id) = (MODULE.to_owned(), self.registration_id.clone());
        HeartbeatRequest { instance_id, registration_id, ..HeartbeatRequest::default() }
    }

    pub fn request(&self, call: &str) -> Vec<u8> {
        let instance_id = MODULE.to_owned();
        let registration_id = self.registration_id.clone();
        let (start_time, end_time) = (now(), now());
        match call {
            "RegisterModule" => {
                let mut request = without_control(registration_at("alb-3", 3, "v1"));
                request.instance.as_mut().expect("it names an instance").started_at = now();
                let interval_seconds = 5;
                let health_config = Some(HealthCheckConfig { interval_seconds, ..Default::default() });
                bytes(RegisterModuleRequest { health_config, ..request })
            }
            "UnregisterModule" => {
                bytes(UnregisterModuleRequest { instance_id, registration_id, ..Default::default() })
            }
            "Heartbeat" => bytes(HeartbeatRequest {
                status: HealthStatus::Healthy.into(),
                current_stats: Some(ModuleStats { since: now(), ..Default::default() }),
                timestamp: now(),
                ..self.heartbeat()
            }),
            "ListModules" => bytes(ListModulesRequest { query: query("version"), ..Default::default() }),
            "GetModuleInfo" => bytes(GetModuleInfoRequest { instance_id }),
            "UpdateRouting" => bytes(UpdateRoutingRequest {
                routes: vec![route("more")],
                source_instance_id: instance_id,
                registration_id,
                ..Default::default()
            }),
            "GetRoutingTable" => {
                bytes(GetRoutingTableRequest { query: query("route_id"), ..Default::default() })
            }
            "RouteRequest" => bytes(RouteRequestRequest { route: Some(packet()), ..Default::default() }),
            "ValidateRoute" => bytes(ValidateRouteRequest { route: Some(route("web")) }),
            "ReportMetrics" => {
                let point = MetricDataPoint { name: "queue".into(), timestamp: now(), ..Default::default() };
                let metrics =
                    ModuleMetrics { metrics: vec![point], collected_at: now(), ..Default::default() };
                let (metrics, reported_at) = (Some(metrics), now());
                bytes(ReportMetricsRequest { instance_id, metrics, reported_at, registration_id })
            }
            "GetNLBMetrics" => bytes(GetNlbMetricsRequest {
                metric_names: metric_names(),
                start_time,
                end_time,
                aggregate: false,
            }),
            "GetModuleMetrics" => bytes(GetModuleMetricsRequest {
                instance_id,
                metric_names: vec!["nlb_module*".into()],
                start_time,
                end_time,
            }),
            "StreamNLBMetrics" => {
                bytes(StreamNlbMetricsRequest { metric_names: metric_names(), ..Default::default() })
            }
            "CheckHealth" => bytes(CheckHealthRequest::default()),
            "GetNLBStatus" => bytes(GetNlbStatusRequest::default()),
            "UpdateNLBConfig" => {
                let config = Some(settings());
                bytes(UpdateNlbConfigRequest { config, validate_only: true, restart_required: true })
            }
            "GetNLBConfig" => bytes(GetNlbConfigRequest::default()),
            "RebalanceLoad" => bytes(RebalanceLoadRequest {
                force: true,
                target_instances: vec![instance_id],
                ..Default::default()
            }),
            "GetLoadDistribution" => bytes(GetLoadDistributionRequest::default()),
            "TriggerScaling" => bytes(TriggerScalingRequest {
                instance_id,
                module_type: ModuleType::Alb.into(),
                scaling_action: "set".into(),
                target_instances: 2,
                config: Some(ScalingConfig::default()),
            }),
            "GetStatus" => bytes(GetStatusRequest { instance_id }),
            "Reload" => bytes(ReloadRequest { instance_id, ..Default::default() }),
            "Shutdown" => bytes(ShutdownRequest { instance_id, ..Default::default() }),
            "CanHandle" => bytes(CanHandleRequest { route: Some(route("web")), ..Default::default() }),
            "GetRoutes" => bytes(GetRoutesRequest { instance_id, query: query("route_id") }),
            "UpdateRoutes" => {
                bytes(UpdateRoutesRequest { instance_id, routes: vec![route("more")], ..Default::default() })
            }
            "DeleteRoute" => bytes(DeleteRouteRequest { instance_id, route_id: "web".into() }),
            "GetRateLimits" => bytes(GetRateLimitsRequest::default()),
            "SetRateLimit" => bytes(SetRateLimitRequest { limit: Some(limit()), ..Default::default() }),
            "RemoveRateLimit" => {
                bytes(RemoveRateLimitRequest { limit_id: limit().limit_id, ..Default::default() })
            }
            "GetMetrics" => bytes(GetMetricsRequest {
                instance_id,
                metric_names: vec!["nlb_module*".into()],
                start_time: Some(Default::default()),
                end_time,
            }),
            "Scale" => {
                let config = Some(ScalingConfig { min_instances: 1, max_instances: 3, ..Default::default() });
                bytes(ScaleRequest { instance_id, config, immediate: false })
            }
            "GetInstances" => bytes(GetInstancesRequest::default()),
            "SetTrafficWeight" => {
                bytes(SetTrafficWeightRequest { instance_id, version: "v1".into(), weight: 50 })
            }
            "GetActiveVersion" => bytes(GetActiveVersionRequest { instance_id }),
            "Rollback" => bytes(RollbackRequest { instance_id, ..Default::default() }),
            "PromoteVersion" => bytes(PromoteVersionRequest {
                instance_id: "alb-2".into(),
                version: "v2".into(),
                immediate: false,
                promotion_rate: 10,
            }),
            "HealthCheck" => bytes(HealthCheckRequest { instance_id, ..Default::default() }),
            "GetStats" => bytes(GetStatsRequest { instance_id, ..Default::default() }),
            "StreamMetrics" => bytes(StreamMetricsRequest {
                instance_id,
                metric_names: vec!["nlb_module*".into()],
                ..Default::default()
            }),
            "GetConfig" => bytes(GetConfigRequest { instance_id, ..Default::default() }),
            "UpdateConfig" => {
                bytes(UpdateConfigRequest { instance_id, config: Some(settings()), validate_only: true })
            }
            "DrainModule" => bytes(DrainModuleRequest { instance_id, timeout_seconds: 1 }),
            "ResumeModule" => bytes(ResumeModuleRequest { instance_id }),
            "RemoveModule" => bytes(RemoveModuleRequest { instance_id, force: true }),
            other => panic!("{other} is new: add a valid request here"),
        }
    }
}

fn bytes(message: impl Message) -> Vec<u8> {
    message.encode_to_vec()
}

fn now() -> Option<prost_types::Timestamp> {
    Some(SystemTime::now().into())
}

fn metric_names() -> Vec<String> {
    vec!["nlb_*".into()]
}

fn packet() -> Route {
    Route { source_pattern: "198.51.100.7".into(), ..route("web") }
}

fn limit() -> RateLimit {
    RateLimit {
        limit_id: "limit-1".into(),
        target: "*".into(),
        requests_per_second: 1000,
        requests_per_minute: 60_000,
        requests_per_hour: 3_600_000,
        enabled: true,
        ..Default::default()
    }
}

fn query(field: &str) -> Option<Query> {
    let filter = Filter { field: field.into(), operator: "ne".into(), value: "none".into() };
    let pagination = Some(Pagination { page: 1, page_size: 10, ..Default::default() });
    Some(Query { filters: vec![filter], sort_by: field.into(), pagination, ..Default::default() })
}

fn settings() -> ConfigUpdate {
    let config_data = b"{\"fail_open\":false}".to_vec();
    let checksum = Sha256::digest(&config_data).iter().map(|byte| format!("{byte:02x}")).collect();
    ConfigUpdate { config_type: "nlb".into(), config_data, checksum, updated_at: now(), ..Default::default() }
}
