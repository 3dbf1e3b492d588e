//! Maintenance: operators drain a module, end the drain, and remove a module that is dead.

use nlb_proto::{
    DrainModuleRequest, DrainModuleResponse, RemoveModuleRequest, RemoveModuleResponse, ResumeModuleRequest,
    ResumeModuleResponse,
};
use tokio::time::Instant;

use super::registration::drain_timeout;
use crate::controllers::drain;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::validate;
use crate::grpc::handlers::control::Control;

impl Control {
    pub async fn drain(&self, request: DrainModuleRequest) -> Result<DrainModuleResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
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
                format!("{id} takes no new flows; {left} {kept} flows continue")
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

    pub async fn resume(&self, request: ResumeModuleRequest) -> Result<ResumeModuleResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
        let revision = self.registry.resume(&id)?;
        self.settled(revision).await?;
        Ok(ResumeModuleResponse {
            success: true,
            message: format!("{id} takes new flows again"),
            error: None,
        })
    }

    pub async fn remove(&self, request: RemoveModuleRequest) -> Result<RemoveModuleResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
        let flows = self.traffic.borrow().instance(&id).active_tcp_flows;
        let revision = self.registry.evict(&id, request.force)?;
        self.settled(revision).await?;
        Ok(RemoveModuleResponse {
            success: true,
            message: format!(
                "{id} is removed, and its {flows} TCP flows are cut off; if it still runs, it registers again"
            ),
            error: None,
        })
    }
}
