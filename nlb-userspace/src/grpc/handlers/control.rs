//! The state that handlers share, and the wait until a change is in force.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use tokio::sync::watch;
use tokio::time::timeout;
use tracing::warn;

use crate::config::Configuration;
use crate::controllers::resolve::Resolver;
use crate::controllers::scaling::Scaling;
use crate::grpc::client::peers::Peers;
use crate::grpc::convert::error::CallError;
use crate::model::Routes;
use crate::model::host::HostPorts;
use crate::model::traffic::Traffic;
use crate::reconcile::Applied;
use crate::registry::{Owner, Registry};
use crate::store::PersistStatus;
use crate::telemetry::metrics::Metrics;

/// The state of the services: handlers request changes from the registry, and read their results.
#[derive(Clone)]
pub struct Control {
    pub registry: Arc<Registry>,
    pub applied: watch::Receiver<Arc<Applied>>,
    /// Whether the disk holds what operators set.
    pub stored: watch::Receiver<PersistStatus>,
    pub traffic: watch::Receiver<Arc<Traffic>>,
    pub metrics: Metrics,
    pub resolver: Resolver,
    /// Reads the ports of this host.
    pub host_ports: ReadHostPorts,
    /// The modules that calls are passed on to.
    pub peers: Peers,
    pub scaling: Scaling,
    /// Where the gRPC server listens.
    pub address: SocketAddr,
    pub started_at: SystemTime,
    pub configuration: Arc<Configuration>,
    /// The daemon's configuration, for GetNLBStatus.
    pub details: Vec<(String, String)>,
}

/// Reads this host's addresses and listeners.
pub(crate) type ReadHostPorts = Arc<dyn Fn() -> io::Result<HostPorts> + Send + Sync>;

/// How long a caller waits for the maps to hold its change.
const APPLY_TIMEOUT: Duration = Duration::from_secs(5);

impl Control {
    /// What these routes take from this host where a VIP is an address of its own, for the answer and the
    /// log.
    pub(super) fn taken_from_host(&self, routes: &Routes) -> Option<String> {
        if routes.values().all(|route| route.port.is_some()) {
            return None;
        }
        let read = (self.host_ports)();
        let host = read.inspect_err(|error| warn!("cannot read the ports of this host: {error}")).ok()?;
        let all_vips = self.registry.settings().vips.addresses().clone();
        let taken = host.taken(routes.values().map(Arc::as_ref), &all_vips)?;
        warn!("a route for every port: {taken}");
        Some(taken)
    }

    /// Waits until the maps hold this revision.
    pub(crate) async fn applied(&self, revision: u64) -> Result<(), CallError> {
        let mut applied = self.applied.clone();
        let tried = timeout(APPLY_TIMEOUT, applied.wait_for(|applied| applied.revision >= revision)).await;
        match tried {
            Ok(Ok(applied)) => match &applied.error {
                None => Ok(()),
                Some(reason) => Err(CallError::NotApplied { revision, reason: reason.clone() }),
            },
            // The reconciler has ended, or is slow.
            Ok(Err(_)) | Err(_) => Err(CallError::Late { revision }),
        }
    }

    /// Waits until the maps hold this revision and, if the routes are an operator's, the disk holds them.
    pub(crate) async fn routes_settled(&self, owner: Owner<'_>, revision: u64) -> Result<(), CallError> {
        match owner {
            Owner::Operator => self.settled(revision).await,
            // Modules register their routes again after a restart.
            Owner::Module { .. } | Owner::OnBehalf { .. } => self.applied(revision).await,
        }
    }

    /// Waits until the maps hold this revision, and the disk holds what an operator set with it.
    pub(crate) async fn settled(&self, revision: u64) -> Result<(), CallError> {
        let number = self.registry.persisted().borrow().number;
        let mut stored = self.stored.clone();
        let not_stored = async {
            match timeout(APPLY_TIMEOUT, stored.wait_for(|stored| stored.number >= number)).await {
                Ok(Ok(stored)) => stored.error.clone(),
                Ok(Err(_)) | Err(_) => Some(format!("not written after {APPLY_TIMEOUT:?}")),
            }
        };
        let (applied, not_stored) = tokio::join!(self.applied(revision), not_stored);
        applied?;
        not_stored.map_or(Ok(()), |reason| Err(CallError::NotStored(reason)))
    }
}
