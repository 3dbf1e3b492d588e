//! One registered module: what it said of itself, and how it stands with us.

use std::time::SystemTime;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::model::endpoint::{Endpoint, Host};
use crate::model::weight_request::WeightRequest;
use crate::model::{Health, Module, Route, Texts};
use crate::policy::health::{Check, HealthSignal, HealthSignals, Source};
use crate::policy::lease::{Lease, LeaseState};
use crate::policy::scaling::policy::Policy;

use super::{Attempt, RegistrationId, Report};
use crate::model::clock::Now;

/// What a module says when it registers.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    pub instance_id: String,
    /// Of its gRPC server.
    pub address: Endpoint,
    /// Where the data addresses come from.
    pub data_hosts: Vec<Host>,
    /// Its part in the data path; `health` is the module's own word.
    pub module: Module,
    /// How to find out whether it serves.
    pub check: Option<Check>,
    /// 0 is unlimited.
    pub max_connections: u32,
    pub started_at: Option<SystemTime>,
    /// Which process this comes from, if it says so. Neither shown nor logged.
    pub attempt: Option<Attempt>,
    pub metadata: Texts,
    pub capabilities: Texts,
    /// How its group scales, if it says so.
    pub scaling: Option<Policy>,
}

impl Registration {
    pub fn has_names(&self) -> bool {
        self.data_hosts.iter().any(|host| matches!(host, Host::Name(_)))
    }

    fn is_of_same_process(&self, other: &Registration) -> bool {
        match (&self.attempt, &other.attempt) {
            (Some(own), Some(others)) => own.is_of_same_process(others),
            _ => false,
        }
    }

    fn is_before(&self, other: &Registration) -> bool {
        match (&self.attempt, &other.attempt) {
            (Some(own), Some(others)) => own.is_before(others),
            _ => false,
        }
    }

    /// Whether it started before the other, where both say when.
    pub fn is_of_earlier_start(&self, other: &Registration) -> bool {
        matches!((self.started_at, other.started_at), (Some(own), Some(others)) if own < others)
    }

    /// Whether all is as it was, but for what changes within one registration, too.
    fn is_unchanged_from(&self, old: &Registration) -> bool {
        let module = Module {
            weight: old.module.weight,
            health: old.module.health,
            data: old.module.data,
            abilities: old.module.abilities.clone(),
            ..self.module.clone()
        };
        let attempt = old.attempt.clone();
        Registration { module, attempt, ..self.clone() } == *old
    }

    /// Whether a health check of the one says the same of the other.
    fn is_checked_as(&self, old: &Registration) -> bool {
        self.check == old.check && self.address == old.address && self.data_hosts == old.data_hosts
    }
}

/// How a registration relates to the one that has its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Relation {
    /// It comes from another process, or does not say.
    Other,
    /// The same process calls again.
    Continuation,
    /// The same process has called again since.
    Outdated,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub registration: Registration,
    pub registration_id: RegistrationId,
    /// Tells this registration from earlier and later ones of the same id.
    pub epoch: u64,
    pub registered_at: SystemTime,
    pub lease: Lease,
    /// The lease's standing as it was last acted upon.
    pub lease_state: LeaseState,
    pub drain: Option<Drain>,
    /// What its health check has found, if it has one.
    pub check: Option<HealthSignal>,
    /// What the resets of its flows say.
    pub resets: HealthSignal,
    pub report: Option<Report>,
    /// The weight that the module or an operator asked for. Rebalancing moves the one in `registration` away from it.
    pub asked_weight: u32,
    /// What the module said last about weights, be it by registering.
    pub request: WeightRequest,
    /// When each route came, by route id.
    pub routes_since: OrdMap<String, SystemTime>,
}

/// Why a module is given no new flows although it is well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// An operator's wish; the module stays registered.
    Maintenance,
    /// The module unregisters.
    Leaving,
}

/// What operators have set for one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceOverrides {
    /// In place of the one that it registers with.
    pub weight: Option<u32>,
    /// It is drained, and stays so.
    pub maintenance: bool,
}

impl Record {
    pub fn new(registration: Registration, epoch: u64, now: Now) -> Self {
        let routes_since = registration.module.routes.keys().map(|id| (id.clone(), now.wall)).collect();
        Record {
            check: registration.check.is_some().then(HealthSignal::unchecked),
            resets: HealthSignal::healthy(),
            asked_weight: registration.module.weight,
            request: WeightRequest::Own(registration.module.weight),
            registration,
            registration_id: RegistrationId::new(),
            epoch,
            registered_at: now.wall,
            lease: Lease::new(now.at),
            lease_state: LeaseState::Valid,
            drain: None,
            report: None,
            routes_since,
        }
    }

    pub(super) fn is_same_process(&self, newcomer: &Registration) -> bool {
        self.registration.is_of_same_process(newcomer)
    }

    pub(super) fn relation(&self, newcomer: &Registration) -> Relation {
        match self.is_same_process(newcomer) {
            false => Relation::Other,
            true if newcomer.is_before(&self.registration) => Relation::Outdated,
            // A module that has begun to leave begins anew.
            true if self.drain == Some(Drain::Leaving) => Relation::Other,
            true => Relation::Continuation,
        }
    }

    /// Takes over what the same process says now. The registration_id stays, and what operators have set.
    ///
    /// Observers know a registration by its epoch. It stays where the call says nothing new. Else it changes, so that they look
    /// again: a health check must not go on with the former probe, nor a resolver with the former names.
    pub(super) fn renew(
        &mut self,
        registration: Registration,
        overrides: InstanceOverrides,
        next_epoch: impl FnOnce() -> u64,
        now: Now,
    ) {
        let old = std::mem::replace(&mut self.registration, registration);
        let asked = self.registration.module.weight;
        if overrides.weight.is_some() || asked == self.asked_weight {
            // The operator's, or one that rebalancing has moved.
            self.registration.module.weight = old.module.weight;
        } else {
            self.asked_weight = asked;
            self.request = WeightRequest::Own(asked);
        }
        let routes = self.registration.module.routes.keys();
        let since = |id: &String| self.routes_since.get(id).copied().unwrap_or(now.wall);
        self.routes_since = routes.map(|id| (id.clone(), since(id))).collect();
        if !self.registration.is_checked_as(&old) {
            self.check = self.registration.check.is_some().then(HealthSignal::unchecked);
        }
        if !self.registration.is_unchanged_from(&old) {
            self.epoch = next_epoch();
            self.resets = HealthSignal::healthy();
        }
        // As of a new one: the process may have to hear of the interval again.
        self.lease = Lease::new(now.at);
        self.lease_state = LeaseState::Valid;
    }

    /// Gives it the weight that was asked for.
    pub(super) fn weigh(&mut self, weight: u32) {
        self.registration.module.weight = weight;
        self.asked_weight = weight;
    }

    /// Takes over what operators had set before the NLB was restarted.
    pub(super) fn obey(&mut self, overrides: InstanceOverrides) {
        if let Some(weight) = overrides.weight {
            self.weigh(weight);
        }
        if overrides.maintenance {
            self.drain = Some(Drain::Maintenance);
        }
    }

    /// What counts for steering.
    pub fn health(&self) -> Health {
        self.signals().health()
    }

    /// Whether it would get new flows of a route that it was given.
    pub fn could_serve(&self, route: &Route) -> bool {
        self.health().takes_new_flows() && route.suits(&self.registration.module).is_ok()
    }

    pub fn signals(&self) -> HealthSignals {
        HealthSignals {
            module: self.registration.module.health,
            lease: if self.lease_state == LeaseState::Valid { Health::Healthy } else { Health::Unhealthy },
            check: self.check.as_ref().map(|signal| signal.health),
            resets: self.resets.health,
            operator: if self.drain.is_some() { Health::Stopping } else { Health::Healthy },
        }
    }

    /// What a source that gives reasons has told.
    pub fn told(&self, source: Source) -> Option<&HealthSignal> {
        match source {
            Source::Check => self.check.as_ref(),
            Source::Resets => Some(&self.resets),
            Source::Module | Source::Lease | Source::Operator => None,
        }
    }
}

/// What a newcomer puts forward to supersede a living module from another address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    #[default]
    None,
    /// It knows the registration_id.
    RegistrationId(String),
    /// We found that the registration of this epoch no longer answers at its address.
    Silent { epoch: u64 },
}

impl Claim {
    pub fn overrides(&self, old: &Record) -> bool {
        match self {
            Claim::None => false,
            Claim::RegistrationId(id) => old.registration_id.is(id),
            Claim::Silent { epoch } => old.epoch == *epoch,
        }
    }
}
