//! Changes of routes: whose routes they are, and what becomes of routes that a change does not list.

use std::time::SystemTime;

use tracing::info;

use imbl::OrdMap;

use crate::model::Routes;

use super::{Commit, Registry, RegistryError, State, suitability};
use crate::model::clock::Now;

/// When each route was added, by route id.
type Since = OrdMap<String, SystemTime>;

/// The owner of the routes that are changed.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    Operator,
    /// The registration_id may be empty: the contract has no field for it.
    Module {
        instance_id: &'a str,
        registration_id: &'a str,
    },
    /// An operator changes a module's routes.
    OnBehalf {
        instance_id: &'a str,
    },
}

impl Registry {
    /// Adds and replaces routes by id, and with `replace_all` removes the owner's other routes. Returns how
    /// many were added, changed or removed.
    pub fn update_routes(
        &self,
        owner: Owner<'_>,
        routes: Routes,
        replace_all: bool,
        commit: Commit,
        now: Now,
    ) -> Result<(usize, u64), RegistryError> {
        let (changed, revision) = self.change(commit, |state| {
            let (current, since) = routes_of(state, owner)?;
            let changed = merge(current, since, &routes, replace_all, now.wall);
            check_suited(state, owner, &routes)?;
            Ok(changed)
        })?;
        if commit == Commit::Apply && changed > 0 {
            info!(?owner, changed, revision, "routes changed");
        }
        Ok((changed, revision))
    }

    /// Removes one route.
    pub fn delete_route(
        &self,
        owner: Owner<'_>,
        route_id: &str,
        commit: Commit,
    ) -> Result<u64, RegistryError> {
        let ((), revision) = self.change(commit, |state| {
            let (current, since) = routes_of(state, owner)?;
            current.remove(route_id).ok_or_else(|| RegistryError::UnknownRoute(route_id.to_owned()))?;
            since.remove(route_id);
            Ok(())
        })?;
        if commit == Commit::Apply {
            info!(?owner, route_id, revision, "route deleted");
        }
        Ok(revision)
    }
}

/// The owner's routes and when each was added, if the caller may change them.
fn routes_of<'s>(
    state: &'s mut State,
    owner: Owner<'_>,
) -> Result<(&'s mut Routes, &'s mut Since), RegistryError> {
    let instance_id = match owner {
        Owner::Operator => return Ok((&mut state.operator_routes, &mut state.operator_routes_since)),
        Owner::Module { instance_id, registration_id } => {
            state.authenticate_caller(instance_id, registration_id)?;
            instance_id
        }
        Owner::OnBehalf { instance_id } => instance_id,
    };
    let record = state.record_mut(instance_id)?;
    Ok((&mut record.registration.module.routes, &mut record.routes_since))
}

/// Checks that the modules which are to serve these routes can.
fn check_suited(state: &State, owner: Owner<'_>, routes: &Routes) -> Result<(), RegistryError> {
    match owner {
        Owner::Operator => state
            .modules
            .values()
            .try_for_each(|record| suitability::check_suited(&record.registration, &Routes::new(), routes)),
        Owner::Module { instance_id, .. } | Owner::OnBehalf { instance_id } => {
            let registration = &state.record(instance_id)?.registration;
            suitability::check_suited(registration, routes, &Routes::new())
        }
    }
}

fn merge(
    current: &mut Routes,
    since: &mut Since,
    routes: &Routes,
    replace_all: bool,
    wall: SystemTime,
) -> usize {
    let mut changed = 0;
    if replace_all {
        let others = current.keys().filter(|route_id| !routes.contains_key(*route_id));
        for route_id in others.cloned().collect::<Vec<_>>() {
            current.remove(&route_id);
            since.remove(&route_id);
            changed += 1;
        }
    }
    for (route_id, route) in routes {
        if current.get(route_id) == Some(route) {
            continue;
        }
        since.entry(route_id.clone()).or_insert(wall);
        current.insert(route_id.clone(), route.clone());
        changed += 1;
    }
    changed
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::model::{ForwardMode, Route, Targets};
    use crate::registry::fixtures::{Fleet, registration, registry, route, route_to};

    fn routes(named: &[(&str, Route)]) -> Routes {
        named.iter().map(|(id, route)| (id.to_string(), route.clone())).collect()
    }

    #[test]
    fn routes_are_merged_or_replaced_per_owner() {
        let registry = registry();
        let id = registry.add("alb-1");
        let id = id.as_str();
        let module = Owner::Module { instance_id: "alb-1", registration_id: id };
        let update = |owner, named: &[(&str, Route)], replace_all| {
            registry.update_routes(owner, routes(named), replace_all, Commit::Apply, Now::read()).unwrap().0
        };
        assert_eq!(update(module, &[("api", route(8080))], false), 1);
        assert_eq!(update(module, &[("api", route(8080))], false), 0, "an unchanged route does not count");
        assert_eq!(update(module, &[("api", route(9090))], false), 1);
        assert_eq!(update(Owner::Operator, &[("api", route(443))], true), 1);
        let of_module = |registry: &Registry| -> Vec<String> {
            registry.desired().borrow().modules["alb-1"].routes.keys().cloned().collect()
        };
        assert_eq!(of_module(&registry), ["api", "web"], "the operator's routes are apart");
        assert_eq!(update(module, &[("new", route(1))], true), 3, "one added, two removed");
        assert_eq!(of_module(&registry), ["new"]);
        assert_eq!(update(Owner::Operator, &[], true), 1);
        assert!(registry.desired().borrow().operator_routes.is_empty());
    }

    #[test]
    fn a_dry_run_answers_as_the_call_would_and_changes_nothing() {
        let registry = registry();
        let id = registry.add("alb-1");
        let module = Owner::Module { instance_id: "alb-1", registration_id: &id };
        let before = registry.desired().borrow().clone();
        let dry = |named: &[(&str, Route)]| {
            registry
                .update_routes(module, routes(named), true, Commit::DryRun, Now::read())
                .map(|(changed, _)| changed)
        };
        assert_eq!(dry(&[("api", route(8080))]), Ok(2));
        assert!(matches!(dry(&[("six", route_to("2001:db8::1", 80))]), Err(RegistryError::Unsuited { .. })));
        assert_eq!(*registry.desired().borrow(), before);
    }

    #[test]
    fn routes_must_suit_the_modules_that_serve_them() {
        let registry = registry();
        let mut dsr = registration("alb-1");
        dsr.module.mode = ForwardMode::DsrL2;
        dsr.module.listen_port = Some(8080);
        let refused = registry.admit(dsr.clone(), Now::read()).unwrap_err().to_string();
        assert!(
            refused.contains("\"web\"") && refused.contains("8080") && refused.contains("dsr-l2"),
            "{refused}"
        );
        dsr.module.listen_port = Some(80);
        registry.admit(dsr, Now::read()).unwrap();

        let elsewhere = Route {
            listen_port: Some(1),
            targets: Targets::Instances(BTreeSet::from(["alb-1".into()]).into()),
            ..route(2)
        };
        let operators = routes(&[("moved", elsewhere)]);
        let refused = registry.update_routes(Owner::Operator, operators, false, Commit::Apply, Now::read());
        assert!(matches!(refused, Err(RegistryError::Unsuited { .. })));

        let mut six = registration("alb-2");
        six.module.routes = routes(&[("six", route_to("2001:db8::1", 80))]);
        let refused = registry.admit(six.clone(), Now::read()).unwrap_err().to_string();
        assert!(refused.contains("IPv6") && refused.contains("data_address"), "{refused}");
        six.module.data.v6 = Some("2001:db8::a".parse().unwrap());
        registry.admit(six, Now::read()).unwrap();
    }

    #[test]
    fn direct_server_return_carries_either_family() {
        let registry = registry();
        let mut tunnel = registration("alb-1");
        tunnel.module.routes = routes(&[("six", route_to("2001:db8::1", 80))]);
        assert!(matches!(registry.admit(tunnel.clone(), Now::read()), Err(RegistryError::Unsuited { .. })));
        for mode in [ForwardMode::DsrIpip, ForwardMode::Gue] {
            tunnel.module.mode = mode;
            registry.admit(tunnel.clone(), Now::read()).unwrap();
        }
    }
}
