//! The gRPC server of `ModuleService`: refuses requests for other instances, and passes the others to the
//! [`Control`].

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use nlb_proto::module_service_server::ModuleService;
use nlb_proto::*;
use tokio::time::{MissedTickBehavior, interval};
use tokio_stream::Stream;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use crate::control::Origin;
use crate::{Control, State};

#[derive(Clone)]
pub(crate) struct Rpc {
    pub control: Arc<dyn Control>,
    pub state: Arc<State>,
}

impl Rpc {
    /// The message, if it is for this instance; an empty id is accepted.
    fn for_this_instance<T>(&self, request: Request<T>, id: impl Fn(&T) -> &str) -> Result<T, Status> {
        let message = request.into_inner();
        let asked = id(&message);
        if asked.is_empty() || asked == self.state.instance_id() {
            return Ok(message);
        }
        Err(Status::not_found(format!("this is instance `{}`, not `{asked}`", self.state.instance_id())))
    }
}

#[async_trait]
impl ModuleService for Rpc {
    type StreamMetricsStream = Pin<Box<dyn Stream<Item = Result<StreamMetricsResponse, Status>> + Send>>;

    async fn get_status(
        &self,
        request: Request<GetStatusRequest>,
    ) -> Result<Response<GetStatusResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_status(&self.state, request).await.map(Response::new)
    }

    async fn reload(&self, request: Request<ReloadRequest>) -> Result<Response<ReloadResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.reload(&self.state, request).await.map(Response::new)
    }

    async fn shutdown(
        &self,
        request: Request<ShutdownRequest>,
    ) -> Result<Response<ShutdownResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.shutdown(&self.state, request).await.map(Response::new)
    }

    async fn can_handle(
        &self,
        request: Request<CanHandleRequest>,
    ) -> Result<Response<CanHandleResponse>, Status> {
        let request = request.into_inner();
        self.control.can_handle(&self.state, request).await.map(Response::new)
    }

    async fn get_routes(
        &self,
        request: Request<GetRoutesRequest>,
    ) -> Result<Response<GetRoutesResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_routes(&self.state, request).await.map(Response::new)
    }

    async fn update_routes(
        &self,
        request: Request<UpdateRoutesRequest>,
    ) -> Result<Response<UpdateRoutesResponse>, Status> {
        let origin = Origin::of(&request);
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.update_routes(&self.state, request, origin).await.map(Response::new)
    }

    async fn delete_route(
        &self,
        request: Request<DeleteRouteRequest>,
    ) -> Result<Response<DeleteRouteResponse>, Status> {
        let origin = Origin::of(&request);
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.delete_route(&self.state, request, origin).await.map(Response::new)
    }

    async fn get_rate_limits(
        &self,
        request: Request<GetRateLimitsRequest>,
    ) -> Result<Response<GetRateLimitsResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_rate_limits(&self.state, request).await.map(Response::new)
    }

    async fn set_rate_limit(
        &self,
        request: Request<SetRateLimitRequest>,
    ) -> Result<Response<SetRateLimitResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.set_rate_limit(&self.state, request).await.map(Response::new)
    }

    async fn remove_rate_limit(
        &self,
        request: Request<RemoveRateLimitRequest>,
    ) -> Result<Response<RemoveRateLimitResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.remove_rate_limit(&self.state, request).await.map(Response::new)
    }

    async fn get_metrics(
        &self,
        request: Request<GetMetricsRequest>,
    ) -> Result<Response<GetMetricsResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_metrics(&self.state, request).await.map(Response::new)
    }

    async fn scale(&self, request: Request<ScaleRequest>) -> Result<Response<ScaleResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.scale(&self.state, request).await.map(Response::new)
    }

    async fn get_instances(
        &self,
        request: Request<GetInstancesRequest>,
    ) -> Result<Response<GetInstancesResponse>, Status> {
        let request = request.into_inner();
        self.control.get_instances(&self.state, request).await.map(Response::new)
    }

    async fn set_traffic_weight(
        &self,
        request: Request<SetTrafficWeightRequest>,
    ) -> Result<Response<SetTrafficWeightResponse>, Status> {
        let origin = Origin::of(&request);
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.set_traffic_weight(&self.state, request, origin).await.map(Response::new)
    }

    async fn get_active_version(
        &self,
        request: Request<GetActiveVersionRequest>,
    ) -> Result<Response<GetActiveVersionResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_active_version(&self.state, request).await.map(Response::new)
    }

    async fn rollback(
        &self,
        request: Request<RollbackRequest>,
    ) -> Result<Response<RollbackResponse>, Status> {
        let origin = Origin::of(&request);
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.rollback(&self.state, request, origin).await.map(Response::new)
    }

    async fn promote_version(
        &self,
        request: Request<PromoteVersionRequest>,
    ) -> Result<Response<PromoteVersionResponse>, Status> {
        let origin = Origin::of(&request);
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.promote_version(&self.state, request, origin).await.map(Response::new)
    }

    async fn health_check(
        &self,
        request: Request<HealthCheckRequest>,
    ) -> Result<Response<HealthCheckResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.health_check(&self.state, request).await.map(Response::new)
    }

    async fn get_stats(
        &self,
        request: Request<GetStatsRequest>,
    ) -> Result<Response<GetStatsResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_stats(&self.state, request).await.map(Response::new)
    }

    async fn get_config(
        &self,
        request: Request<GetConfigRequest>,
    ) -> Result<Response<GetConfigResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.get_config(&self.state, request).await.map(Response::new)
    }

    async fn update_config(
        &self,
        request: Request<UpdateConfigRequest>,
    ) -> Result<Response<UpdateConfigResponse>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        self.control.update_config(&self.state, request).await.map(Response::new)
    }

    async fn stream_metrics(
        &self,
        request: Request<StreamMetricsRequest>,
    ) -> Result<Response<Self::StreamMetricsStream>, Status> {
        let request = self.for_this_instance(request, |request| &request.instance_id)?;
        let seconds = u64::try_from(request.interval_seconds)
            .map_err(|_| Status::invalid_argument("interval_seconds is negative"))?;
        let mut ticks = interval(Duration::from_secs(seconds.max(1)));
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let metrics =
            GetMetricsRequest { metric_names: request.metric_names, ..GetMetricsRequest::default() };
        let (sender, receiver) = tokio::sync::mpsc::channel(1);
        let Rpc { control, state } = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = ticks.tick() => {}
                    () = sender.closed() => return,
                }
                let sample = control.get_metrics(&state, metrics.clone()).await;
                let sample = sample.map(|sample| StreamMetricsResponse {
                    metrics: sample.metrics,
                    timestamp: sample.collected_at,
                });
                let failed = sample.is_err();
                if sender.send(sample).await.is_err() || failed {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(receiver))))
    }
}
