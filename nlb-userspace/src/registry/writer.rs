//! The single writer of the desired state.
//!
//! Every change is made on a copy, which is checked as a whole and then replaces the current state: a refused
//! change leaves no trace. Copies share what they have in common, so the cost of a change does not grow with
//! the fleet. Readers take a snapshot; the reconciler watches [`Desired`], whose revision grows with every
//! change that concerns the data path. Time is an argument.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use tokio::sync::watch;
use tracing::{info, warn};

use super::admission::Admission;
use super::published::Published;
use super::{
    Claim, PersistedRevision, PersistedState, Registration, RegistrationId, RegistryError, Report, State,
};
use crate::model::clock::Now;
use crate::model::settings::Settings;
use crate::model::{Desired, Health};
use crate::policy::lease::LeaseState;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Apply,
    /// Check whether the change would be accepted, and change nothing.
    DryRun,
}

pub struct Registry {
    state: Mutex<Arc<State>>,
    /// Locked only while `state` is locked.
    published: Mutex<Published>,
    desired: watch::Sender<Arc<Desired>>,
    pub(super) persisted: watch::Sender<PersistedRevision>,
}

/// The answer to a registration.
#[derive(Debug)]
pub struct Registered {
    pub registration_id: RegistrationId,
    pub registered_at: SystemTime,
    pub admission: Admission,
    pub revision: u64,
}

impl Registry {
    pub fn new(settings: Settings) -> Self {
        let state = Arc::new(State::new(settings));
        let published = Published::first(state.clone());
        let desired = watch::Sender::new(published.desired.clone());
        let persisted = watch::Sender::new(PersistedRevision::default());
        Registry { state: Mutex::new(state), published: Mutex::new(published), desired, persisted }
    }

    /// The desired state of the data path; the receiver wakes with every new revision.
    pub fn desired(&self) -> watch::Receiver<Arc<Desired>> {
        self.desired.subscribe()
    }

    /// The current state.
    pub fn snapshot(&self) -> Arc<State> {
        self.lock().clone()
    }

    pub fn settings(&self) -> Arc<Settings> {
        self.lock().settings.clone()
    }

    /// Applies other settings; settings that the current state does not fit are refused.
    pub fn configure(&self, settings: Settings, commit: Commit) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(commit, |state| {
            state.settings = Arc::new(settings);
            state.check_vips()
        })?;
        if commit == Commit::Apply {
            info!(revision, "settings changed");
        }
        Ok(revision)
    }

    /// Registers a module. A registration with the same id is superseded, if the claim or the two
    /// registrations allow it.
    pub fn register(
        &self,
        registration: Registration,
        claim: &Claim,
        now: Now,
    ) -> Result<Registered, RegistryError> {
        let instance_id = registration.instance_id.clone();
        let ((registration_id, registered_at, admission), revision) =
            self.change(Commit::Apply, |state| state.admit(registration, claim, now))?;
        info!(instance = instance_id, ?admission, revision, "module registered");
        Ok(Registered { registration_id, registered_at, admission, revision })
    }

    /// Renews the lease, and records the health and figures that the module reports.
    pub fn heartbeat(
        &self,
        instance_id: &str,
        registration_id: &str,
        health: Option<Health>,
        report: Option<Report>,
        now: Now,
    ) -> Result<Option<u64>, RegistryError> {
        let mut state = self.lock();
        self.authenticate(&state, instance_id, registration_id)?;
        let record = Arc::make_mut(&mut state).record_mut(instance_id)?;
        let before = record.health();
        record.lease.renew(now.at);
        if record.lease_state != LeaseState::Valid {
            info!(instance = instance_id, "lease valid again: a heartbeat came");
            record.lease_state = LeaseState::Valid;
        }
        if let Some(health) = health {
            record.registration.module.health = health;
        }
        if report.is_some() {
            record.report = report;
        }
        // Most heartbeats change nothing, and there are many of them.
        let news = record.health() != before;
        if state.awaits(instance_id) {
            Arc::make_mut(&mut state).await_no_more(instance_id);
        }
        Ok(news.then(|| self.publish(&state)))
    }

    /// Ends new flows to the registration of this epoch until its next heartbeat, because another instance
    /// answers at its address; `None` if it no longer exists.
    pub fn displace(&self, instance_id: &str, epoch: u64, now: Now) -> Option<u64> {
        let mut state = self.lock();
        state.modules.get(instance_id).filter(|record| record.epoch == epoch)?;
        let changed = Arc::make_mut(&mut state);
        let config = changed.settings.lease;
        let record = changed.record_mut(instance_id).ok()?;
        record.lease.expire(&config, now.at);
        record.lease_state = record.lease.state(&config, now.at);
        let address = record.registration.address.clone();
        warn!(instance = instance_id, %address, "another module answers at its address: it gets no new flows");
        Some(self.publish(&state))
    }

    /// Removes a module at once, at its own request.
    pub fn unregister(&self, instance_id: &str, registration_id: &str) -> Result<u64, RegistryError> {
        let snapshot = self.snapshot();
        self.authenticate(&snapshot, instance_id, registration_id)?;
        let epoch = snapshot.record(instance_id)?.epoch;
        self.remove(instance_id, epoch).ok_or_else(|| RegistryError::UnknownInstance(instance_id.to_owned()))
    }

    /// Removes a module at once, at an operator's request: one that does not serve or, if forced, any.
    pub fn evict(&self, instance_id: &str, force: bool) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(Commit::Apply, |state| {
            let record = state.record(instance_id)?;
            if !force && !record.is_dead() {
                return Err(RegistryError::Serves(instance_id.to_owned()));
            }
            state.forget_module(instance_id);
            Ok(())
        })?;
        info!(instance = instance_id, revision, "module removed by an operator");
        Ok(revision)
    }

    /// Removes the registration of this epoch; `None` if it no longer exists.
    pub fn remove(&self, instance_id: &str, epoch: u64) -> Option<u64> {
        let mut state = self.lock();
        state.modules.get(instance_id).filter(|record| record.epoch == epoch)?;
        Arc::make_mut(&mut state).forget_module(instance_id);
        let revision = self.publish(&state);
        info!(instance = instance_id, revision, "module removed");
        Some(revision)
    }

    /// Checks the credential of a module's call.
    pub(super) fn authenticate(
        &self,
        state: &State,
        instance_id: &str,
        registration_id: &str,
    ) -> Result<(), RegistryError> {
        let record = state.record(instance_id)?;
        match registration_id {
            "" if state.settings.accept_empty_ids => Ok(()),
            "" => Err(RegistryError::CredentialMissing(instance_id.to_owned())),
            id if record.registration_id.is(id) => Ok(()),
            _ => Err(RegistryError::CredentialInvalid(instance_id.to_owned())),
        }
    }

    pub(super) fn change<T>(
        &self,
        commit: Commit,
        edit: impl FnOnce(&mut State) -> Result<T, RegistryError>,
    ) -> Result<(T, u64), RegistryError> {
        let mut current = self.lock();
        let mut candidate = State::clone(&current);
        let answer = edit(&mut candidate)?;
        let last = self.published();
        let next = last.fitting(candidate)?;
        if commit == Commit::DryRun {
            return Ok((answer, last.desired.revision));
        }
        *current = next.state.clone();
        Ok((answer, self.send(last, next)))
    }

    /// Publishes the desired state that follows from this state, under a new revision if it differs. The
    /// caller holds the lock, so revisions are published in order.
    pub(super) fn publish(&self, state: &Arc<State>) -> u64 {
        let last = self.published();
        let next = last.next(state.clone());
        self.send(last, next)
    }

    pub(super) fn send(&self, mut last: MutexGuard<'_, Published>, next: Published) -> u64 {
        let revision = next.desired.revision;
        self.keep(&next.state);
        if revision != last.desired.revision {
            self.desired.send_replace(next.desired.clone());
        }
        *last = next;
        revision
    }

    /// Called under the lock, with the state that becomes the current one.
    fn keep(&self, state: &State) {
        let persisted = PersistedState::of(state);
        self.persisted.send_if_modified(|last| {
            let news = *last.state != persisted;
            if news {
                *last = PersistedRevision { number: last.number + 1, state: Arc::new(persisted) };
            }
            news
        });
    }

    // A panic under a lock leaves the values whole: changes are swapped in.

    pub(super) fn lock(&self) -> MutexGuard<'_, Arc<State>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn published(&self) -> MutexGuard<'_, Published> {
        self.published.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
