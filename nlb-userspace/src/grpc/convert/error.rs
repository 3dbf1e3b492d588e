//! Why a call did not do what it was asked, as a gRPC status or as the contract's own Error.
//!
//! Malformed messages and callers that do not prove who they are get a status. A well-formed change that is refused
//! gets `success = false` and an Error, where the response has room for one.

use std::time::SystemTime;

use nlb_proto::{Error, StatusCode};
use tonic::{Code, Response, Status};

use super::validate::Fault;
use crate::controllers::resolve::Unresolved;
use crate::controllers::scaling::Unscalable;
use crate::registry::Refusal;

#[derive(Debug)]
pub enum Failure {
    Malformed(Vec<Fault>),
    Refused(Refusal),
    Unresolved(Unresolved),
    /// Accepted, but the maps do not hold it.
    NotApplied {
        revision: u64,
        reason: String,
    },
    /// Accepted, but whether the maps hold it is not known yet.
    Late {
        revision: u64,
    },
    /// In force, and lost with the daemon: it could not be written to disk.
    NotStored(String),
    /// The settings could not be kept.
    NotKept(String),
    /// An update of a configuration that has changed meanwhile.
    Outdated {
        given: String,
        current: String,
    },
    /// Not all modules that were told did it.
    Modules {
        /// Instance id and reason.
        failures: Vec<(String, String)>,
        /// Instances that had, or may have, and and could not be told the former value again, and why.
        astray: Vec<(String, String)>,
    },
    /// A call was passed on, and not done by all of the instances it is for.
    PassedOn {
        /// Instance id and what became of the call.
        problems: Vec<(String, String)>,
        /// Of so many instances.
        of: usize,
        code: Code,
    },
    /// A group of instances is not to have another size.
    Unscalable(Unscalable),
    /// More than one answer should hold.
    TooMuch(String),
}

/// The response to a call whose response has room for an Error; `refused` puts it there.
pub fn answer<T>(
    outcome: Result<T, Failure>,
    refused: impl FnOnce(Error) -> T,
) -> Result<Response<T>, Status> {
    Ok(Response::new(match outcome {
        Ok(response) => response,
        Err(failure) => refused(failure.into_error()?),
    }))
}

impl Failure {
    /// The contract's Error; or a status for what must not be answered with one.
    fn into_error(self) -> Result<Error, Status> {
        match self.code() {
            Code::InvalidArgument if matches!(self, Failure::Malformed(_)) => Err(self.into()),
            Code::Unauthenticated | Code::PermissionDenied => Err(self.into()),
            _ => Ok(self.told()),
        }
    }

    /// The contract's Error.
    pub fn told(&self) -> Error {
        let code = match self.code() {
            Code::InvalidArgument => StatusCode::InvalidArgument,
            Code::NotFound => StatusCode::NotFound,
            Code::AlreadyExists => StatusCode::AlreadyExists,
            Code::ResourceExhausted => StatusCode::ResourceExhausted,
            Code::Unavailable | Code::DeadlineExceeded => StatusCode::Unavailable,
            _ => StatusCode::Error,
        };
        let details = match self {
            Failure::Modules { failures, astray } => astray.iter().chain(failures).cloned().collect(),
            Failure::PassedOn { problems, .. } => problems.iter().cloned().collect(),
            Failure::NotApplied { revision, .. } | Failure::Late { revision } => {
                [("revision".to_owned(), revision.to_string())].into()
            }
            _ => Default::default(),
        };
        let occurred_at = Some(SystemTime::now().into());
        Error { code: code.into(), message: self.to_string(), details, occurred_at }
    }

    fn code(&self) -> Code {
        match self {
            Failure::Malformed(_) => Code::InvalidArgument,
            Failure::Unresolved(Unresolved::Unusable { .. }) => Code::InvalidArgument,
            Failure::Unresolved(Unresolved::Lookup { .. }) | Failure::Late { .. } => Code::Unavailable,
            Failure::NotApplied { .. } | Failure::NotStored(_) | Failure::NotKept(_) => Code::Internal,
            Failure::Outdated { .. } => Code::AlreadyExists,
            Failure::Modules { .. } => Code::Aborted,
            Failure::PassedOn { code, .. } => *code,
            Failure::Unscalable(Unscalable::Empty) => Code::NotFound,
            Failure::Unscalable(_) => Code::InvalidArgument,
            Failure::TooMuch(_) => Code::ResourceExhausted,
            Failure::Refused(refusal) => match refusal {
                Refusal::UnknownInstance(_)
                | Refusal::UnknownVersion(_)
                | Refusal::UnknownRoute(_)
                | Refusal::UnknownLimit(_)
                | Refusal::NoFormerSplit
                | Refusal::NeverActive(_)
                | Refusal::EmptySplit => Code::NotFound,
                Refusal::Promoting { .. } => Code::FailedPrecondition,
                Refusal::ProofMissing(_) => Code::Unauthenticated,
                Refusal::ProofWrong(_) => Code::PermissionDenied,
                Refusal::Taken { .. } | Refusal::StartedEarlier(_) => Code::AlreadyExists,
                Refusal::TooManyModules(_)
                | Refusal::TooManyRoutes { .. }
                | Refusal::TooManyLimitsMet { .. }
                | Refusal::TooMany(_) => Code::ResourceExhausted,
                Refusal::Unsuited { .. }
                | Refusal::VersionMismatch { .. }
                | Refusal::NotVip { .. }
                | Refusal::ServerIdTaken { .. }
                | Refusal::ServerIdLength { .. } => Code::InvalidArgument,
                Refusal::Leaving(_) => Code::FailedPrecondition,
            },
        }
    }
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Failure::Malformed(faults) => f.write_str(&first_of(faults.iter().map(Fault::to_string))),
            Failure::Refused(refusal) => refusal.fmt(f),
            Failure::Unresolved(why) => why.fmt(f),
            Failure::TooMuch(why) => f.write_str(why),
            Failure::Unscalable(why) => why.fmt(f),
            Failure::NotApplied { revision, reason } => {
                write!(f, "accepted as revision {revision}, but the data path does not hold it: {reason}")
            }
            Failure::Late { revision } => {
                write!(
                    f,
                    "accepted as revision {revision}, but the data path does not hold it yet; ask GetNLBStatus"
                )
            }
            Failure::NotStored(reason) => write!(
                f,
                "in force, but a restart would forget it, and what else is set now: {reason}; the NLB goes on trying"
            ),
            Failure::NotKept(reason) => write!(f, "nothing was changed: {reason}"),
            Failure::Outdated { given, current } => write!(
                f,
                "the configuration is {current:?} by now, and the update is for {given:?}; read it again, or leave \
                 config_id empty"
            ),
            Failure::Modules { failures, astray } => {
                write!(
                    f,
                    "nothing was changed, because not every module does it: {}",
                    by_instance(failures)
                )?;
                match astray.is_empty() {
                    true => Ok(()),
                    false => write!(f, "; told of the change and not of its end: {}", by_instance(astray)),
                }
            }
            Failure::PassedOn { problems, of, .. } => {
                write!(f, "not done by {} of {of} instances: {}", problems.len(), by_instance(problems))
            }
        }
    }
}

/// As many as a sentence bears.
pub fn by_instance(said: &[(String, String)]) -> String {
    first_of(said.iter().map(|(id, what)| format!("{id}: {what}")))
}

fn first_of(said: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 10;
    let rest = said.len().saturating_sub(SHOWN);
    let rest = (rest > 0).then(|| format!("and {rest} more"));
    said.take(SHOWN).chain(rest).collect::<Vec<_>>().join("; ")
}

impl From<Failure> for Status {
    fn from(failure: Failure) -> Self {
        Status::new(failure.code(), failure.to_string())
    }
}

impl From<Fault> for Failure {
    fn from(fault: Fault) -> Self {
        Failure::Malformed(vec![fault])
    }
}

impl From<Vec<Fault>> for Failure {
    fn from(faults: Vec<Fault>) -> Self {
        Failure::Malformed(faults)
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Self {
        Failure::Refused(refusal)
    }
}

impl From<Unscalable> for Failure {
    fn from(why: Unscalable) -> Self {
        Failure::Unscalable(why)
    }
}

impl From<Unresolved> for Failure {
    fn from(why: Unresolved) -> Self {
        Failure::Unresolved(why)
    }
}
