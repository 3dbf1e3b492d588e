//! The control side of a module: the calls of `ModuleService`, each with a default that its author can
//! replace.

use std::collections::HashMap;

use nlb_proto::*;
use tonic::{Request, Status, async_trait};

use crate::State;
use crate::answers::not_for_one_process;

/// Answers the NLB's calls. The defaults, which [`State`] has under the same names, suffice for a module that
/// only serves; requests for other instances are refused before they get here. `StreamMetrics` repeats
/// [`get_metrics`](Control::get_metrics).
#[async_trait]
pub trait Control: Send + Sync + 'static {
    async fn get_status(
        &self,
        state: &State,
        request: GetStatusRequest,
    ) -> Result<GetStatusResponse, Status> {
        state.get_status(request)
    }

    /// Reads the configuration again: at a `Reload` call, and when the answer to a heartbeat asks for it
    /// (`should_reload`).
    async fn reload(&self, state: &State, request: ReloadRequest) -> Result<ReloadResponse, Status> {
        state.reload(request).await
    }

    async fn shutdown(&self, state: &State, request: ShutdownRequest) -> Result<ShutdownResponse, Status> {
        state.shutdown(request)
    }

    async fn can_handle(
        &self,
        state: &State,
        request: CanHandleRequest,
    ) -> Result<CanHandleResponse, Status> {
        state.can_handle(request)
    }

    async fn get_routes(
        &self,
        state: &State,
        request: GetRoutesRequest,
    ) -> Result<GetRoutesResponse, Status> {
        state.get_routes(request)
    }

    async fn update_routes(
        &self,
        state: &State,
        request: UpdateRoutesRequest,
        origin: Origin,
    ) -> Result<UpdateRoutesResponse, Status> {
        state.update_routes(request, origin).await
    }

    async fn delete_route(
        &self,
        state: &State,
        request: DeleteRouteRequest,
        origin: Origin,
    ) -> Result<DeleteRouteResponse, Status> {
        state.delete_route(request, origin).await
    }

    async fn get_rate_limits(
        &self,
        _: &State,
        _: GetRateLimitsRequest,
    ) -> Result<GetRateLimitsResponse, Status> {
        not_for_one_process("this module enforces no rate limits; the NLB does")
    }

    async fn set_rate_limit(
        &self,
        _: &State,
        _: SetRateLimitRequest,
    ) -> Result<SetRateLimitResponse, Status> {
        not_for_one_process("this module enforces no rate limits; set them on the NLB")
    }

    async fn remove_rate_limit(
        &self,
        _: &State,
        _: RemoveRateLimitRequest,
    ) -> Result<RemoveRateLimitResponse, Status> {
        not_for_one_process("this module enforces no rate limits; the NLB does")
    }

    async fn get_metrics(
        &self,
        state: &State,
        request: GetMetricsRequest,
    ) -> Result<GetMetricsResponse, Status> {
        state.get_metrics(request)
    }

    async fn scale(&self, _: &State, _: ScaleRequest) -> Result<ScaleResponse, Status> {
        not_for_one_process("this module is one process and starts no others; scale it where it is started")
    }

    async fn get_instances(
        &self,
        state: &State,
        request: GetInstancesRequest,
    ) -> Result<GetInstancesResponse, Status> {
        state.get_instances(request)
    }

    async fn set_traffic_weight(
        &self,
        state: &State,
        request: SetTrafficWeightRequest,
        origin: Origin,
    ) -> Result<SetTrafficWeightResponse, Status> {
        state.set_traffic_weight(request, origin).await
    }

    async fn get_active_version(
        &self,
        state: &State,
        request: GetActiveVersionRequest,
    ) -> Result<GetActiveVersionResponse, Status> {
        state.get_active_version(request)
    }

    async fn rollback(
        &self,
        state: &State,
        request: RollbackRequest,
        origin: Origin,
    ) -> Result<RollbackResponse, Status> {
        state.rollback(request, origin).await
    }

    async fn promote_version(
        &self,
        state: &State,
        request: PromoteVersionRequest,
        origin: Origin,
    ) -> Result<PromoteVersionResponse, Status> {
        state.promote_version(request, origin).await
    }

    /// Answers from the state and, with `deep_check`, from [`deep_check`](Control::deep_check).
    async fn health_check(
        &self,
        state: &State,
        request: HealthCheckRequest,
    ) -> Result<HealthCheckResponse, Status> {
        let deep = if request.deep_check { self.deep_check(state).await } else { Ok(HashMap::new()) };
        Ok(state.health_check(deep))
    }

    /// Checks what the module depends on, within 2 seconds. `Ok` has what was checked, by name, and is shown
    /// as `checks`; `Err` has the reason why the module cannot serve, which makes it UNHEALTHY. The default
    /// checks nothing.
    async fn deep_check(&self, _: &State) -> Result<HashMap<String, String>, String> {
        Ok(HashMap::new())
    }

    async fn get_stats(&self, state: &State, request: GetStatsRequest) -> Result<GetStatsResponse, Status> {
        state.get_stats(request)
    }

    async fn get_config(
        &self,
        state: &State,
        request: GetConfigRequest,
    ) -> Result<GetConfigResponse, Status> {
        state.get_config(request)
    }

    async fn update_config(
        &self,
        state: &State,
        request: UpdateConfigRequest,
    ) -> Result<UpdateConfigResponse, Status> {
        state.update_config(request)
    }
}

/// The origin of a change to what both the instance and the NLB store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Origin {
    /// The NLB passes on a change that it makes itself. Calling it would return the change to its origin.
    Nlb,
    /// Any other caller. The NLB is called first, and a change that it refuses is not made.
    Direct,
}

impl Origin {
    /// The metadata key of calls that the NLB passes on.
    const PASSED_ON: &str = "nlb-passed-on";

    pub(crate) fn of<T>(request: &Request<T>) -> Origin {
        if request.metadata().contains_key(Self::PASSED_ON) { Origin::Nlb } else { Origin::Direct }
    }
}

/// A [`Control`] that replaces no default.
pub(crate) struct Defaults;

impl Control for Defaults {}
