//! NLBService, the service that modules call.

use nlb_proto::nlb_service_server::NlbService;
use nlb_proto::*;
use tonic::{Request, Response, Status};

use super::to_the_end;
use crate::grpc::client::peers::is_passed_on;
use crate::grpc::convert::credentials;
use crate::grpc::convert::error::answer;
use crate::grpc::handlers::control::Control;
use crate::grpc::handlers::metrics_stream::Subscription;

type Answer<T> = Result<Response<T>, Status>;

#[tonic::async_trait]
impl NlbService for Control {
    async fn register_module(
        &self,
        request: Request<RegisterModuleRequest>,
    ) -> Answer<RegisterModuleResponse> {
        let proof = credentials::beside(&request);
        let outcome = self.register(request.into_inner(), proof).await;
        answer(outcome, refused!(RegisterModuleResponse))
    }

    async fn unregister_module(
        &self,
        request: Request<UnregisterModuleRequest>,
    ) -> Answer<UnregisterModuleResponse> {
        let request = credentials::fill(request, |message| &mut message.registration_id);
        let outcome = self.unregister(request).await;
        answer(outcome, refused!(UnregisterModuleResponse))
    }

    async fn heartbeat(&self, request: Request<HeartbeatRequest>) -> Answer<HeartbeatResponse> {
        let request = credentials::fill(request, |message| &mut message.registration_id);
        Ok(Response::new(Control::heartbeat(self, request).await?))
    }

    async fn list_modules(&self, request: Request<ListModulesRequest>) -> Answer<ListModulesResponse> {
        Ok(Response::new(Control::list_modules(self, request.into_inner())?))
    }

    async fn get_module_info(&self, request: Request<GetModuleInfoRequest>) -> Answer<GetModuleInfoResponse> {
        Ok(Response::new(self.module_info(request.into_inner())?))
    }

    async fn update_routing(&self, request: Request<UpdateRoutingRequest>) -> Answer<UpdateRoutingResponse> {
        let request = credentials::fill(request, |message| &mut message.registration_id);
        let outcome = Control::update_routing(self, request).await;
        answer(outcome, refused!(UpdateRoutingResponse))
    }

    async fn get_routing_table(
        &self,
        request: Request<GetRoutingTableRequest>,
    ) -> Answer<GetRoutingTableResponse> {
        Ok(Response::new(self.routing_table(request.into_inner())?))
    }

    async fn route_request(&self, request: Request<RouteRequestRequest>) -> Answer<RouteRequestResponse> {
        Ok(Response::new(Control::route_request(self, request.into_inner())?))
    }

    async fn validate_route(&self, request: Request<ValidateRouteRequest>) -> Answer<ValidateRouteResponse> {
        Ok(Response::new(Control::validate_route(self, request.into_inner()).await?))
    }

    async fn check_health(&self, request: Request<CheckHealthRequest>) -> Answer<CheckHealthResponse> {
        let passed_on = is_passed_on(&request);
        Ok(Response::new(Control::check_health(self, request.into_inner(), passed_on).await))
    }

    async fn get_nlb_status(&self, request: Request<GetNlbStatusRequest>) -> Answer<GetNlbStatusResponse> {
        Ok(Response::new(self.nlb_status(request.into_inner())))
    }

    type StreamNLBMetricsStream = Subscription<StreamNlbMetricsResponse>;

    async fn stream_nlb_metrics(
        &self,
        request: Request<StreamNlbMetricsRequest>,
    ) -> Answer<Self::StreamNLBMetricsStream> {
        Ok(Response::new(self.subscribe(request.into_inner())?))
    }

    async fn report_metrics(&self, request: Request<ReportMetricsRequest>) -> Answer<ReportMetricsResponse> {
        let request = credentials::fill(request, |message| &mut message.registration_id);
        Ok(Response::new(Control::report_metrics(self, request)?))
    }

    async fn get_nlb_metrics(&self, request: Request<GetNlbMetricsRequest>) -> Answer<GetNlbMetricsResponse> {
        Ok(Response::new(self.nlb_metrics(request.into_inner()).await?))
    }

    async fn get_module_metrics(
        &self,
        request: Request<GetModuleMetricsRequest>,
    ) -> Answer<GetModuleMetricsResponse> {
        Ok(Response::new(self.metrics_of_module(request.into_inner()).await?))
    }

    async fn update_nlb_config(
        &self,
        request: Request<UpdateNlbConfigRequest>,
    ) -> Answer<UpdateNlbConfigResponse> {
        let outcome = Control::update_nlb_config(self, request.into_inner()).await;
        answer(outcome, refused!(UpdateNlbConfigResponse))
    }

    async fn get_nlb_config(&self, request: Request<GetNlbConfigRequest>) -> Answer<GetNlbConfigResponse> {
        Ok(Response::new(self.nlb_config(request.into_inner()).await?))
    }

    async fn rebalance_load(&self, request: Request<RebalanceLoadRequest>) -> Answer<RebalanceLoadResponse> {
        let outcome = Control::rebalance_load(self, request.into_inner()).await;
        answer(outcome, refused!(RebalanceLoadResponse))
    }

    async fn get_load_distribution(
        &self,
        request: Request<GetLoadDistributionRequest>,
    ) -> Answer<GetLoadDistributionResponse> {
        Ok(Response::new(self.load_distribution(request.into_inner())?))
    }

    async fn trigger_scaling(
        &self,
        request: Request<TriggerScalingRequest>,
    ) -> Answer<TriggerScalingResponse> {
        let request = request.into_inner();
        let scaling_action = request.scaling_action.clone();
        let triggered = Control::trigger_scaling(self.clone(), request);
        answer(to_the_end(triggered).await, |error| TriggerScalingResponse {
            scaling_action,
            ..refused!(TriggerScalingResponse)(error)
        })
    }
}
