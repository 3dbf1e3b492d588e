//! OperatorService: what only operators ask for.

use nlb_proto::operator_service_server::OperatorService;
use nlb_proto::{DrainModuleRequest, DrainModuleResponse, ResumeModuleRequest, ResumeModuleResponse};
use tokio::time::Instant;
use tonic::{Request, Response, Status};

use super::Control;
use super::failure::{Failure, answer};
use super::fault;
use super::modules::drain_timeout;
use super::numbers::signed_32;
use crate::drain;

#[tonic::async_trait]
impl OperatorService for Control {
    async fn drain_module(
        &self,
        request: Request<DrainModuleRequest>,
    ) -> Result<Response<DrainModuleResponse>, Status> {
        let outcome = self.drain(request.into_inner()).await;
        answer(outcome, |error| DrainModuleResponse {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        })
    }

    async fn resume_module(
        &self,
        request: Request<ResumeModuleRequest>,
    ) -> Result<Response<ResumeModuleResponse>, Status> {
        let outcome = self.resume(request.into_inner()).await;
        answer(outcome, |error| ResumeModuleResponse {
            message: error.message.clone(),
            error: Some(error),
            ..Default::default()
        })
    }
}

impl Control {
    async fn drain(&self, request: DrainModuleRequest) -> Result<DrainModuleResponse, Failure> {
        let id = fault::id("instance_id", &request.instance_id)?;
        let timeout = drain_timeout("timeout_seconds", request.timeout_seconds)?;
        let deadline = Instant::now() + timeout.unwrap_or(self.registry.settings().drain_timeout);
        let draining = self.registry.begin_maintenance(&id)?;
        self.settled(draining.revision).await?;
        let drained = drain::wait(&self.registry, &id, draining.epoch, self.traffic.clone(), deadline).await;
        let message = match drained {
            drain::Drained { left: 0, kept, .. } => {
                format!("{id} takes no new flows, and its {kept} flows have closed")
            }
            drain::Drained { left, kept, .. } => {
                format!("{id} takes no new flows; {left} {kept} flows live on")
            }
        };
        Ok(DrainModuleResponse {
            success: true,
            message,
            active_connections_drained: signed_32(drained.closed),
            active_connections: signed_32(drained.left),
            error: None,
        })
    }

    async fn resume(&self, request: ResumeModuleRequest) -> Result<ResumeModuleResponse, Failure> {
        let id = fault::id("instance_id", &request.instance_id)?;
        let revision = self.registry.resume(&id)?;
        self.settled(revision).await?;
        Ok(ResumeModuleResponse {
            success: true,
            message: format!("{id} takes new flows again"),
            error: None,
        })
    }
}
