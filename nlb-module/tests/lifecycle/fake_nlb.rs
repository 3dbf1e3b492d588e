//! An NLB that records the calls of modules, and answers as the test configures it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nlb_module::proto::module_service_server::{ModuleService, ModuleServiceServer};
use nlb_module::proto::nlb_service_server::{NlbService, NlbServiceServer};
use nlb_module::proto::*;
use tokio::net::TcpListener;
use tokio::runtime::{Builder, Runtime};
use tokio::time::{sleep, timeout};
use tokio_stream::Empty as NoStream;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::{Code, Request, Response, Status};

/// Ends when dropped, so that a test can restart it.
pub struct FakeNlb {
    pub address: SocketAddr,
    pub seen: Arc<Mutex<Seen>>,
    /// Its own runtime, so that dropping it ends connections as the end of a process does.
    runtime: Option<Runtime>,
}

#[derive(Default)]
pub struct Seen {
    pub registrations: Vec<RegisterModuleRequest>,
    pub heartbeats: Vec<HeartbeatRequest>,
    pub unregistrations: Vec<UnregisterModuleRequest>,
    pub routings: Vec<UpdateRoutingRequest>,
    pub weights: Vec<SetTrafficWeightRequest>,
    pub promotions: Vec<PromoteVersionRequest>,
    pub rollbacks: Vec<RollbackRequest>,
    /// Registration ids whose heartbeats it accepts.
    pub known: BTreeSet<String>,
    /// The reason for which registrations and changes are refused, if they are.
    pub refuses: Option<(StatusCode, &'static str)>,
    /// The status that calls to register fail with, if they do.
    pub fails: Option<Code>,
    /// The status that heartbeats of unknown registrations fail with; NOT_FOUND unless set.
    pub void: Option<Code>,
    /// Whether the next heartbeat is answered with should_reload.
    pub reload: bool,
    /// The module's routes, as GetRoutes answers them.
    pub routes: Vec<Route>,
    /// How long unregistering takes.
    pub drain: Duration,
}

impl FakeNlb {
    pub async fn start() -> FakeNlb {
        FakeNlb::start_at((own_host(), 50051).into()).await
    }

    pub async fn start_at(address: SocketAddr) -> FakeNlb {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        let bound =
            runtime.spawn(async move { TcpListener::bind(address).await.expect("the address is free") });
        let listener = bound.await.expect("no panic");
        let address = listener.local_addr().expect("bound");
        let service = Service::default();
        let seen = Arc::clone(&service.0);
        let server = tonic::transport::Server::builder()
            .add_service(NlbServiceServer::new(service.clone()))
            .add_service(ModuleServiceServer::new(service))
            .serve_with_incoming(TcpListenerStream::new(listener));
        runtime.spawn(async move { server.await.expect("the server runs") });
        FakeNlb { address, seen, runtime: Some(runtime) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn see<T>(&self, look: impl FnOnce(&mut Seen) -> T) -> T {
        look(&mut self.seen.lock().expect("no panic while locked"))
    }

    /// Waits until the condition holds.
    pub async fn until(&self, what: &str, mut there: impl FnMut(&mut Seen) -> bool) {
        let waited = timeout(Duration::from_secs(10), async {
            while !self.see(&mut there) {
                sleep(Duration::from_millis(5)).await;
            }
        });
        waited.await.unwrap_or_else(|_| panic!("waited in vain for: {what}"));
    }
}

impl Drop for FakeNlb {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            // On a thread of its own, because a runtime may not wait for another.
            let ended = std::thread::spawn(|| runtime.shutdown_timeout(Duration::from_secs(5))).join();
            ended.expect("no panic");
        }
    }
}

/// A loopback address that no other test or process uses, so that no free port has to be found first.
pub fn own_host() -> IpAddr {
    static COUNT: AtomicU8 = AtomicU8::new(1);
    let [.., high, low] = std::process::id().to_be_bytes();
    Ipv4Addr::new(127, high | 0x80, low, COUNT.fetch_add(1, Ordering::Relaxed)).into()
}

#[derive(Clone, Default)]
struct Service(Arc<Mutex<Seen>>);

impl Service {
    fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.0.lock().expect("no panic while locked")
    }
}

impl Seen {
    fn verdict(&self) -> (bool, Option<Error>) {
        let error = self.refuses.map(|(code, message)| Error {
            code: code.into(),
            message: message.to_owned(),
            ..Error::default()
        });
        (error.is_none(), error)
    }
}

/// Implements a service: the given methods, and UNIMPLEMENTED for the named others.
macro_rules! service {
    ($Service:ident, $Stream:ident = $Item:ty; $($rpc:ident($Request:ty) -> $Response:ty;)* { $($methods:tt)* }) => {
        #[tonic::async_trait]
        impl $Service for Service {
            type $Stream = NoStream<Result<$Item, Status>>;
            $(async fn $rpc(&self, _: Request<$Request>) -> Result<Response<$Response>, Status> {
                Err(Status::unimplemented("the fake does not implement this call"))
            })*
            $($methods)*
        }
    };
}

service! { NlbService, StreamNLBMetricsStream = StreamNlbMetricsResponse;
    list_modules(ListModulesRequest) -> ListModulesResponse;
    get_module_info(GetModuleInfoRequest) -> GetModuleInfoResponse;
    get_routing_table(GetRoutingTableRequest) -> GetRoutingTableResponse;
    route_request(RouteRequestRequest) -> RouteRequestResponse;
    validate_route(ValidateRouteRequest) -> ValidateRouteResponse;
    report_metrics(ReportMetricsRequest) -> ReportMetricsResponse;
    get_nlb_metrics(GetNlbMetricsRequest) -> GetNlbMetricsResponse;
    get_module_metrics(GetModuleMetricsRequest) -> GetModuleMetricsResponse;
    stream_nlb_metrics(StreamNlbMetricsRequest) -> Self::StreamNLBMetricsStream;
    check_health(CheckHealthRequest) -> CheckHealthResponse;
    get_nlb_status(GetNlbStatusRequest) -> GetNlbStatusResponse;
    update_nlb_config(UpdateNlbConfigRequest) -> UpdateNlbConfigResponse;
    get_nlb_config(GetNlbConfigRequest) -> GetNlbConfigResponse;
    rebalance_load(RebalanceLoadRequest) -> RebalanceLoadResponse;
    get_load_distribution(GetLoadDistributionRequest) -> GetLoadDistributionResponse;
    trigger_scaling(TriggerScalingRequest) -> TriggerScalingResponse;
    {
        async fn register_module(
            &self,
            request: Request<RegisterModuleRequest>,
        ) -> Result<Response<RegisterModuleResponse>, Status> {
            let mut seen = self.seen();
            seen.registrations.push(request.into_inner());
            if let Some(code) = seen.fails {
                return Err(Status::new(code, "the test makes it fail"));
            }
            let (success, error) = seen.verdict();
            let registration_id = format!("registration-{}", seen.registrations.len());
            if success {
                seen.known.insert(registration_id.clone());
            }
            Ok(Response::new(RegisterModuleResponse { success, error, registration_id, ..Default::default() }))
        }

        async fn heartbeat(
            &self,
            request: Request<HeartbeatRequest>,
        ) -> Result<Response<HeartbeatResponse>, Status> {
            let mut seen = self.seen();
            seen.heartbeats.push(request.into_inner());
            let id = &seen.heartbeats.last().expect("just pushed").registration_id;
            if !seen.known.contains(id) {
                return Err(Status::new(seen.void.unwrap_or(Code::NotFound), "no such registration"));
            }
            let should_reload = std::mem::take(&mut seen.reload);
            Ok(Response::new(HeartbeatResponse { acknowledged: true, should_reload, ..Default::default() }))
        }

        async fn unregister_module(
            &self,
            request: Request<UnregisterModuleRequest>,
        ) -> Result<Response<UnregisterModuleResponse>, Status> {
            let drain = {
                let mut seen = self.seen();
                seen.unregistrations.push(request.into_inner());
                seen.drain
            };
            sleep(drain).await;
            Ok(Response::new(UnregisterModuleResponse { success: true, ..Default::default() }))
        }

        async fn update_routing(
            &self,
            request: Request<UpdateRoutingRequest>,
        ) -> Result<Response<UpdateRoutingResponse>, Status> {
            let mut seen = self.seen();
            let request = request.into_inner();
            let routes_updated = request.routes.len() as i32;
            seen.routings.push(request);
            let (success, error) = seen.verdict();
            Ok(Response::new(UpdateRoutingResponse { success, error, routes_updated, ..Default::default() }))
        }
    }
}

service! { ModuleService, StreamMetricsStream = StreamMetricsResponse;
    get_status(GetStatusRequest) -> GetStatusResponse;
    reload(ReloadRequest) -> ReloadResponse;
    shutdown(ShutdownRequest) -> ShutdownResponse;
    can_handle(CanHandleRequest) -> CanHandleResponse;
    update_routes(UpdateRoutesRequest) -> UpdateRoutesResponse;
    delete_route(DeleteRouteRequest) -> DeleteRouteResponse;
    get_rate_limits(GetRateLimitsRequest) -> GetRateLimitsResponse;
    set_rate_limit(SetRateLimitRequest) -> SetRateLimitResponse;
    remove_rate_limit(RemoveRateLimitRequest) -> RemoveRateLimitResponse;
    get_metrics(GetMetricsRequest) -> GetMetricsResponse;
    scale(ScaleRequest) -> ScaleResponse;
    get_instances(GetInstancesRequest) -> GetInstancesResponse;
    get_active_version(GetActiveVersionRequest) -> GetActiveVersionResponse;
    health_check(HealthCheckRequest) -> HealthCheckResponse;
    get_stats(GetStatsRequest) -> GetStatsResponse;
    stream_metrics(StreamMetricsRequest) -> Self::StreamMetricsStream;
    get_config(GetConfigRequest) -> GetConfigResponse;
    update_config(UpdateConfigRequest) -> UpdateConfigResponse;
    {
        async fn set_traffic_weight(
            &self,
            request: Request<SetTrafficWeightRequest>,
        ) -> Result<Response<SetTrafficWeightResponse>, Status> {
            let mut seen = self.seen();
            seen.weights.push(request.into_inner());
            let (success, error) = seen.verdict();
            Ok(Response::new(SetTrafficWeightResponse { success, error, ..Default::default() }))
        }

        /// One route a page.
        async fn get_routes(
            &self,
            request: Request<GetRoutesRequest>,
        ) -> Result<Response<GetRoutesResponse>, Status> {
            let routes = self.seen().routes.clone();
            let page = request.into_inner().query.and_then(|query| query.pagination).map_or(1, |page| page.page);
            let total_pages = routes.len() as i32;
            let routes = routes.into_iter().skip(page.max(1) as usize - 1).take(1).collect();
            let pagination = Some(Pagination { page, total_pages, ..Default::default() });
            Ok(Response::new(GetRoutesResponse { routes, total_routes: total_pages, pagination }))
        }

        async fn promote_version(
            &self,
            request: Request<PromoteVersionRequest>,
        ) -> Result<Response<PromoteVersionResponse>, Status> {
            let mut seen = self.seen();
            seen.promotions.push(request.into_inner());
            let (success, error) = seen.verdict();
            Ok(Response::new(PromoteVersionResponse { success, error, ..Default::default() }))
        }

        async fn rollback(
            &self,
            request: Request<RollbackRequest>,
        ) -> Result<Response<RollbackResponse>, Status> {
            let mut seen = self.seen();
            seen.rollbacks.push(request.into_inner());
            let (success, error) = seen.verdict();
            let current_version = "v0".to_owned();
            Ok(Response::new(RollbackResponse { success, error, current_version, ..Default::default() }))
        }
    }
}
