//! ModuleService as the NLB serves it: the front of the fleet.

use std::pin::Pin;

use nlb_proto::module_service_server::ModuleService;
use nlb_proto::*;
use tokio_stream::Stream;
use tonic::{Request, Response, Status};

use super::failure::{Failure, answer};
use super::fault::{self, Fault};
use super::nlb::not_in_this_build;
use super::{Control, peers, split};
use crate::lease::Standing;
use crate::registry::{Commit, Now, Refusal, State};
use crate::resolve::Endpoint;

type Answer<T> = Result<Response<T>, Status>;

impl Control {
    /// An instance's weight, or a version's. Modules are asked first, so that a refusal leaves everything as it was.
    async fn set_weight(
        &self,
        request: SetTrafficWeightRequest,
        passed_on: bool,
    ) -> Result<SetTrafficWeightResponse, Failure> {
        let weight = fault::weight("weight", request.weight)?;
        let version = fault::version("version", &request.version)?;
        let of_version = request.instance_id.is_empty();
        if of_version && version.is_empty() {
            return Err(Fault::new(
                "instance_id",
                "and version are both empty; name an instance or a version",
            )
            .into());
        }
        let snapshot = self.registry.snapshot();
        let told = if of_version {
            snapshot.instances_of(&version).map(str::to_owned).collect()
        } else {
            vec![fault::id("instance_id", &request.instance_id)?]
        };
        let set = |commit| match of_version {
            true => self.registry.set_version_weight(&version, weight, commit, Now::read()),
            false => self.registry.set_instance_weight(&request.instance_id, &version, weight, commit),
        };
        set(Commit::DryRun)?;
        if !passed_on {
            let refusals = peers::tell_weight(living(&snapshot, &told)?, &request).await;
            if !refusals.is_empty() {
                return Err(Failure::Modules(refusals));
            }
        }
        self.applied(set(Commit::Apply)?).await?;
        Ok(SetTrafficWeightResponse {
            success: true,
            message: "new flows follow it; flows that have begun stay where they are".to_owned(),
            current_config: split::render(&self.registry.snapshot()),
            error: None,
        })
    }
}

/// Where those of the instances listen whose lease is current: the others would only be waited for.
fn living(state: &State, instances: &[String]) -> Result<Vec<(String, Endpoint)>, Refusal> {
    let records = instances.iter().map(|id| state.record(id)).collect::<Result<Vec<_>, _>>()?;
    let living = records.into_iter().filter(|record| record.standing == Standing::Current);
    Ok(living.map(|r| (r.registration.instance_id.clone(), r.registration.address.clone())).collect())
}

#[tonic::async_trait]
impl ModuleService for Control {
    async fn set_traffic_weight(
        &self,
        request: Request<SetTrafficWeightRequest>,
    ) -> Answer<SetTrafficWeightResponse> {
        let passed_on = peers::is_passed_on(&request);
        let outcome = self.set_weight(request.into_inner(), passed_on).await;
        answer(outcome, |error| SetTrafficWeightResponse {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        })
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Answer<GetStatusResponse> {
        Err(not_in_this_build("ModuleService.GetStatus"))
    }

    async fn reload(&self, _: Request<ReloadRequest>) -> Answer<ReloadResponse> {
        Err(not_in_this_build("ModuleService.Reload"))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Answer<ShutdownResponse> {
        Err(not_in_this_build("ModuleService.Shutdown"))
    }

    async fn can_handle(&self, _: Request<CanHandleRequest>) -> Answer<CanHandleResponse> {
        Err(not_in_this_build("ModuleService.CanHandle"))
    }

    async fn get_routes(&self, _: Request<GetRoutesRequest>) -> Answer<GetRoutesResponse> {
        Err(not_in_this_build("ModuleService.GetRoutes"))
    }

    async fn update_routes(&self, _: Request<UpdateRoutesRequest>) -> Answer<UpdateRoutesResponse> {
        Err(not_in_this_build("ModuleService.UpdateRoutes"))
    }

    async fn delete_route(&self, _: Request<DeleteRouteRequest>) -> Answer<DeleteRouteResponse> {
        Err(not_in_this_build("ModuleService.DeleteRoute"))
    }

    async fn get_rate_limits(&self, request: Request<GetRateLimitsRequest>) -> Answer<GetRateLimitsResponse> {
        Ok(Response::new(self.rate_limits(request.into_inner())?))
    }

    async fn set_rate_limit(&self, request: Request<SetRateLimitRequest>) -> Answer<SetRateLimitResponse> {
        let outcome = Control::set_rate_limit(self, request.into_inner()).await;
        answer(outcome, |error| SetRateLimitResponse {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        })
    }

    async fn remove_rate_limit(
        &self,
        request: Request<RemoveRateLimitRequest>,
    ) -> Answer<RemoveRateLimitResponse> {
        let outcome = Control::remove_rate_limit(self, request.into_inner()).await;
        answer(outcome, |error| RemoveRateLimitResponse {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        })
    }

    async fn get_metrics(&self, _: Request<GetMetricsRequest>) -> Answer<GetMetricsResponse> {
        Err(not_in_this_build("ModuleService.GetMetrics"))
    }

    async fn scale(&self, _: Request<ScaleRequest>) -> Answer<ScaleResponse> {
        Err(not_in_this_build("ModuleService.Scale"))
    }

    async fn get_instances(&self, _: Request<GetInstancesRequest>) -> Answer<GetInstancesResponse> {
        Err(not_in_this_build("ModuleService.GetInstances"))
    }

    async fn get_active_version(
        &self,
        _: Request<GetActiveVersionRequest>,
    ) -> Answer<GetActiveVersionResponse> {
        Err(not_in_this_build("ModuleService.GetActiveVersion"))
    }

    async fn rollback(&self, _: Request<RollbackRequest>) -> Answer<RollbackResponse> {
        Err(not_in_this_build("ModuleService.Rollback"))
    }

    async fn promote_version(&self, _: Request<PromoteVersionRequest>) -> Answer<PromoteVersionResponse> {
        Err(not_in_this_build("ModuleService.PromoteVersion"))
    }

    async fn health_check(&self, _: Request<HealthCheckRequest>) -> Answer<HealthCheckResponse> {
        Err(not_in_this_build("ModuleService.HealthCheck"))
    }

    async fn get_stats(&self, _: Request<GetStatsRequest>) -> Answer<GetStatsResponse> {
        Err(not_in_this_build("ModuleService.GetStats"))
    }

    async fn get_config(&self, _: Request<GetConfigRequest>) -> Answer<GetConfigResponse> {
        Err(not_in_this_build("ModuleService.GetConfig"))
    }

    async fn update_config(&self, _: Request<UpdateConfigRequest>) -> Answer<UpdateConfigResponse> {
        Err(not_in_this_build("ModuleService.UpdateConfig"))
    }

    type StreamMetricsStream = Pin<Box<dyn Stream<Item = Result<StreamMetricsResponse, Status>> + Send>>;

    async fn stream_metrics(&self, _: Request<StreamMetricsRequest>) -> Answer<Self::StreamMetricsStream> {
        Err(not_in_this_build("ModuleService.StreamMetrics"))
    }
}
