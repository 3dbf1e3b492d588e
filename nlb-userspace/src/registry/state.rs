//! Everything the registry knows, as one value that can be copied, changed and swapped in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;

use crate::model::{Desired, Module, RateLimit, Route, Routes};
use crate::policy::promotion::Promotion;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

use super::{InstanceOverrides, Record, RegistryError};
use crate::model::destination::L4Destination;
use crate::model::settings::Settings;

/// Clones share the modules, routes and limits that are equal.
#[derive(Clone, Debug)]
pub struct State {
    pub settings: Arc<Settings>,
    /// By instance id.
    pub modules: OrdMap<String, Arc<Record>>,
    /// By route id.
    pub operator_routes: Routes,
    /// When each of the operator's routes came.
    pub operator_routes_since: OrdMap<String, SystemTime>,
    pub learned_routes: Routes,
    /// What else is known of each of those, by route id.
    pub learned: BTreeMap<String, Learned>,
    /// As set; see [`State::version_shares`] for what they mean.
    pub version_weights: BTreeMap<String, u32>,
    /// By limit id.
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
    /// When the first version weight was set, or the last promotion began.
    pub split_since: Option<SystemTime>,
    /// Oldest first.
    pub former_splits: Vec<Split>,
    pub promotion: Option<Promotion>,
    /// How the last promotion ended, for people.
    pub last_promotion: Option<String>,
    /// What operators have set for instances, by id: of those that are registered, and of those that are awaited.
    pub overrides: OrdMap<String, InstanceOverrides>,
    /// `None` once the NLB has waited long enough, or began with nothing.
    pub awaited: Option<AwaitedRegistrations>,
    /// How operators want groups to scale.
    pub scaling: BTreeMap<GroupKey, Policy>,
    last_epoch: u64,
}

/// Versions' weights as they were set, so that they can be put back.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Split {
    pub weights: BTreeMap<String, u32>,
    pub since: Option<SystemTime>,
}

/// What is known of a learned route beside the route itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub destination: L4Destination,
    pub since: SystemTime,
}

/// Whom the NLB waits for after its start.
#[derive(Clone, Debug, PartialEq)]
pub struct AwaitedRegistrations {
    pub since: Instant,
    /// Instances that were steered before the start and have not been heard of since. A registration of theirs says nothing
    /// new, also if it comes twice: it is the NLB that forgot them.
    pub instances: BTreeSet<String>,
}

impl State {
    /// Whether some instance of a group is registered, however it is.
    pub fn has_group(&self, group: &GroupKey) -> bool {
        self.modules.values().any(|record| group.has(&record.registration.module))
    }

    pub fn new(settings: Settings) -> Self {
        State {
            settings: Arc::new(settings),
            modules: OrdMap::new(),
            operator_routes: OrdMap::new(),
            operator_routes_since: OrdMap::new(),
            learned_routes: OrdMap::new(),
            learned: BTreeMap::new(),
            version_weights: BTreeMap::new(),
            rate_limits: OrdMap::new(),
            split_since: None,
            former_splits: Vec::new(),
            promotion: None,
            last_promotion: None,
            overrides: OrdMap::new(),
            awaited: None,
            scaling: BTreeMap::new(),
            last_epoch: 0,
        }
    }

    pub fn record(&self, instance_id: &str) -> Result<&Record, RegistryError> {
        let record = self.modules.get(instance_id).map(Arc::as_ref);
        record.ok_or_else(|| RegistryError::UnknownInstance(instance_id.to_owned()))
    }

    /// Whether the instance is registered, and the proof right if one is given.
    pub(super) fn authenticate_caller(
        &self,
        instance_id: &str,
        registration_id: &str,
    ) -> Result<(), RegistryError> {
        let record = self.record(instance_id)?;
        match registration_id.is_empty() || record.registration_id.is(registration_id) {
            true => Ok(()),
            false => Err(RegistryError::CredentialInvalid(instance_id.to_owned())),
        }
    }

    pub fn last_epoch(&self) -> u64 {
        self.last_epoch
    }

    /// The registrations that came after this epoch.
    pub fn registered_since(&self, epoch: u64) -> impl Iterator<Item = &Record> {
        let modules = if self.last_epoch > epoch { Some(self.modules.values()) } else { None };
        modules.into_iter().flatten().map(Arc::as_ref).filter(move |record| record.epoch > epoch)
    }

    /// The instances that serve an operator's route.
    pub fn targets<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = (&'a str, &'a Record)> {
        let all = self.modules.iter().map(|(id, record)| (id.as_str(), record.as_ref()));
        all.filter(|(id, record)| route.is_for(id, &record.registration.module))
    }

    /// What it all means for the data path, given what a former state meant: only modules that have changed since are
    /// looked at. The revision is the publisher's.
    pub(super) fn desired_after(&self, before: &State, meant: &Desired) -> Desired {
        let mut modules = meant.modules.clone();
        for change in before.modules.diff(&self.modules) {
            match change {
                DiffItem::Remove(id, _) => drop(modules.remove(id)),
                DiffItem::Add(id, record) | DiffItem::Update { new: (id, record), .. } => {
                    let module = Module { health: record.health(), ..record.registration.module.clone() };
                    if modules.get(id).map(Arc::as_ref) != Some(&module) {
                        modules.insert(id.clone(), Arc::new(module));
                    }
                }
            }
        }
        let settings = &self.settings;
        Desired {
            revision: meant.revision,
            vips: settings.vips.addresses().clone(),
            fail_open: settings.fail_open,
            reject: settings.reject,
            drop_closed_ports: settings.drop_closed_ports,
            learn_routes: settings.learn_routes,
            modules,
            operator_routes: self.operator_routes.clone(),
            learned_routes: self.learned_routes.clone(),
            version_weights: self.version_weights.clone(),
            rate_limits: self.rate_limits.clone(),
        }
    }

    pub(super) fn record_mut(&mut self, instance_id: &str) -> Result<&mut Record, RegistryError> {
        let record = self.modules.get_mut(instance_id).map(Arc::make_mut);
        record.ok_or_else(|| RegistryError::UnknownInstance(instance_id.to_owned()))
    }

    pub(super) fn forget_module(&mut self, instance_id: &str) {
        self.modules.remove(instance_id);
        self.forget_overrides(instance_id);
        self.await_no_more(instance_id);
    }

    pub(super) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    /// Whether every route's destination may be a VIP.
    pub(super) fn check_vips(&self) -> Result<(), RegistryError> {
        let of_modules = self.modules.values().flat_map(|record| &record.registration.module.routes);
        for (route_id, route) in of_modules.chain(&self.operator_routes) {
            let admitted = self.settings.vips.admit(&route.destination);
            admitted.map_err(|problem| RegistryError::NotVip { route_id: route_id.clone(), problem })?;
        }
        Ok(())
    }
}
