//! grpc.health.v1 for generic probes: whether the NLB serves.

use std::sync::Arc;

use nlb_proto::module_service_server::ModuleServiceServer;
use nlb_proto::nlb_service_server::NlbServiceServer;
use tokio::sync::watch;
use tonic::server::NamedService;
use tonic_health::ServingStatus;
use tonic_health::pb::health_server::{Health, HealthServer};

use crate::grpc::handlers::control::Control;
use crate::reconcile::Applied;

/// The server as a whole, and the services of the contract.
const NAMES: [&str; 3] = [
    "",
    <NlbServiceServer<Control> as NamedService>::NAME,
    <ModuleServiceServer<Control> as NamedService>::NAME,
];

/// SERVING while the maps hold the desired state.
pub(crate) fn service(mut applied: watch::Receiver<Arc<Applied>>) -> HealthServer<impl Health> {
    let (reporter, service) = tonic_health::server::health_reporter();
    tokio::spawn(async move {
        loop {
            let status = match applied.borrow_and_update().error {
                None => ServingStatus::Serving,
                Some(_) => ServingStatus::NotServing,
            };
            for name in NAMES {
                reporter.set_service_status(name, status).await;
            }
            if applied.changed().await.is_err() {
                break;
            }
        }
    });
    service
}
