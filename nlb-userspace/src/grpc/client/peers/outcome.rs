//! What became of a call to one module.

use std::fmt;
use std::time::Duration;

use tonic::{Code, Status};

#[derive(Clone, Debug, PartialEq)]
pub enum Outcome<T> {
    Done(T),
    /// It was understood, and not done.
    Refused(String),
    Unreachable(String),
    /// No answer within this time; whether it was done is not known.
    Slow(Duration),
    /// Nor is it known when the answer makes no sense.
    Undecodable(String),
    /// The module does not know the call.
    Unimplemented,
}

impl<T> Outcome<T> {
    /// Of a call that was not answered by a message.
    pub fn of(status: &Status) -> Self {
        let transport = std::error::Error::source(status);
        match status.code() {
            Code::Unimplemented => Outcome::Unimplemented,
            // Its own deadline, which is none of ours.
            Code::DeadlineExceeded => Outcome::Unreachable("it ran into a deadline of its own".to_owned()),
            Code::Unavailable | Code::Cancelled => Outcome::Unreachable(said(status)),
            _ if transport.is_some() => Outcome::Unreachable(said(status)),
            _ => Outcome::Refused(said(status)),
        }
    }

    /// For callers whose response has no room for more.
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
            Outcome::Done(told) => Outcome::Done(answer(told)),
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

    /// Whether the module may have done what it was asked.
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
            Outcome::Unimplemented => f.write_str("unimplemented: the module does not know this call"),
        }
    }
}

/// A status in words, with the cause of all causes: the outermost says no more than "transport error".
pub fn said(status: &Status) -> String {
    let root = std::iter::successors(std::error::Error::source(status), |error| error.source()).last();
    match (status.message(), root) {
        ("", None) => status.code().to_string(),
        (message, None) => message.to_owned(),
        (message, Some(root)) => format!("{message}: {root}"),
    }
}
