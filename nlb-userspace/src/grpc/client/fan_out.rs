//! Fleet-wide changes and calls: the NLB passes calls on to modules, and makes no change that a required
//! participant refuses.
//!
//! A change that concerns the data path too is made there and at the modules, or at neither. A module without
//! ModuleService, or without this call of it, holds no state that could differ. A change that takes all flows
//! from a module does not wait for its consent, because operators need it most when the module fails. The
//! answer names the participants that a change has not reached.

use std::time::Duration;

use nlb_proto::Error;
use tokio::sync::OwnedMutexGuard;
use tonic::Code;
use tracing::warn;

use super::peers::{ANSWER_TIMEOUT, Call, Outcome, Peer, Peers};
use crate::grpc::convert::error::{CallError, by_instance};
use crate::policy::lease::LeaseState;
use crate::registry::{Record, RegistryError, State};

/// A participant of a change: the call that announces the change, and the one that undoes it.
pub struct Participant<C, U> {
    pub peer: Peer,
    pub call: C,
    pub undo: U,
    pub consent: Consent,
}

/// Whether a change waits for a participant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Consent {
    /// If the participant does not confirm, the change is not made.
    Required,
    /// The change is made even if the participant refuses, because it takes this participant's flows away.
    Advisory,
}

/// The participants that a change has not reached, and why: instance id and reason.
pub(crate) type Unreached = Vec<(String, String)>;

/// A change that no participant prevents.
pub struct Agreement<U> {
    peers: Peers,
    undo: Vec<(Peer, U)>,
    missed: NotConfirmed,
}

/// The participants that a change has not reached although it was made.
#[derive(Debug)]
pub struct NotConfirmed {
    /// These hold no state that could differ, or get the change when they register again.
    unreached: Unreached,
    /// Advisory participants that refused, or could not be reached.
    overridden: Unreached,
    /// The number of participants that were called.
    of: usize,
}

impl NotConfirmed {
    /// The ids of the participants that do not have the change.
    pub fn unaware(&self) -> impl Iterator<Item = &str> {
        self.overridden.iter().chain(&self.unreached).map(|(instance_id, _)| instance_id.as_str())
    }

    /// The unreached participants as a sentence.
    pub fn note(&self) -> Option<String> {
        let all: Unreached = self.overridden.iter().chain(&self.unreached).cloned().collect();
        (!all.is_empty()).then(|| format!("not reached: {}", by_instance(&all)))
    }

    /// The overridden participants, with details by instance.
    pub fn error(&self) -> Option<Error> {
        let problems = self.overridden.clone();
        let failure = CallError::PassedOn { problems, of: self.of, code: Code::Aborted };
        (!self.overridden.is_empty()).then(|| failure.to_proto())
    }
}

impl Peers {
    /// Serialises changes of modules and data path together: otherwise two callers' changes could reach them
    /// in different orders, and leave them different. A call that another NLB passed on is serialised there.
    pub async fn serialise(&self, passed_on: bool) -> Option<OwnedMutexGuard<()>> {
        match passed_on {
            true => None,
            false => Some(self.changes.clone().lock_owned().await),
        }
    }

    /// Calls all participants of a change at once. If a required one does not confirm, the previous value
    /// is set again at the others.
    pub async fn agree<C: Call, U: Call>(
        &self,
        participants: Vec<Participant<C, U>>,
        mut unreached: Unreached,
    ) -> Result<Agreement<U>, CallError> {
        let of = participants.len();
        let (calls, then): (Vec<_>, Vec<_>) = participants
            .into_iter()
            .map(|Participant { peer, call, undo, consent }| ((peer.clone(), call), (peer, undo, consent)))
            .unzip();
        let outcomes = self.doing().ask_all(calls, ANSWER_TIMEOUT).await;
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
        let missed = NotConfirmed { unreached, overridden, of };
        let agreement = Agreement { peers: self.clone(), undo, missed };
        if failures.is_empty() {
            return Ok(agreement);
        }
        Err(CallError::Modules { failures, rollback_failed: agreement.abort().await })
    }

    /// Passes a call on to modules. Its effect is the modules' own.
    pub async fn pass_on<C: Call>(
        &self,
        peers: Vec<Peer>,
        call: impl Fn(&Peer) -> C,
        max_wait: Duration,
        passed_on: bool,
    ) -> Vec<(String, Outcome<C::Answer>)> {
        if passed_on {
            let refusal =
                || Outcome::Refused("another NLB passed the call on; it is not passed on again".to_owned());
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
    /// Makes the change here. If the registry refuses it after all, the participants get the previous
    /// value again.
    pub async fn commit<T>(
        self,
        change: impl FnOnce() -> Result<T, RegistryError>,
    ) -> Result<(T, NotConfirmed), CallError> {
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

    /// Sets the previous value again at the participants; returns those where that failed, and why.
    async fn abort(self) -> Unreached {
        let outcomes = self.peers.ask_all(self.undo, ANSWER_TIMEOUT).await;
        let rollback_failed =
            outcomes.into_iter().filter(|(_, outcome)| !matches!(outcome, Outcome::Done(_)));
        rollback_failed.map(|(instance_id, outcome)| (instance_id, outcome.to_string())).collect()
    }
}

/// All answers, or an error that names the calls that were not done.
pub(crate) fn all_done<T>(outcomes: Vec<(String, Outcome<T>)>) -> Result<Vec<(String, T)>, CallError> {
    let of = outcomes.len();
    let mut code = None;
    let mut problems = Vec::new();
    let mut answers = Vec::new();
    for (instance_id, outcome) in outcomes {
        let (its_code, text) = (outcome.code(), outcome.to_string());
        match outcome.done() {
            Some(answer) => answers.push((instance_id, answer)),
            None => {
                code = Some(if code.is_none_or(|code| code == its_code) { its_code } else { Code::Aborted });
                problems.push((instance_id, text));
            }
        }
    }
    match code {
        None => Ok(answers),
        Some(code) => Err(CallError::PassedOn { problems, of, code }),
    }
}

pub(crate) fn peer(record: &Record) -> Peer {
    let registration = &record.registration;
    Peer { instance_id: registration.instance_id.clone(), address: registration.address.clone() }
}

/// The instance, if its lease is valid.
pub(crate) fn reachable_peer(state: &State, instance_id: &str) -> Option<Peer> {
    let record = state.record(instance_id).ok();
    record.filter(|record| record.lease_state == LeaseState::Valid).map(peer)
}

/// The instances whose lease is valid; the others, whose answers would only time out, as unreached.
pub(crate) fn split_by_lease(
    state: &State,
    instances: &[String],
) -> Result<(Vec<Peer>, Unreached), RegistryError> {
    let records = instances.iter().map(|id| state.record(id)).collect::<Result<Vec<_>, _>>()?;
    let (living, silent): (Vec<_>, Vec<_>) =
        records.into_iter().partition(|record| record.lease_state == LeaseState::Valid);
    let silent = silent.into_iter().map(|r| (r.registration.instance_id.clone(), "lease expired".to_owned()));
    Ok((living.into_iter().map(peer).collect(), silent.collect()))
}

/// One message from the outcome and its notes.
pub(crate) fn message(done: impl Into<String>, notes: impl IntoIterator<Item = Option<String>>) -> String {
    let notes = notes.into_iter().flatten();
    [done.into()].into_iter().chain(notes).collect::<Vec<_>>().join("; ")
}
