//! Why a call was not done, as a gRPC status or as the contract's own Error.
//!
//! Malformed messages and missing or invalid credentials give a status. A well-formed change that is refused
//! gives `success = false` and an Error, if the response has a field for one.

use std::net::IpAddr;
use std::time::SystemTime;

use nlb_proto::{Error, StatusCode};
use tonic::{Code, Response, Status};

use super::validate::FieldViolation;
use crate::controllers::resolve::Unresolved;
use crate::controllers::scaling::Unscalable;
use crate::model::reachability::Unreachable;
use crate::registry::RegistryError;

#[derive(Debug)]
pub enum CallError {
    Malformed(Vec<FieldViolation>),
    Refused(RegistryError),
    Unresolved(Unresolved),
    /// No packet gets to a module.
    Unreachable {
        address: IpAddr,
        why: Unreachable,
    },
    /// The change is accepted, but the maps do not hold it.
    NotApplied {
        revision: u64,
        reason: String,
    },
    /// The change is accepted, and whether the maps hold it is not known yet.
    Late {
        revision: u64,
    },
    /// The change is in force, and not on disk: it ends with the daemon.
    NotStored(String),
    /// The settings could not be written to disk.
    NotKept(String),
    /// The configuration has changed since the caller read it.
    Outdated {
        given: String,
        current: String,
    },
    /// Not all participants confirmed the change.
    Modules {
        /// Instance id and reason.
        failures: Vec<(String, String)>,
        /// Participants that made the change, or may have, and could not be set back to the previous value,
        /// and why.
        rollback_failed: Vec<(String, String)>,
    },
    /// A call was passed on, and not all of its instances did it.
    PassedOn {
        /// Instance id and the outcome of the call.
        problems: Vec<(String, String)>,
        /// The number of instances that the call was for.
        of: usize,
        code: Code,
    },
    /// A group of instances cannot be scaled as requested.
    Unscalable(Unscalable),
    /// More than one answer may hold.
    TooMuch(String),
}

/// The response to a call whose response has an Error field; `refused` fills it.
pub(crate) fn answer<T>(
    outcome: Result<T, CallError>,
    refused: impl FnOnce(Error) -> T,
) -> Result<Response<T>, Status> {
    Ok(Response::new(match outcome {
        Ok(response) => response,
        Err(failure) => refused(failure.into_error()?),
    }))
}

impl CallError {
    /// The contract's Error, or a status if the response must not have one.
    fn into_error(self) -> Result<Error, Status> {
        match self.code() {
            Code::InvalidArgument if matches!(self, CallError::Malformed(_)) => Err(self.into()),
            Code::Unauthenticated | Code::PermissionDenied => Err(self.into()),
            _ => Ok(self.to_proto()),
        }
    }

    /// The contract's Error.
    pub fn to_proto(&self) -> Error {
        let code = match self.code() {
            Code::InvalidArgument => StatusCode::InvalidArgument,
            Code::NotFound => StatusCode::NotFound,
            Code::AlreadyExists => StatusCode::AlreadyExists,
            Code::ResourceExhausted => StatusCode::ResourceExhausted,
            Code::Unavailable | Code::DeadlineExceeded => StatusCode::Unavailable,
            _ => StatusCode::Error,
        };
        let details = match self {
            CallError::Modules { failures, rollback_failed } => {
                rollback_failed.iter().chain(failures).cloned().collect()
            }
            CallError::PassedOn { problems, .. } => problems.iter().cloned().collect(),
            CallError::NotApplied { revision, .. } | CallError::Late { revision } => {
                [("revision".to_owned(), revision.to_string())].into()
            }
            _ => Default::default(),
        };
        let occurred_at = Some(SystemTime::now().into());
        Error { code: code.into(), message: self.to_string(), details, occurred_at }
    }

    fn code(&self) -> Code {
        match self {
            CallError::Malformed(_) => Code::InvalidArgument,
            CallError::Unresolved(Unresolved::Unusable { .. }) => Code::InvalidArgument,
            CallError::Unresolved(Unresolved::Lookup { .. }) | CallError::Late { .. } => Code::Unavailable,
            CallError::Unreachable { why: Unreachable::WithoutMac { .. }, .. } => Code::InvalidArgument,
            // The network may come later.
            CallError::Unreachable { .. } => Code::Unavailable,
            CallError::NotApplied { .. } | CallError::NotStored(_) | CallError::NotKept(_) => Code::Internal,
            CallError::Outdated { .. } => Code::AlreadyExists,
            CallError::Modules { .. } => Code::Aborted,
            CallError::PassedOn { code, .. } => *code,
            CallError::Unscalable(Unscalable::Empty) => Code::NotFound,
            CallError::Unscalable(_) => Code::InvalidArgument,
            CallError::TooMuch(_) => Code::ResourceExhausted,
            CallError::Refused(refusal) => code_of(refusal),
        }
    }
}

fn code_of(refusal: &RegistryError) -> Code {
    match refusal {
        RegistryError::UnknownInstance(_)
        | RegistryError::UnknownVersion(_)
        | RegistryError::VersionElsewhere { .. }
        | RegistryError::UnknownDeployment { .. }
        | RegistryError::UnknownRoute(_)
        | RegistryError::UnknownLimit(_)
        | RegistryError::NoFormerSplit
        | RegistryError::NeverActive(_)
        | RegistryError::EmptySplit => Code::NotFound,
        RegistryError::Promoting { .. }
        | RegistryError::ManyDeployments { .. }
        | RegistryError::OtherType { .. }
        | RegistryError::OneSplitAtATime(_) => Code::FailedPrecondition,
        RegistryError::CredentialMissing(_) => Code::Unauthenticated,
        RegistryError::CredentialInvalid(_) => Code::PermissionDenied,
        RegistryError::Taken { .. } | RegistryError::StartedEarlier(_) => Code::AlreadyExists,
        RegistryError::TooManyModules(_)
        | RegistryError::TooManyRoutes { .. }
        | RegistryError::TooManyLimitsMet { .. }
        | RegistryError::TooMany(_) => Code::ResourceExhausted,
        RegistryError::Unsuited { .. }
        | RegistryError::VersionMismatch { .. }
        | RegistryError::OtherDeployment { .. }
        | RegistryError::NotVip { .. }
        | RegistryError::ServerIdTaken { .. }
        | RegistryError::ServerIdLength { .. } => Code::InvalidArgument,
        RegistryError::Serves(_) | RegistryError::Leaving(_) => Code::FailedPrecondition,
        RegistryError::InDeployment { error, .. } => code_of(error),
    }
}

impl std::fmt::Display for CallError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            CallError::Malformed(violations) => {
                f.write_str(&first_of(violations.iter().map(FieldViolation::to_string)))
            }
            CallError::Refused(refusal) => refusal.fmt(f),
            CallError::Unresolved(why) => why.fmt(f),
            CallError::Unreachable { address, why } => write!(f, "no packet gets to {address}: {why}"),
            CallError::TooMuch(why) => f.write_str(why),
            CallError::Unscalable(why) => why.fmt(f),
            CallError::NotApplied { revision, reason } => {
                write!(f, "accepted as revision {revision}, but the data path does not hold it: {reason}")
            }
            CallError::Late { revision } => {
                write!(
                    f,
                    "accepted as revision {revision}, but the data path does not hold it yet; ask GetNLBStatus"
                )
            }
            CallError::NotStored(reason) => write!(
                f,
                "in force, but not written to disk; a restart loses it and any later change: {reason}; the NLB retries"
            ),
            CallError::NotKept(reason) => write!(f, "nothing was changed: {reason}"),
            CallError::Outdated { given, current } => write!(
                f,
                "the configuration is {current:?} now, and the update is for {given:?}; read it again, or leave \
                 config_id empty"
            ),
            CallError::Modules { failures, rollback_failed } => {
                write!(
                    f,
                    "nothing was changed, because not every module confirmed it: {}",
                    by_instance(failures)
                )?;
                match rollback_failed.is_empty() {
                    true => Ok(()),
                    false => {
                        write!(f, "; not rolled back at: {}", by_instance(rollback_failed))
                    }
                }
            }
            CallError::PassedOn { problems, of, .. } => {
                write!(f, "not done by {} of {of} instances: {}", problems.len(), by_instance(problems))
            }
        }
    }
}

/// The first ones, by instance.
pub(crate) fn by_instance(texts: &[(String, String)]) -> String {
    first_of(texts.iter().map(|(id, what)| format!("{id}: {what}")))
}

fn first_of(texts: impl ExactSizeIterator<Item = String>) -> String {
    const SHOWN: usize = 10;
    let rest = texts.len().saturating_sub(SHOWN);
    let rest = (rest > 0).then(|| format!("and {rest} more"));
    texts.take(SHOWN).chain(rest).collect::<Vec<_>>().join("; ")
}

impl From<CallError> for Status {
    fn from(failure: CallError) -> Self {
        Status::new(failure.code(), failure.to_string())
    }
}

impl From<FieldViolation> for CallError {
    fn from(violation: FieldViolation) -> Self {
        CallError::Malformed(vec![violation])
    }
}

impl From<Vec<FieldViolation>> for CallError {
    fn from(violations: Vec<FieldViolation>) -> Self {
        CallError::Malformed(violations)
    }
}

impl From<RegistryError> for CallError {
    fn from(refusal: RegistryError) -> Self {
        CallError::Refused(refusal)
    }
}

impl From<Unscalable> for CallError {
    fn from(why: Unscalable) -> Self {
        CallError::Unscalable(why)
    }
}

impl From<Unresolved> for CallError {
    fn from(why: Unresolved) -> Self {
        CallError::Unresolved(why)
    }
}
