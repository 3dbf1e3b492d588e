//! One registered module: what it said of itself, and how it stands with us.

use std::fmt;
use std::time::SystemTime;

use imbl::OrdMap;
use serde::{Deserialize, Serialize};

use crate::model::endpoint::{Endpoint, Host};
use crate::model::weight_request::Wish;
use crate::model::{Health, Module, Route, Texts};
use crate::policy::health::{Check, Opinion, Opinions, Source};
use crate::policy::lease::{Lease, Standing};
use crate::policy::scaling::policy::Policy;

use super::Report;
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
    pub metadata: Texts,
    pub capabilities: Texts,
    /// How its group scales, if it says so.
    pub scaling: Option<Policy>,
}

impl Registration {
    pub fn has_names(&self) -> bool {
        self.data_hosts.iter().any(|host| matches!(host, Host::Name(_)))
    }
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
    pub standing: Standing,
    pub drain: Option<Drain>,
    /// What its health check has found, if it has one.
    pub check: Option<Opinion>,
    /// What the resets of its flows say.
    pub resets: Opinion,
    pub report: Option<Report>,
    /// The weight that the module or an operator asked for. Rebalancing moves the one in `registration` away from it.
    pub asked_weight: u32,
    /// What the module said last about weights, be it by registering.
    pub wish: Wish,
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
pub struct Steering {
    /// In place of the one that it registers with.
    pub weight: Option<u32>,
    /// It is drained, and stays so.
    pub maintenance: bool,
}

impl Record {
    pub fn new(registration: Registration, epoch: u64, now: Now) -> Self {
        let routes_since = registration.module.routes.keys().map(|id| (id.clone(), now.wall)).collect();
        let unproven = Opinion { health: Health::Starting, why: "not checked yet".to_owned() };
        Record {
            check: registration.check.is_some().then_some(unproven),
            resets: Opinion::healthy(),
            asked_weight: registration.module.weight,
            wish: Wish::Own(registration.module.weight),
            registration,
            registration_id: RegistrationId::new(),
            epoch,
            registered_at: now.wall,
            lease: Lease::new(now.at),
            standing: Standing::Current,
            drain: None,
            report: None,
            routes_since,
        }
    }

    /// Gives it the weight that was asked for.
    pub(super) fn weigh(&mut self, weight: u32) {
        self.registration.module.weight = weight;
        self.asked_weight = weight;
    }

    /// Takes over what operators had set before the NLB was restarted.
    pub(super) fn obey(&mut self, steering: Steering) {
        if let Some(weight) = steering.weight {
            self.weigh(weight);
        }
        if steering.maintenance {
            self.drain = Some(Drain::Maintenance);
        }
    }

    /// What counts for steering.
    pub fn health(&self) -> Health {
        self.opinions().health()
    }

    /// Whether it would get new flows of a route that it was given.
    pub fn could_serve(&self, route: &Route) -> bool {
        self.health().takes_new_flows() && route.suits(&self.registration.module).is_ok()
    }

    pub fn opinions(&self) -> Opinions {
        Opinions {
            module: self.registration.module.health,
            lease: if self.standing == Standing::Current { Health::Healthy } else { Health::Unhealthy },
            check: self.check.as_ref().map(|opinion| opinion.health),
            resets: self.resets.health,
            operator: if self.drain.is_some() { Health::Stopping } else { Health::Healthy },
        }
    }

    /// What a source that gives reasons has told.
    pub fn told(&self, source: Source) -> Option<&Opinion> {
        match source {
            Source::Check => self.check.as_ref(),
            Source::Resets => Some(&self.resets),
            Source::Module | Source::Lease | Source::Operator => None,
        }
    }
}

/// A module's secret, which proves that a call comes from it. Never logged.
#[derive(Clone, PartialEq, Eq)]
pub struct RegistrationId(String);

impl RegistrationId {
    fn new() -> Self {
        let mut bits = [0u8; 16];
        getrandom::fill(&mut bits).expect("the kernel provides random bytes");
        RegistrationId(bits.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    /// Compares in a time that does not tell where the first difference is.
    pub fn is(&self, other: &str) -> bool {
        let differences = self.0.bytes().zip(other.bytes()).fold(0, |all, (a, b)| all | (a ^ b));
        self.0.len() == other.len() && differences == 0
    }

    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for RegistrationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RegistrationId(…)")
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
