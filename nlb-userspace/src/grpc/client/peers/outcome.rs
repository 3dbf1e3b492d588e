//! The outcome of a call to one module.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    Done(T),
    /// The module understood the call, and did not do it.
    Refused(String),
    Unreachable(String),
    /// No answer within this time; whether the call was done is unknown.
    Slow(Duration),
    /// The answer does not decode; whether the call was done is unknown.
    Undecodable(String),
    /// The module does not implement the call.
    Unimplemented,
}

impl<T> Outcome<T> {
    /// The outcome of a call that ended with a status instead of a message.
    pub fn of(status: &Status) -> Self {
        let transport = std::error::Error::source(status);
        match status.code() {
            Code::Unimplemented => Outcome::Unimplemented,
            // A deadline of the module itself, and not of this call.
            Code::DeadlineExceeded => {
                Outcome::Unreachable("the module reports a deadline of its own".to_owned())
            }
            Code::Unavailable | Code::Cancelled => Outcome::Unreachable(describe(status)),
            _ if transport.is_some() => Outcome::Unreachable(describe(status)),
            _ => Outcome::Refused(describe(status)),
        }
    }

    /// The gRPC code, for responses without a field for details.
    pub fn code(&self) -> Code {
        match self {
            Outcome::Done(_) => Code::Ok,
            Outcome::Refused(_) => Code::Aborted,
            Outcome::Unreachable(_) => Code::Unavailable,
            Outcome::Slow(_) => Code::DeadlineExceeded,
            Outcome::Undecodable(_) => Code::Internal,
            Outcome::Unimplemented => Code::Unimplemented,
        }
    }

    pub fn map<U>(self, answer: impl FnOnce(T) -> U) -> Outcome<U> {
        match self {
            Outcome::Done(response) => Outcome::Done(answer(response)),
            Outcome::Refused(reason) => Outcome::Refused(reason),
            Outcome::Unreachable(reason) => Outcome::Unreachable(reason),
            Outcome::Slow(max_wait) => Outcome::Slow(max_wait),
            Outcome::Undecodable(reason) => Outcome::Undecodable(reason),
            Outcome::Unimplemented => Outcome::Unimplemented,
        }
    }

    pub fn done(self) -> Option<T> {
        match self {
            Outcome::Done(answer) => Some(answer),
            _ => None,
        }
    }

    /// Whether the module may have done what the call requests.
    pub fn may_be_done(&self) -> bool {
        matches!(self, Outcome::Done(_) | Outcome::Slow(_) | Outcome::Undecodable(_))
    }
}

impl<T> fmt::Display for Outcome<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Outcome::Done(_) => f.write_str("done"),
            Outcome::Refused(reason) => f.write_str(reason),
            Outcome::Unreachable(reason) => write!(f, "unreachable: {reason}"),
            Outcome::Slow(max_wait) => write!(f, "slow: no answer within {max_wait:?}"),
            Outcome::Undecodable(reason) => write!(f, "undecodable answer: {reason}"),
            Outcome::Unimplemented => f.write_str("unimplemented: the module does not implement this call"),
        }
    }
}

/// A status as text, with its root cause: the outermost error is just "transport error".
pub(crate) fn describe(status: &Status) -> String {
    let root = std::iter::successors(std::error::Error::source(status), |error| error.source()).last();
    match (status.message(), root) {
        ("", None) => status.code().to_string(),
        (message, None) => message.to_owned(),
        (message, Some(root)) => format!("{message}: {root}"),
    }
}
