//! The registry's whole state, as one value that is copied, changed and swapped in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::SystemTime;

use imbl::OrdMap;
use imbl::ordmap::DiffItem;
use tokio::time::Instant;

use crate::model::{Deployment, Desired, Module, RateLimit, Route, Routes};
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;

use super::{InstanceOverrides, Record, RegistryError, Rollouts};
use crate::model::destination::L4Destination;
use crate::model::settings::Settings;

/// Clones share modules, routes and limits that are equal.
#[derive(Clone, Debug)]
pub struct State {
    pub settings: Arc<Settings>,
    /// By instance id.
    pub modules: OrdMap<String, Arc<Record>>,
    /// By route id.
    pub operator_routes: Routes,
    /// When each of the operator's routes was added.
    pub operator_routes_since: OrdMap<String, SystemTime>,
    pub learned_routes: Routes,
    /// What else is known of the learned routes, by route id.
    pub learned: BTreeMap<String, Learned>,
    pub rollouts: Rollouts,
    /// By limit id.
    pub rate_limits: OrdMap<String, Arc<RateLimit>>,
    /// Instance overrides by instance id: of registered instances, and of those that await re-registration.
    pub overrides: OrdMap<String, InstanceOverrides>,
    /// `None` once the wait is over, or if there was nothing to wait for.
    pub awaited: Option<AwaitedRegistrations>,
    /// Scaling policies of operators.
    pub scaling: BTreeMap<GroupKey, Policy>,
    last_epoch: u64,
}

/// What is known of a learned route beside the route itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Learned {
    pub destination: L4Destination,
    pub since: SystemTime,
}

/// The instances and deployments that the NLB awaits after its start.
#[derive(Clone, Debug, PartialEq)]
pub struct AwaitedRegistrations {
    pub since: Instant,
    /// Instances with overrides that have not registered again since the start. Their registration is no
    /// change, even if it comes twice: it follows the restart of the NLB.
    pub instances: BTreeSet<String>,
    /// Deployments whose splits were persisted.
    pub deployments: BTreeSet<Deployment>,
}

impl State {
    /// Whether any instance of a group is registered, whatever its state.
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
            rollouts: Rollouts::default(),
            rate_limits: OrdMap::new(),
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

    /// Checks that the instance is registered, and the credential if one is given.
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

    /// The registrations with a later epoch than this one.
    pub fn registered_since(&self, epoch: u64) -> impl Iterator<Item = &Record> {
        let modules = if self.last_epoch > epoch { Some(self.modules.values()) } else { None };
        modules.into_iter().flatten().map(Arc::as_ref).filter(move |record| record.epoch > epoch)
    }

    /// The instances that serve an operator's route.
    pub fn targets<'a>(&'a self, route: &'a Route) -> impl Iterator<Item = (&'a str, &'a Record)> {
        let all = self.modules.iter().map(|(id, record)| (id.as_str(), record.as_ref()));
        all.filter(|(id, record)| route.is_for(id, &record.registration.module))
    }

    /// The desired state that follows from this one, given the one that followed from a former state: only
    /// modules that changed since are looked at. The caller sets the revision.
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
            splits: self.rollouts.splits(),
            version_weights: self.rollouts.fleet.version_weights.clone(),
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

    /// Checks that every route's destination may be a VIP.
    pub(super) fn check_vips(&self) -> Result<(), RegistryError> {
        let of_modules = self.modules.values().flat_map(|record| &record.registration.module.routes);
        for (route_id, route) in of_modules.chain(&self.operator_routes) {
            let admitted = self.settings.vips.admit(&route.destination);
            admitted.map_err(|problem| RegistryError::NotVip { route_id: route_id.clone(), problem })?;
        }
        Ok(())
    }
}
