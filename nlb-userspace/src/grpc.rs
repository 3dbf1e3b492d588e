//! The gRPC server: protobuf to model and back, and nothing else. Whatever is invalid is refused here.

mod abilities;
mod any;
mod config;
mod failure;
mod fault;
mod figures;
mod fleet;
mod health;
mod health_check;
mod instance;
mod lifecycle;
mod limits;
mod listed;
mod load;
mod metrics;
mod module;
mod modules;
mod names;
mod nlb;
mod numbers;
mod operator;
mod own_routes;
mod peers;
mod points;
mod prober;
mod proof;
mod query;
mod rebalance;
mod relay;
mod report;
mod reporting;
mod route;
mod routing;
mod scaling;
mod scaling_config;
mod split;
mod status;
mod subscription;
mod table;
mod upcall;
mod versions;
mod wishes;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb_proto::module_service_server::ModuleServiceServer;
use nlb_proto::nlb_service_server::NlbServiceServer;
use nlb_proto::operator_service_server::OperatorServiceServer;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::timeout;
use tonic::transport::Server;
use tonic::transport::server::TcpIncoming;

use crate::config::Configuration;
use crate::metrics::Metrics;
use crate::reconcile::Applied;
use crate::registry::{Owner, Registry};
use crate::resolve::Resolver;
use crate::scaling::Scaling;
use crate::stats::Traffic;
use crate::store::Stored;
pub use abilities::ask as ask_abilities;
use failure::Failure;
pub use peers::Peers;
pub use prober::Prober;
pub use upcall::who_can;
pub use wishes::ask as ask_wishes;

/// What the services work with: they ask the registry for changes, and see what became of them.
#[derive(Clone)]
pub struct Control {
    pub registry: Arc<Registry>,
    pub applied: watch::Receiver<Arc<Applied>>,
    /// How far what operators set is on disk.
    pub stored: watch::Receiver<Stored>,
    pub traffic: watch::Receiver<Arc<Traffic>>,
    pub metrics: Metrics,
    pub resolver: Resolver,
    /// Where calls are passed on.
    pub peers: Peers,
    pub scaling: Scaling,
    pub started_at: SystemTime,
    pub configuration: Arc<Configuration>,
    /// How this daemon is set up, for GetNLBStatus.
    pub details: Vec<(String, String)>,
}

/// A few hundred thousand routes.
const MAX_MESSAGE_BYTES: usize = 32 << 20;
const CALLS_PER_CONNECTION: usize = 256;

/// How long a caller waits for the maps to hold its change.
const APPLY_PATIENCE: Duration = Duration::from_secs(5);

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
    // An answer must not wait for the acknowledgement of the one before, which a client may put off for 40 ms.
    let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
    let server = Server::builder()
        .concurrency_limit_per_connection(CALLS_PER_CONNECTION)
        .http2_keepalive_interval(Some(Duration::from_secs(30)))
        .add_service(health::service(control.applied.clone()))
        .add_service(reflection().build_v1().expect(undecodable))
        .add_service(reflection().build_v1alpha().expect(undecodable))
        .add_service(NlbServiceServer::new(control.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(ModuleServiceServer::new(control.clone()).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .add_service(OperatorServiceServer::new(control).max_decoding_message_size(MAX_MESSAGE_BYTES))
        .serve_with_incoming_shutdown(incoming, shutdown);
    tokio::select! {
        served = server => served,
        never = peers.follow(desired) => match never {},
        never = scaling.watch_scaling() => match never {},
    }
}

impl Control {
    /// Waits until the maps hold this revision.
    async fn applied(&self, revision: u64) -> Result<(), Failure> {
        let mut applied = self.applied.clone();
        let tried = timeout(APPLY_PATIENCE, applied.wait_for(|applied| applied.revision >= revision)).await;
        match tried {
            Ok(Ok(applied)) => match &applied.error {
                None => Ok(()),
                Some(reason) => Err(Failure::NotApplied { revision, reason: reason.clone() }),
            },
            // The reconciler has ended, or is slow.
            Ok(Err(_)) | Err(_) => Err(Failure::Late { revision }),
        }
    }

    /// Waits until the maps hold this revision, and the disk routes that are the operator's.
    async fn routes_settled(&self, owner: Owner<'_>, revision: u64) -> Result<(), Failure> {
        match owner {
            Owner::Operator => self.settled(revision).await,
            // Modules bring theirs again.
            Owner::Module { .. } | Owner::OnBehalf { .. } => self.applied(revision).await,
        }
    }

    /// Waits until the maps hold this revision, and the disk what an operator has set with it.
    async fn settled(&self, revision: u64) -> Result<(), Failure> {
        let number = self.registry.kept().borrow().number;
        let mut stored = self.stored.clone();
        let not_stored = async {
            match timeout(APPLY_PATIENCE, stored.wait_for(|stored| stored.number >= number)).await {
                Ok(Ok(stored)) => stored.error.clone(),
                Ok(Err(_)) | Err(_) => Some(format!("it is not written after {APPLY_PATIENCE:?}")),
            }
        };
        let (applied, not_stored) = tokio::join!(self.applied(revision), not_stored);
        applied?;
        not_stored.map_or(Ok(()), |reason| Err(Failure::NotStored(reason)))
    }
}
