//! The calls of a module to the NLB. Each carries the registration id, which authenticates the caller.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{
    Error as Refusal, GetRoutesRequest, HeartbeatRequest, HeartbeatResponse, Pagination,
    PromoteVersionRequest, Query, RegisterModuleRequest, RollbackRequest, RollbackResponse, Route,
    SetTrafficWeightRequest, StatusCode, UnregisterModuleRequest, UpdateRoutingRequest,
};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status};

use crate::State;

const CONNECT: Duration = Duration::from_secs(3);
/// The NLB answers a change once its maps hold it, which takes up to 5 seconds.
const ANSWER: Duration = Duration::from_secs(8);
const LARGEST_PAGE: i32 = 1000;

#[derive(Clone, Debug)]
pub(crate) struct Nlb {
    channel: Channel,
    /// Empty until registered.
    registration_id: Arc<Mutex<String>>,
    attempts: Arc<Attempts>,
}

/// Identifies calls to register as those of one process, and orders them: a call that was given up may still
/// be processed, before the next one or after it.
struct Attempts {
    /// As secret as the registration id.
    nonce: String,
    made: AtomicU64,
}

impl Attempts {
    fn new() -> Attempts {
        let mut bits = [0u8; 16];
        getrandom::fill(&mut bits).expect("the kernel provides random bytes");
        Attempts { nonce: bits.iter().map(|byte| format!("{byte:02x}")).collect(), made: AtomicU64::new(0) }
    }

    /// The metadata of the next call.
    fn next(&self) -> [(String, String); 2] {
        let number = self.made.fetch_add(1, Ordering::Relaxed) + 1;
        [
            ("registration_nonce".to_owned(), self.nonce.clone()),
            ("registration_attempt".to_owned(), number.to_string()),
        ]
    }
}

impl fmt::Debug for Attempts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Attempts(…)")
    }
}

/// Why the NLB did not do what the call asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// The NLB is unreachable, or cannot do it now.
    #[error("{0}")]
    Temporary(String),
    /// The NLB does not have this registration.
    #[error("{0}")]
    NotFound(String),
    /// The NLB refuses the content of the call, or its caller.
    #[error("{0}")]
    Refused(String),
}

impl Nlb {
    /// Connects at the first call, and again whenever the connection is lost.
    pub(crate) fn at(endpoint: Endpoint) -> Nlb {
        let channel = endpoint.connect_timeout(CONNECT).connect_lazy();
        Nlb { channel, registration_id: Arc::default(), attempts: Arc::new(Attempts::new()) }
    }

    pub(crate) async fn register(&self, state: &State) -> Result<(), Failure> {
        let mut instance = state.instance();
        let earlier = self.registration_id();
        if !earlier.is_empty() {
            // Proves that this is the same module even if its address has changed.
            instance.metadata.insert("registration_id".to_owned(), earlier);
        }
        instance.metadata.extend(self.attempts.next());
        let initial_routes = state.routes().into_values().collect();
        let request = RegisterModuleRequest {
            instance: Some(instance),
            initial_routes,
            health_config: state.health_check.clone(),
            ..Default::default()
        };
        let answer = self.service().register_module(within(ANSWER, request)).await?.into_inner();
        accepted(answer.success, answer.message, answer.error)?;
        *self.registration_id.lock().unwrap_or_else(PoisonError::into_inner) = answer.registration_id;
        Ok(())
    }

    pub(crate) async fn heartbeat(&self, state: &State) -> Result<HeartbeatResponse, Failure> {
        let request = HeartbeatRequest {
            instance_id: state.instance_id().to_owned(),
            registration_id: self.registration_id(),
            status: state.health().into(),
            current_stats: Some(state.stats()),
            timestamp: Some(std::time::SystemTime::now().into()),
        };
        let answer = self.service().heartbeat(within(ANSWER, request)).await?.into_inner();
        if answer.acknowledged { Ok(answer) } else { Err(Failure::NotFound(answer.message)) }
    }

    /// Answers when the last flow has closed, or at the timeout; returns how many flows closed in time.
    pub(crate) async fn unregister(&self, state: &State, drain: Option<Duration>) -> Result<i32, Failure> {
        let timeout = drain.unwrap_or_default();
        let request = UnregisterModuleRequest {
            instance_id: state.instance_id().to_owned(),
            registration_id: self.registration_id(),
            graceful: drain.is_some(),
            // 0 would mean the NLB's default.
            drain_timeout_seconds: timeout.as_secs_f64().ceil().max(1.0) as i32,
        };
        let answer = self.service().unregister_module(within(timeout + ANSWER, request)).await?.into_inner();
        accepted(answer.success, answer.message, answer.error)?;
        Ok(answer.active_connections_drained)
    }

    pub(crate) async fn set_routes(&self, state: &State, routes: Vec<Route>) -> Result<i32, Failure> {
        if !self.is_registered() {
            return Err(Failure::Temporary("not registered yet".to_owned()));
        }
        let request = UpdateRoutingRequest {
            routes,
            replace_all: true,
            source_instance_id: state.instance_id().to_owned(),
            validate_only: false,
            registration_id: self.registration_id(),
        };
        let answer = self.service().update_routing(within(ANSWER, request)).await?.into_inner();
        if !answer.validation_errors.is_empty() {
            return Err(Failure::Refused(answer.validation_errors.join("; ")));
        }
        accepted(answer.success, answer.message, answer.error)?;
        Ok(answer.routes_updated)
    }

    /// The instance's own routes, as the NLB has them.
    pub(crate) async fn routes(&self, state: &State) -> Result<Vec<Route>, Failure> {
        if !self.is_registered() {
            return Err(Failure::Temporary("not registered yet".to_owned()));
        }
        let mut front = ModuleServiceClient::new(self.channel.clone());
        let mut routes = Vec::new();
        for page in 1.. {
            let pagination = Some(Pagination { page, page_size: LARGEST_PAGE, ..Pagination::default() });
            let query = Some(Query { pagination, ..Query::default() });
            let request = GetRoutesRequest { instance_id: state.instance_id().to_owned(), query };
            let answer = front.get_routes(within(ANSWER, request)).await?.into_inner();
            routes.extend(answer.routes);
            if page >= answer.pagination.unwrap_or_default().total_pages {
                break;
            }
        }
        Ok(routes)
    }

    pub(crate) async fn set_weight(&self, state: &State, weight: u32) -> Result<(), Failure> {
        let request = SetTrafficWeightRequest {
            instance_id: state.instance_id().to_owned(),
            version: state.version().to_owned(),
            weight: i32::try_from(weight).unwrap_or(i32::MAX),
        };
        let mut front = ModuleServiceClient::new(self.channel.clone());
        let answer = front.set_traffic_weight(within(ANSWER, request)).await?.into_inner();
        accepted(answer.success, answer.message, answer.error)
    }

    /// Requests more new flows for this instance's version.
    pub(crate) async fn promote(&self, request: PromoteVersionRequest) -> Result<(), Failure> {
        let mut front = ModuleServiceClient::new(self.channel.clone());
        let answer = front.promote_version(within(ANSWER, request)).await?.into_inner();
        accepted(answer.success, answer.message, answer.error)
    }

    pub(crate) async fn roll_back(&self, request: RollbackRequest) -> Result<RollbackResponse, Failure> {
        let mut front = ModuleServiceClient::new(self.channel.clone());
        let answer = front.rollback(within(ANSWER, request)).await?.into_inner();
        accepted(answer.success, answer.message.clone(), answer.error.clone())?;
        Ok(answer)
    }

    pub(crate) fn is_registered(&self) -> bool {
        !self.registration_id().is_empty()
    }

    fn registration_id(&self) -> String {
        self.registration_id.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn service(&self) -> NlbServiceClient<Channel> {
        NlbServiceClient::new(self.channel.clone())
    }
}

fn within<T>(time: Duration, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(time);
    request
}

fn accepted(success: bool, message: String, refusal: Option<Refusal>) -> Result<(), Failure> {
    if success {
        return Ok(());
    }
    let refusal = refusal.unwrap_or_default();
    let why = if refusal.message.is_empty() { message } else { refusal.message.clone() };
    Err(match refusal.code() {
        StatusCode::NotFound => Failure::NotFound(why),
        StatusCode::InvalidArgument | StatusCode::PermissionDenied => Failure::Refused(why),
        // The id may become free, an operator may raise the limit, or the NLB may recover.
        _ => Failure::Temporary(why),
    })
}

impl From<Status> for Failure {
    fn from(status: Status) -> Failure {
        let why = format!("{}: {}", status.code(), status.message());
        match status.code() {
            Code::NotFound => Failure::NotFound(why),
            Code::InvalidArgument
            | Code::OutOfRange
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented => Failure::Refused(why),
            _ => Failure::Temporary(why),
        }
    }
}
