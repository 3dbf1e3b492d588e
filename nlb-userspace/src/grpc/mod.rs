//! The gRPC server: it converts between protobuf and the model, and refuses invalid messages.

mod cancellation;
mod client;
mod convert;
mod handlers;
mod services;

use std::time::Duration;

use nlb_proto::module_service_server::ModuleServiceServer;
use nlb_proto::nlb_service_server::NlbServiceServer;
use nlb_proto::operator_service_server::OperatorServiceServer;
use tokio::net::TcpListener;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

pub use crate::grpc::client::active_version::ask as poll_active_versions;
pub use crate::grpc::client::can_handle::ask as poll_can_handle;
pub use crate::grpc::client::health_prober::Prober;
pub use crate::grpc::client::peers::Peers;
pub use crate::grpc::client::route_learning::ask_can_handle;
use cancellation::Cancellable;
pub use handlers::control::Control;

/// Enough for a few hundred thousand routes.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
const CALLS_PER_CONNECTION: usize = 256;

/// Serves until `shutdown` ends.
pub async fn serve(
    listener: TcpListener,
    control: Control,
    shutdown: impl Future<Output = ()>,
) -> Result<(), tonic::transport::Error> {
    let reflection = || {
        tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(nlb_proto::FILE_DESCRIPTOR_SET)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
    };
    let metrics = control.metrics.clone();
    let shutdown = async move {
        shutdown.await;
        metrics.close();
    };
    let undecodable = "the descriptors were encoded by the build";
    let (peers, desired) = (control.peers.clone(), control.registry.desired());
    let scaling = control.clone();
    let health = services::health::service(control.applied.clone());
    let nlb = NlbServiceServer::new(control.clone());
    let module = ModuleServiceServer::new(control.clone());
    let operator = OperatorServiceServer::new(control);
    // Nagle's algorithm would delay an answer until the previous one is acknowledged, up to 40 ms with some
    // clients.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(health)
        .add_service(reflection().build_v1().expect(undecodable))
        .add_service(reflection().build_v1alpha().expect(undecodable))
        .add_service(Cancellable(nlb.max_decoding_message_size(MAX_MESSAGE_BYTES)))
        .add_service(Cancellable(module.max_decoding_message_size(MAX_MESSAGE_BYTES)))
        .add_service(Cancellable(operator.max_decoding_message_size(MAX_MESSAGE_BYTES)))
        .serve_with_incoming_shutdown(incoming, shutdown);
    tokio::select! {
        served = server => served,
        never = peers.follow(desired) => match never {},
        never = scaling.watch_scaling() => match never {},
    }
}
