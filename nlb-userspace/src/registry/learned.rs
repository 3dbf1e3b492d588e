//! Learned routes: each serves a destination that had no service when a packet for it came, by the modules
//! that answered that they can handle it.
//!
//! A learned route is removed for a configured route that covers its destination, and whenever a configured
//! route needs its room.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use tracing::info;

use super::{Record, Registry, RegistryError, State};
use crate::model::clock::Now;
use crate::model::destination::L4Destination;
use crate::model::{Ability, Destination, Route, RouteKey};
use crate::registry::Learned;

/// The most learned routes at a time.
pub const MAX_LEARNED_ROUTES: usize = 256;

/// Why no route was learned for a destination.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NotLearned {
    #[error("routes are not learned; see --learn-routes")]
    Off,
    #[error("its address is no longer a VIP")]
    NoVip,
    #[error("a route covers it now")]
    Covered,
    #[error("no module can handle it")]
    NoneCanHandle,
    #[error(
        "{MAX_LEARNED_ROUTES} routes are learned, which is the limit; configure routes for the services you know"
    )]
    Full,
    #[error("{0}")]
    NoRoom(RegistryError),
}

impl Registry {
    /// Adds a route for a destination that some of these modules can handle, by their answers.
    pub fn learn(
        &self,
        destination: L4Destination,
        answers: &BTreeMap<String, Ability>,
        now: Now,
    ) -> Result<u64, NotLearned> {
        let mut current = self.lock();
        current.may_learn(&destination)?;
        // Answers of modules that are no longer registered are ignored.
        let is_there = |instance_id: &String| current.modules.contains_key(instance_id);
        if !answers.iter().any(|(instance_id, ability)| ability.can_handle && is_there(instance_id)) {
            return Err(NotLearned::NoneCanHandle);
        }
        let mut candidate = State::clone(&current);
        candidate.add_learned(destination, answers, now);
        let last = self.published();
        let next = last.next(Arc::new(candidate));
        next.check(&last).map_err(NotLearned::NoRoom)?;
        *current = next.state.clone();
        let revision = self.send(last, next);
        info!(route = destination.route_id(), revision, "route learned");
        Ok(revision)
    }

    /// Removes learned routes by id.
    pub fn forget_learned(&self, route_ids: &BTreeSet<String>) {
        let mut state = self.lock();
        if !route_ids.iter().any(|id| state.learned.contains_key(id)) {
            return;
        }
        Arc::make_mut(&mut state).forget_learned(|id| route_ids.contains(id));
        let revision = self.publish(&state);
        info!(routes = ?route_ids, revision, "learned routes forgotten");
    }
}

impl State {
    /// Whether modules may be asked about a destination.
    pub fn may_learn(&self, destination: &L4Destination) -> Result<(), NotLearned> {
        if !self.settings.learn_routes {
            return Err(NotLearned::Off);
        }
        let is_vip = |route: &Route| route.destination == Destination::Address(destination.vip);
        if !self.settings.vips.addresses().contains(&destination.vip) && !self.configured().any(is_vip) {
            return Err(NotLearned::NoVip);
        }
        let route_id = destination.route_id();
        let is_known =
            self.operator_routes.contains_key(&route_id) || self.learned_routes.contains_key(&route_id);
        if is_known || self.configured().any(|route| self.covers(route, destination)) {
            return Err(NotLearned::Covered);
        }
        if self.learned_routes.len() >= MAX_LEARNED_ROUTES {
            return Err(NotLearned::Full);
        }
        Ok(())
    }

    /// The learned routes that a configured route covers now, or whose destination is no longer a VIP.
    pub fn superseded(&self) -> BTreeSet<String> {
        let settings = &self.settings;
        let ports: BTreeSet<u16> = self.learned.values().map(|learned| learned.destination.port).collect();
        let near = |route: &&Route| route.port.is_none_or(|port| ports.contains(&port));
        let near: Vec<&Route> =
            if ports.is_empty() { Vec::new() } else { self.configured().filter(near).collect() };
        let is_vip = |vip: IpAddr| {
            settings.vips.addresses().contains(&vip)
                || self.configured().any(|route| route.destination == Destination::Address(vip))
        };
        let superseded = self.learned.iter().filter(|(route_id, Learned { destination, .. })| {
            !settings.learn_routes
                || self.operator_routes.contains_key(*route_id)
                || near.iter().any(|route| self.covers(route, destination))
                || !is_vip(destination.vip)
        });
        superseded.map(|(route_id, _)| route_id.clone()).collect()
    }

    /// Whether this is a learned route's key.
    pub fn is_learned(&self, key: &RouteKey) -> bool {
        key.operators && self.learned_routes.contains_key(&key.id)
    }

    /// The answers of registered modules about a learned route.
    pub fn answers_on_learned(&self, route_id: &str) -> impl Iterator<Item = (&str, Ability)> {
        let key = RouteKey { id: route_id.to_owned(), operators: true };
        self.modules.iter().filter_map(move |(instance_id, record)| {
            let ability = record.registration.module.abilities.get(&key)?;
            Some((instance_id.as_str(), *ability))
        })
    }

    /// The state without learned routes, if there are any.
    pub(super) fn without_learned(&self) -> Option<Self> {
        if self.learned_routes.is_empty() {
            return None;
        }
        let mut without = self.clone();
        without.forget_learned(|_| true);
        Some(without)
    }

    fn add_learned(&mut self, destination: L4Destination, answers: &BTreeMap<String, Ability>, now: Now) {
        for (instance_id, ability) in answers.iter().filter(|(_, ability)| ability.can_handle) {
            if let Ok(record) = self.record_mut(instance_id) {
                record.registration.module.abilities.insert(destination.key(), *ability);
            }
        }
        self.learned_routes.insert(destination.route_id(), destination.route().into());
        self.learned.insert(destination.route_id(), Learned { destination, since: now.wall });
    }

    fn forget_learned(&mut self, gone: impl Fn(&str) -> bool) {
        let gone: BTreeSet<String> = self.learned.keys().filter(|id| gone(id)).cloned().collect();
        let is_gone = |key: &RouteKey| key.operators && gone.contains(&key.id);
        let answered = |record: &Record| record.registration.module.abilities.keys().any(is_gone);
        let answered: Vec<String> =
            self.modules.iter().filter(|(_, record)| answered(record)).map(|(id, _)| id.clone()).collect();
        for instance_id in answered {
            if let Ok(record) = self.record_mut(&instance_id) {
                record.registration.module.abilities.retain(|key, _| !is_gone(key));
            }
        }
        for route_id in &gone {
            self.learned_routes.remove(route_id);
            self.learned.remove(route_id);
        }
    }

    /// All routes but the learned ones.
    fn configured(&self) -> impl Iterator<Item = &Route> {
        let of_modules = self.modules.values().flat_map(|record| record.registration.module.routes.values());
        of_modules.chain(self.operator_routes.values()).map(Arc::as_ref)
    }

    fn covers(&self, route: &Route, destination: &L4Destination) -> bool {
        let vips = self.settings.vips.addresses();
        route.protocol.l4() == destination.l4
            && route.port.is_none_or(|port| port == destination.port)
            && match route.destination {
                Destination::EveryVip => vips.contains(&destination.vip),
                Destination::Address(address) => address == destination.vip,
                Destination::Prefix(prefix) => {
                    prefix.contains(&destination.vip) && vips.contains(&destination.vip)
                }
            }
    }
}
