//! Everything the registry knows, as one value that can be copied, changed and swapped in.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use nlb_common::abi::LIMIT_CHAIN;

use crate::compile;
use crate::model::{Desired, Module, RateLimit, Route};
use crate::promotion::Promotion;

use super::{Record, Refusal, Registration, Settings, Split, Suited};

#[derive(Clone, Debug)]
pub struct State {
    pub settings: Arc<Settings>,
    /// By instance id.
    pub modules: BTreeMap<String, Arc<Record>>,
    /// By route id.
    pub operator_routes: Arc<BTreeMap<String, Route>>,
    /// When each of the operator's routes came.
    pub operator_routes_since: Arc<BTreeMap<String, SystemTime>>,
    /// As set; see [`State::version_shares`] for what they mean.
    pub version_weights: BTreeMap<String, u32>,
    /// By limit id.
    pub rate_limits: BTreeMap<String, RateLimit>,
    /// When the first version weight was set, or the last promotion began.
    pub split_since: Option<SystemTime>,
    /// Oldest first.
    pub former_splits: Vec<Split>,
    pub promotion: Option<Promotion>,
    /// How the last promotion ended, for people.
    pub last_promotion: Option<String>,
    last_epoch: u64,
}

impl State {
    pub fn new(settings: Settings) -> Self {
        State {
            settings: Arc::new(settings),
            modules: BTreeMap::new(),
            operator_routes: Arc::default(),
            operator_routes_since: Arc::default(),
            version_weights: BTreeMap::new(),
            rate_limits: BTreeMap::new(),
            split_since: None,
            former_splits: Vec::new(),
            promotion: None,
            last_promotion: None,
            last_epoch: 0,
        }
    }

    pub fn record(&self, instance_id: &str) -> Result<&Record, Refusal> {
        let record = self.modules.get(instance_id).map(Arc::as_ref);
        record.ok_or_else(|| Refusal::UnknownInstance(instance_id.to_owned()))
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
        self.modules.iter().map(|(id, record)| (id.as_str(), record.as_ref())).filter(|(id, record)| {
            route.targets.include(route.protocol, id, record.registration.module.module_type)
        })
    }

    /// What it all means for the data path; the revision is the publisher's.
    pub fn desired(&self) -> Desired {
        let settings = &self.settings;
        let module =
            |record: &Record| Module { health: record.health(), ..record.registration.module.clone() };
        Desired {
            revision: 0,
            vips: settings.vips.addresses().clone(),
            fail_open: settings.fail_open,
            reject: settings.reject,
            drop_closed_ports: settings.drop_closed_ports,
            modules: self.modules.iter().map(|(id, record)| (id.clone(), module(record))).collect(),
            operator_routes: self.operator_routes.clone(),
            version_weights: self.version_weights.clone(),
            rate_limits: self.rate_limits.clone(),
        }
    }

    pub(super) fn record_mut(&mut self, instance_id: &str) -> Result<&mut Record, Refusal> {
        let record = self.modules.get_mut(instance_id).map(Arc::make_mut);
        record.ok_or_else(|| Refusal::UnknownInstance(instance_id.to_owned()))
    }

    pub(super) fn next_epoch(&mut self) -> u64 {
        self.last_epoch += 1;
        self.last_epoch
    }

    pub(super) fn check_limits(&self) -> Result<(), Refusal> {
        let settings = &self.settings;
        if self.modules.len() > settings.max_modules {
            return Err(Refusal::TooManyModules(settings.max_modules));
        }
        let of_modules: usize =
            self.modules.values().map(|record| record.registration.module.routes.len()).sum();
        let wanted = of_modules + self.operator_routes.len();
        if wanted > settings.max_routes {
            return Err(Refusal::TooManyRoutes { wanted, limit: settings.max_routes });
        }
        let desired = self.desired();
        let met = compile::longest_chain(&desired);
        if met > LIMIT_CHAIN {
            return Err(Refusal::TooManyLimitsMet { met, limit: LIMIT_CHAIN });
        }
        compile::fits(&desired, &settings.limits).map_err(Refusal::TooMany)
    }

    /// Whether every route's destination may be a VIP.
    pub(super) fn check_vips(&self) -> Result<(), Refusal> {
        let of_modules = self.modules.values().flat_map(|record| &record.registration.module.routes);
        for (route_id, route) in of_modules.chain(self.operator_routes.iter()) {
            let admitted = self.settings.vips.admit(&route.destination);
            admitted.map_err(|problem| Refusal::NotVip { route_id: route_id.clone(), problem })?;
        }
        Ok(())
    }

    /// Whether a module can serve its own routes, and those of the operator that are for it.
    pub(super) fn check_suited(&self, registration: &Registration) -> Result<(), Refusal> {
        let (id, module) = (&registration.instance_id, &registration.module);
        let unsuited = |route_id: &String, problem| Refusal::Unsuited {
            route_id: route_id.clone(),
            instance_id: id.clone(),
            problem,
        };
        for (route_id, route) in &module.routes {
            let suited = route.suits_ports(module).and_then(|()| route.suits_family(module));
            suited.map_err(|problem| unsuited(route_id, problem))?;
        }
        for (route_id, route) in self.operator_routes.iter() {
            if route.targets.include(route.protocol, id, module.module_type) {
                route.suits_ports(module).map_err(|problem| unsuited(route_id, problem))?;
            }
        }
        Ok(())
    }
}
