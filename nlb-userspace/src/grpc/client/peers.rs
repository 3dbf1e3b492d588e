//! Calls to modules: on connections that are kept, to many at once, each with its own outcome.

mod call;
mod codec;
mod outcome;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt;
use tokio::sync::watch;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::metadata::{Ascii, Binary, MetadataValue};
use tonic::transport::{self, Channel};
use tonic::{Code, Request, Status};
use tracing::debug;

use crate::grpc::convert::deployment;
use crate::model::Desired;
use crate::model::endpoint::Endpoint;
use crate::registry::Scope;

pub(crate) use call::Call;
pub(crate) use outcome::{Outcome, describe};

/// Marks a call as passed on. An NLB that is registered as a module does not pass it on again, which could
/// loop.
const PASSED_ON: &str = "nlb-passed-on";

/// On a call that undoes another one: the version that the other one named. What a module that is an NLB
/// undoes is in the deployments that the version stood for there. In bytes, because a version may have any
/// characters.
const UNDOES: &str = "nlb-undoes-bin";

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// How long a call may take if it sets no time of its own.
pub(crate) const ANSWER_TIMEOUT: Duration = Duration::from_secs(2);

/// Calls in progress at a time, on behalf of one caller.
const MAX_IN_FLIGHT: usize = 64;

/// The interval of keep-alive pings on a silent connection, so that not every caller has to time out on a
/// host that is gone.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

pub(crate) fn is_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// How another NLB passed a call on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PassedOn {
    /// The version that the call names that this one undoes, if it undoes one.
    pub undoes: Option<String>,
}

/// How a call was passed on, if it was.
pub(crate) fn passed_on<T>(request: &Request<T>) -> Option<PassedOn> {
    let undoes = || {
        let version = request.metadata().get_bin(UNDOES)?.to_bytes().ok()?;
        String::from_utf8(version.into()).ok()
    };
    is_passed_on(request).then(|| PassedOn { undoes: undoes() })
}

/// An instance, and where its gRPC server listens.
#[derive(Clone, Debug)]
pub struct Peer {
    pub instance_id: String,
    pub address: Endpoint,
}

/// The connections to modules, by instance id. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Peers {
    lines: Arc<Mutex<BTreeMap<String, Connection>>>,
    /// Held while modules and data path are changed together.
    pub(super) changes: Arc<tokio::sync::Mutex<()>>,
    /// What calls name in metadata as their deployment.
    deployment: Option<MetadataValue<Ascii>>,
    /// The version that calls name that undo a change.
    undoes: Option<MetadataValue<Binary>>,
}

/// The connection to an instance.
#[derive(Debug)]
struct Connection {
    address: Endpoint,
    channel: Channel,
    /// Whether a gRPC server has answered at this address.
    answered: bool,
}

impl Peers {
    /// The same connections for calls that name these deployments, as the caller did: a module that is an NLB
    /// too has deployments of its own.
    pub fn naming(&self, scope: &Scope) -> Peers {
        Peers { deployment: deployment::to_metadata(scope), ..self.clone() }
    }

    /// The same connections for a change of the deployments that have this version: the calls that undo it
    /// name the version.
    pub fn undoing(&self, version: &str) -> Peers {
        Peers { undoes: Some(MetadataValue::from_bytes(version.as_bytes())), ..self.clone() }
    }

    /// The same connections for calls that undo nothing.
    pub(super) fn doing(&self) -> Peers {
        Peers { undoes: None, ..self.clone() }
    }

    /// Makes all calls at once. Outcomes are in the order of the calls.
    pub async fn ask_all<C: Call>(
        &self,
        calls: Vec<(Peer, C)>,
        max_wait: Duration,
    ) -> Vec<(String, Outcome<C::Answer>)> {
        let asked = calls.into_iter().map(|(peer, call)| async move {
            let outcome = self.ask(&peer, call, max_wait).await;
            (peer.instance_id, outcome)
        });
        futures_util::stream::iter(asked).buffered(MAX_IN_FLIGHT).collect().await
    }

    pub async fn ask<C: Call>(&self, peer: &Peer, call: C, max_wait: Duration) -> Outcome<C::Answer> {
        let asked = tokio::time::timeout(max_wait, self.exchange(peer, call)).await;
        let answered = match &asked {
            Ok(Ok(_)) => true,
            // A status with a source comes from the transport, not from the module.
            Ok(Err(status)) => std::error::Error::source(status).is_none(),
            Err(_) => false,
        };
        if answered {
            let mut lines = self.lines();
            let line = lines.get_mut(&peer.instance_id).filter(|line| line.address == peer.address);
            line.into_iter().for_each(|line| line.answered = true);
        }
        let outcome = match asked {
            Ok(Ok(Ok(answer))) => match C::refusal(&answer) {
                None => Outcome::Done(answer),
                Some(reason) => Outcome::Refused(reason),
            },
            Ok(Ok(Err(undecodable))) => Outcome::Undecodable(undecodable.to_string()),
            Ok(Err(status)) if C::REMOVES && status.code() == Code::NotFound => {
                Outcome::Done(C::Answer::default())
            }
            Ok(Err(status)) => Outcome::of(&status),
            Err(_) => Outcome::Slow(max_wait),
        };
        debug!(instance = peer.instance_id, address = %peer.address, path = C::PATH, %outcome, "asked");
        outcome
    }

    /// Calls an instance if its lease is valid; otherwise the outcome is `Unreachable` at once.
    pub fn call_valid<C: Call>(
        &self,
        living: Option<Peer>,
        call: C,
    ) -> impl Future<Output = Outcome<C::Answer>> + use<C> {
        let peers = self.clone();
        async move {
            match living {
                Some(peer) => peers.ask(&peer, call, ANSWER_TIMEOUT).await,
                None => Outcome::Unreachable("its lease has expired".to_owned()),
            }
        }
    }

    async fn exchange<C: Call>(
        &self,
        peer: &Peer,
        call: C,
    ) -> Result<Result<C::Answer, prost::DecodeError>, Status> {
        let mut client = tonic::client::Grpc::new(self.channel(peer)?);
        let ready = client.ready().await;
        ready.map_err(|error| Status::from_error(error.into()))?;
        let mut request = Request::new(call);
        request.metadata_mut().insert(PASSED_ON, MetadataValue::from_static("1"));
        if let Some(deployment) = &self.deployment {
            request.metadata_mut().insert(deployment::KEY, deployment.clone());
        }
        if let Some(undoes) = &self.undoes {
            request.metadata_mut().insert_bin(UNDOES, undoes.clone());
        }
        let codec = codec::Lenient::<C, C::Answer>::default();
        Ok(client.unary(request, PathAndQuery::from_static(C::PATH), codec).await?.into_inner())
    }

    /// The channel connects at its first use, and again after the connection was lost.
    fn channel(&self, peer: &Peer) -> Result<Channel, Status> {
        let mut lines = self.lines();
        match lines.get(&peer.instance_id) {
            Some(line) if line.address == peer.address => return Ok(line.channel.clone()),
            _ => {}
        }
        let endpoint = transport::Endpoint::from_shared(format!("http://{}", peer.address));
        let endpoint = endpoint.map_err(|error| Status::unavailable(error.to_string()))?;
        let channel = endpoint
            .connect_timeout(CONNECT_TIMEOUT)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(ANSWER_TIMEOUT)
            .connect_lazy();
        let line = Connection { address: peer.address.clone(), channel: channel.clone(), answered: false };
        lines.insert(peer.instance_id.clone(), line);
        Ok(channel)
    }

    /// Whether the instance has answered a call at this address, also with an error.
    pub fn has_answered(&self, peer: &Peer) -> bool {
        let lines = self.lines();
        lines.get(&peer.instance_id).is_some_and(|line| line.answered && line.address == peer.address)
    }

    fn lines(&self) -> MutexGuard<'_, BTreeMap<String, Connection>> {
        self.lines.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the connections to modules that have left. Runs until it is dropped.
    pub async fn follow(&self, mut desired: watch::Receiver<Arc<Desired>>) -> Infallible {
        loop {
            let there = desired.borrow_and_update().clone();
            {
                self.lines().retain(|instance_id, _| there.modules.contains_key(instance_id));
            }
            if desired.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }
}
