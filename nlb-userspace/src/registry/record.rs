//! One registered module: its registration, and the state that the registry keeps for it.

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

/// The content of a call to register.
#[derive(Clone, Debug, PartialEq)]
pub struct Registration {
    pub instance_id: String,
    /// The address of the module's gRPC server.
    pub address: Endpoint,
    /// The hosts that the data addresses are resolved from.
    pub data_hosts: Vec<Host>,
    /// The module's part in the data path; `health` is the health that the module reports.
    pub module: Module,
    /// The health check that the module asks for.
    pub check: Option<Check>,
    pub started_at: Option<SystemTime>,
    /// The process that the call comes from, if the call names it. Neither shown nor logged.
    pub attempt: Option<Attempt>,
    pub metadata: Texts,
    pub capabilities: Texts,
    /// The scaling policy of its group, if the call has one.
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

    /// Whether this process started before the other, where both give a start time.
    pub fn is_of_earlier_start(&self, other: &Registration) -> bool {
        matches!((self.started_at, other.started_at), (Some(own), Some(others)) if own < others)
    }

    /// Whether the two are equal, apart from what may change within one registration.
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

    /// Whether both have the same health check of the same target.
    fn is_checked_as(&self, old: &Registration) -> bool {
        self.check == old.check && self.address == old.address && self.data_hosts == old.data_hosts
    }
}

/// How a call to register relates to the registration with its id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Relation {
    /// The call comes from another process, or does not name its process.
    Other,
    /// The call comes from the same process, and is newer.
    Continuation,
    /// The call comes from the same process, and is older.
    Outdated,
}

#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub registration: Registration,
    pub registration_id: RegistrationId,
    /// Distinguishes this registration from earlier and later ones of the same id.
    pub epoch: u64,
    pub registered_at: SystemTime,
    pub lease: Lease,
    /// The lease state that was last acted upon.
    pub lease_state: LeaseState,
    pub drain: Option<Drain>,
    /// The signal of the network: whether packets get to its data addresses.
    pub network: HealthSignal,
    /// The signal of its health check, if it has one.
    pub check: Option<HealthSignal>,
    /// The signal of outlier detection, from resets of its flows.
    pub resets: HealthSignal,
    pub report: Option<Report>,
    /// The weight that the module or an operator requested. Rebalancing changes the one in `registration`
    /// only.
    pub asked_weight: u32,
    /// The module's last weight request, of which registering is the first.
    pub request: WeightRequest,
    /// When each route was added, by route id.
    pub routes_since: OrdMap<String, SystemTime>,
    /// Its configuration was changed here without its knowledge, or a Reload did not reach it.
    pub should_reload: bool,
}

/// Why a healthy module gets no new flows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drain {
    /// An operator drains the module; it stays registered.
    Maintenance,
    /// The module unregisters.
    Leaving,
}

/// Instance overrides: what operators set for one instance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct InstanceOverrides {
    /// Takes the place of the weight of its registration.
    pub weight: Option<u32>,
    /// The instance is drained until an operator ends the drain.
    pub maintenance: bool,
}

impl Record {
    pub fn new(registration: Registration, epoch: u64, now: Now) -> Self {
        let routes_since = registration.module.routes.keys().map(|id| (id.clone(), now.wall)).collect();
        Record {
            network: HealthSignal::healthy(),
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
            should_reload: false,
        }
    }

    pub(super) fn is_same_process(&self, newcomer: &Registration) -> bool {
        self.registration.is_of_same_process(newcomer)
    }

    pub(super) fn relation(&self, newcomer: &Registration) -> Relation {
        match self.is_same_process(newcomer) {
            false => Relation::Other,
            true if newcomer.is_before(&self.registration) => Relation::Outdated,
            // A module that is unregistering starts a new registration.
            true if self.drain == Some(Drain::Leaving) => Relation::Other,
            true => Relation::Continuation,
        }
    }

    /// Applies a newer call of the same process. The registration_id and what operators set stay.
    ///
    /// Observers know a registration by its epoch. The epoch stays if the call changes nothing. Otherwise it
    /// changes, so that observers start over: a health check must not go on with the former probe, nor the
    /// resolver with the former names.
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
            // The operator's weight, or one that rebalancing set.
            self.registration.module.weight = old.module.weight;
        } else {
            self.asked_weight = asked;
            self.request = WeightRequest::Own(asked);
        }
        if old.module.deployment != self.registration.module.deployment {
            // The other deployment has not had its request.
            self.request = WeightRequest::Own(self.asked_weight);
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
        self.should_reload = false;
        // As for a new registration: the process may not know the heartbeat interval.
        self.lease = Lease::new(now.at);
        self.lease_state = LeaseState::Valid;
    }

    /// Sets the requested weight.
    pub(super) fn weigh(&mut self, weight: u32) {
        self.registration.module.weight = weight;
        self.asked_weight = weight;
    }

    /// Applies instance overrides that were set before the NLB restarted.
    pub(super) fn apply_overrides(&mut self, overrides: InstanceOverrides) {
        if let Some(weight) = overrides.weight {
            self.weigh(weight);
        }
        if overrides.maintenance {
            self.drain = Some(Drain::Maintenance);
        }
    }

    /// The health that decides on new flows.
    pub fn health(&self) -> Health {
        self.signals().health()
    }

    /// Whether it would get new flows of a route that it serves.
    pub fn could_serve(&self, route: &Route) -> bool {
        self.health().takes_new_flows() && route.suits(&self.registration.module).is_ok()
    }

    pub fn signals(&self) -> HealthSignals {
        HealthSignals {
            module: self.registration.module.health,
            lease: if self.lease_state == LeaseState::Valid { Health::Healthy } else { Health::Unhealthy },
            network: self.network.health,
            check: self.check.as_ref().map(|signal| signal.health),
            resets: self.resets.health,
            operator: if self.drain.is_some() { Health::Stopping } else { Health::Healthy },
        }
    }

    /// Whether its lease has expired, or some source reports that it does not serve.
    pub fn is_dead(&self) -> bool {
        self.lease_state != LeaseState::Valid
            || self.signals().by_source().any(|(_, health)| health == Health::Unhealthy)
    }

    /// The signal of a source that gives reasons.
    pub fn signal(&self, source: Source) -> Option<&HealthSignal> {
        match source {
            Source::Network => Some(&self.network),
            Source::Check => self.check.as_ref(),
            Source::Resets => Some(&self.resets),
            Source::Module | Source::Lease | Source::Operator => None,
        }
    }
}

/// The grounds on which a call may supersede a registration with a valid lease from another address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Claim {
    #[default]
    None,
    /// The caller knows the registration_id.
    RegistrationId(String),
    /// The NLB found that the registration of this epoch does not answer at its address.
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
