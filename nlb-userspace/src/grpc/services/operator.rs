//! OperatorService, the service that operators call.

use nlb_proto::operator_service_server::OperatorService;
use nlb_proto::{
    DrainModuleRequest, DrainModuleResponse, RemoveModuleRequest, RemoveModuleResponse, ResumeModuleRequest,
    ResumeModuleResponse,
};
use tonic::{Request, Response, Status};

use crate::grpc::convert::error::answer;
use crate::grpc::handlers::control::Control;

#[tonic::async_trait]
impl OperatorService for Control {
    async fn drain_module(
        &self,
        request: Request<DrainModuleRequest>,
    ) -> Result<Response<DrainModuleResponse>, Status> {
        let outcome = self.drain(request.into_inner()).await;
        answer(outcome, refused!(DrainModuleResponse))
    }

    async fn resume_module(
        &self,
        request: Request<ResumeModuleRequest>,
    ) -> Result<Response<ResumeModuleResponse>, Status> {
        let outcome = self.resume(request.into_inner()).await;
        answer(outcome, refused!(ResumeModuleResponse))
    }

    async fn remove_module(
        &self,
        request: Request<RemoveModuleRequest>,
    ) -> Result<Response<RemoveModuleResponse>, Status> {
        let outcome = self.remove(request.into_inner()).await;
        answer(outcome, refused!(RemoveModuleResponse))
    }
}
