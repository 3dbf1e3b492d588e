//! What the front of the fleet does with modules: it passes calls on to them, and changes nothing that they refuse.
//!
//! A change that the data path holds as well is made at both ends or at none. A module that has no ModuleService, or not
//! this call of it, holds nothing that could differ. And a change that takes all flows away from a module does not wait
//! for its consent: that is when an operator most needs it. Whoever a change has not reached is named in the answer.

use std::time::Duration;

use nlb_proto::Error;
use tokio::sync::OwnedMutexGuard;
use tonic::Code;
use tracing::warn;

use super::peers::{ANSWER_TIMEOUT, Call, Outcome, Peer, Peers};
use crate::grpc::convert::error::{CallError, by_instance};
use crate::policy::lease::LeaseState;
use crate::registry::{Record, RegistryError, State};

/// What a module is told of a change, and what would take it back.
pub struct Participant<C, U> {
    pub peer: Peer,
    pub call: C,
    pub undo: U,
    pub consent: Consent,
}

/// What a module's failure to follow a change means for the change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// It is not made.
    Required,
    /// It is made all the same: it takes this module's flows away.
    Advisory,
}

/// Who does not know of a change, and why: instance id and reason.
pub type Unreached = Vec<(String, String)>;

/// No module keeps a change from being made.
pub struct Agreement<U> {
    peers: Peers,
    undo: Vec<(Peer, U)>,
    missed: Missed,
}

/// Whom a change that was made has not reached.
#[derive(Debug)]
pub struct Missed {
    /// They hold nothing that could differ, or will hear of it when they are back.
    unreached: Unreached,
    /// Those of them whose failure was passed over.
    overridden: Unreached,
    /// Of so many that were told.
    of: usize,
}

impl Missed {
    /// As a sentence.
    pub fn note(&self) -> Option<String> {
        let all: Unreached = self.overridden.iter().chain(&self.unreached).cloned().collect();
        (!all.is_empty()).then(|| format!("not reached: {}", by_instance(&all)))
    }

    /// What was passed over, with details by instance.
    pub fn error(&self) -> Option<Error> {
        let problems = self.overridden.clone();
        let failure = CallError::PassedOn { problems, of: self.of, code: Code::Aborted };
        (!self.overridden.is_empty()).then(|| failure.told())
    }
}

impl Peers {
    /// One change of modules and data path together at a time: else two callers' changes could reach them in different
    /// orders, and leave them apart. What another NLB passed on has its turn there.
    pub async fn turn(&self, passed_on: bool) -> Option<OwnedMutexGuard<()>> {
        match passed_on {
            true => None,
            false => Some(self.changes.clone().lock_owned().await),
        }
    }

    /// Tells modules of a change, all at once. If one of them does not follow, the others are told the former value again.
    pub async fn agree<C: Call, U: Call>(
        &self,
        told: Vec<Participant<C, U>>,
        mut unreached: Unreached,
    ) -> Result<Agreement<U>, CallError> {
        let of = told.len();
        let (calls, then): (Vec<_>, Vec<_>) = told
            .into_iter()
            .map(|Participant { peer, call, undo, consent }| ((peer.clone(), call), (peer, undo, consent)))
            .unzip();
        let outcomes = self.ask_all(calls, ANSWER_TIMEOUT).await;
        let mut undo = Vec::new();
        let (mut failures, mut overridden) = (Vec::new(), Vec::new());
        for ((instance_id, outcome), (peer, back, consent)) in outcomes.into_iter().zip(then) {
            if outcome.may_be_done() {
                undo.push((peer.clone(), back));
            }
            if matches!(outcome, Outcome::Done(_)) {
                continue;
            }
            warn!(instance = instance_id, %outcome, "the module rejected or missed a change");
            let holds_nothing = match outcome {
                Outcome::Unimplemented => true,
                Outcome::Unreachable(_) => !self.has_answered(&peer),
                _ => false,
            };
            let those = match consent {
                _ if holds_nothing => &mut unreached,
                Consent::Advisory => &mut overridden,
                Consent::Required => &mut failures,
            };
            those.push((instance_id, outcome.to_string()));
        }
        let missed = Missed { unreached, overridden, of };
        let agreement = Agreement { peers: self.clone(), undo, missed };
        if failures.is_empty() {
            return Ok(agreement);
        }
        Err(CallError::Modules { failures, rollback_failed: agreement.abort().await })
    }

    /// Passes a call on whose effect is the module's own.
    pub async fn pass_on<C: Call>(
        &self,
        peers: Vec<Peer>,
        call: impl Fn(&Peer) -> C,
        max_wait: Duration,
        passed_on: bool,
    ) -> Vec<(String, Outcome<C::Answer>)> {
        if passed_on {
            let refusal =
                || Outcome::Refused("another NLB passed the call on; it goes no further".to_owned());
            return peers.into_iter().map(|peer| (peer.instance_id, refusal())).collect();
        }
        let calls = peers.into_iter().map(|peer| (peer.clone(), call(&peer))).collect();
        self.ask_all(calls, max_wait).await
    }

    /// Passes a call on to one module.
    pub async fn pass_on_to<C: Call>(&self, peer: Peer, call: C, passed_on: bool) -> Outcome<C::Answer> {
        let asked = self.pass_on(vec![peer], |_| call.clone(), ANSWER_TIMEOUT, passed_on).await;
        asked.into_iter().map(|(_, outcome)| outcome).next().expect("one call has one outcome")
    }
}

impl<U: Call> Agreement<U> {
    /// Makes the change here. If the registry refuses it after all, modules are told the former value again.
    pub async fn commit<T>(
        self,
        change: impl FnOnce() -> Result<T, RegistryError>,
    ) -> Result<(T, Missed), CallError> {
        let refusal = match change() {
            Ok(made) => return Ok((made, self.missed)),
            Err(refusal) => refusal,
        };
        let rollback_failed = self.abort().await;
        if rollback_failed.is_empty() {
            return Err(refusal.into());
        }
        Err(CallError::Modules { failures: vec![("nlb".to_owned(), refusal.to_string())], rollback_failed })
    }

    /// Answers who could not be told, and why.
    async fn abort(self) -> Unreached {
        let outcomes = self.peers.ask_all(self.undo, ANSWER_TIMEOUT).await;
        let rollback_failed =
            outcomes.into_iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Done(_)));
        rollback_failed.map(|(instance_id, outcome)| (instance_id, outcome.to_string())).collect()
    }
}

/// The answers of all, or what became of the call where it was not done.
pub fn all_done<T>(outcomes: Vec<(String, Outcome<T>)>) -> Result<Vec<(String, T)>, CallError> {
    let of = outcomes.len();
    let mut code = None;
    let mut problems = Vec::new();
    let mut answers = Vec::new();
    for (instance_id, outcome) in outcomes {
        let (its_code, said) = (outcome.code(), outcome.to_string());
        match outcome.done() {
            Some(answer) => answers.push((instance_id, answer)),
            None => {
                code = Some(if code.is_none_or(|code| code == its_code) { its_code } else { Code::Aborted });
                problems.push((instance_id, said));
            }
        }
    }
    match code {
        None => Ok(answers),
        Some(code) => Err(CallError::PassedOn { problems, of, code }),
    }
}

pub fn peer(record: &Record) -> Peer {
    let registration = &record.registration;
    Peer { instance_id: registration.instance_id.clone(), address: registration.address.clone() }
}

/// The instance, if its lease is current.
pub fn living_peer(state: &State, instance_id: &str) -> Option<Peer> {
    let record = state.record(instance_id).ok();
    record.filter(|record| record.lease_state == LeaseState::Valid).map(peer)
}

/// Those of the instances whose lease is current, and as untold the others, which would only be waited for.
pub fn living(state: &State, instances: &[String]) -> Result<(Vec<Peer>, Unreached), RegistryError> {
    let records = instances.iter().map(|id| state.record(id)).collect::<Result<Vec<_>, _>>()?;
    let (living, silent): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.lease_state == LeaseState::Valid);
    let silent = silent.into_iter().map(|r| (r.registration.instance_id.clone(), "lease lapsed".to_owned()));
    Ok((living.into_iter().map(peer).collect(), silent.collect()))
}

/// What was done and what there is to add, in one message.
pub fn message(done: impl Into<String>, notes: impl IntoIterator<Item = Option<String>>) -> String {
    let notes = notes.into_iter().flatten();
    [done.into()].into_iter().chain(notes).collect::<Vec<_>>().join("; ")
}
