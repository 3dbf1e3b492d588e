//! ModuleService of the NLB, which answers for the whole fleet or passes calls on to modules.

use nlb_proto::module_service_server::ModuleService;
use nlb_proto::*;
use tonic::{Request, Response, Status};

use super::to_the_end;
use crate::grpc::client::peers::{is_passed_on, passed_on};
use crate::grpc::convert::deployment;
use crate::grpc::convert::error::{CallError, answer};
use crate::grpc::handlers::control::Control;
use crate::grpc::handlers::statistics::Samples;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl ModuleService for Control {
    async fn get_status(&self, request: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        let passed_on = is_passed_on(&request);
        read(self.status(request.into_inner(), passed_on).await)
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Answer<ReloadResponse> {
        let passed_on = is_passed_on(&request);
        let reloaded = self.clone().reload_modules(request.into_inner(), passed_on);
        answer(to_the_end(reloaded).await, refused!(ReloadResponse))
    }

    async fn shutdown(&self, request: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        let passed_on = is_passed_on(&request);
        let shut_down = self.clone().shut_down(request.into_inner(), passed_on);
        answer(to_the_end(shut_down).await, refused!(ShutdownResponse))
    }

    async fn can_handle(&self, request: Request<CanHandleRequest>) -> Answer<CanHandleResponse> {
        let passed_on = is_passed_on(&request);
        read(Control::can_handle(self, request.into_inner(), passed_on).await)
    }

    async fn get_routes(&self, request: Request<GetRoutesRequest>) -> Answer<GetRoutesResponse> {
        read(self.routes(request.into_inner()))
    }

    async fn update_routes(&self, request: Request<UpdateRoutesRequest>) -> Answer<UpdateRoutesResponse> {
        let passed_on = is_passed_on(&request);
        let updated = Control::update_routes(self.clone(), request.into_inner(), passed_on);
        answer(to_the_end(updated).await, refused!(UpdateRoutesResponse))
    }

    async fn delete_route(&self, request: Request<DeleteRouteRequest>) -> Answer<DeleteRouteResponse> {
        let passed_on = is_passed_on(&request);
        let deleted = Control::delete_route(self.clone(), request.into_inner(), passed_on);
        answer(to_the_end(deleted).await, refused!(DeleteRouteResponse))
    }

    async fn get_rate_limits(&self, request: Request<GetRateLimitsRequest>) -> Answer<GetRateLimitsResponse> {
        let passed_on = is_passed_on(&request);
        Ok(Response::new(self.rate_limits(request.into_inner(), passed_on).await?))
    }

    async fn set_rate_limit(&self, request: Request<SetRateLimitRequest>) -> Answer<SetRateLimitResponse> {
        let passed_on = is_passed_on(&request);
        let set = self.clone().set_rate_limit(request.into_inner(), passed_on);
        answer(to_the_end(set).await, refused!(SetRateLimitResponse))
    }

    async fn remove_rate_limit(
        &self,
        request: Request<RemoveRateLimitRequest>,
    ) -> Answer<RemoveRateLimitResponse> {
        let passed_on = is_passed_on(&request);
        let removed = self.clone().remove_rate_limit(request.into_inner(), passed_on);
        answer(to_the_end(removed).await, refused!(RemoveRateLimitResponse))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Answer<GetMetricsResponse> {
        let passed_on = is_passed_on(&request);
        read(self.metrics(request.into_inner(), passed_on).await)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Answer<ScaleResponse> {
        let passed_on = is_passed_on(&request);
        let request = request.into_inner();
        let alike = self.peers_of(&request.instance_id);
        let scaled = self.clone().scale_module(request, passed_on);
        answer(to_the_end(scaled).await, |error| ScaleResponse {
            current_instances: alike,
            desired_instances: alike,
            ..refused!(ScaleResponse)(error)
        })
    }

    async fn get_instances(&self, request: Request<GetInstancesRequest>) -> Answer<GetInstancesResponse> {
        read(self.instances_of_type(request.into_inner()))
    }

    async fn set_traffic_weight(
        &self,
        request: Request<SetTrafficWeightRequest>,
    ) -> Answer<SetTrafficWeightResponse> {
        let (passed_on, scope) = (passed_on(&request), deployment::named(&request)?);
        let weighed = self.clone().set_weight(request.into_inner(), scope, passed_on);
        answer(to_the_end(weighed).await, refused!(SetTrafficWeightResponse))
    }

    async fn get_active_version(
        &self,
        request: Request<GetActiveVersionRequest>,
    ) -> Answer<GetActiveVersionResponse> {
        let scope = deployment::named(&request)?;
        read(self.active_version(request.into_inner(), &scope))
    }

    async fn rollback(&self, request: Request<RollbackRequest>) -> Answer<RollbackResponse> {
        let (passed_on, scope) = (passed_on(&request), deployment::named(&request)?);
        let rolled_back = self.clone().roll_back(request.into_inner(), scope, passed_on);
        answer(to_the_end(rolled_back).await, refused!(RollbackResponse))
    }

    async fn promote_version(
        &self,
        request: Request<PromoteVersionRequest>,
    ) -> Answer<PromoteVersionResponse> {
        let (passed_on, scope) = (passed_on(&request), deployment::named(&request)?);
        let promoted = self.clone().promote(request.into_inner(), scope, passed_on);
        answer(to_the_end(promoted).await, refused!(PromoteVersionResponse))
    }

    async fn health_check(&self, request: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        let passed_on = is_passed_on(&request);
        read(self.health(request.into_inner(), passed_on).await)
    }

    async fn get_stats(&self, request: Request<GetStatsRequest>) -> Answer<GetStatsResponse> {
        let passed_on = is_passed_on(&request);
        read(self.stats(request.into_inner(), passed_on).await)
    }

    async fn get_config(&self, request: Request<GetConfigRequest>) -> Answer<GetConfigResponse> {
        let passed_on = is_passed_on(&request);
        read(self.config_of(request.into_inner(), passed_on).await)
    }

    async fn update_config(&self, request: Request<UpdateConfigRequest>) -> Answer<UpdateConfigResponse> {
        let passed_on = is_passed_on(&request);
        let updated = self.clone().update_config_of(request.into_inner(), passed_on);
        answer(to_the_end(updated).await, refused!(UpdateConfigResponse))
    }

    type StreamMetricsStream = Samples;

    async fn stream_metrics(
        &self,
        request: Request<StreamMetricsRequest>,
    ) -> Answer<Self::StreamMetricsStream> {
        let passed_on = is_passed_on(&request);
        read(self.metrics_stream(request.into_inner(), passed_on))
    }
}

/// The response to a read-only call.
fn read<T>(outcome: Result<T, CallError>) -> Answer<T> {
    Ok(Response::new(outcome?))
}
