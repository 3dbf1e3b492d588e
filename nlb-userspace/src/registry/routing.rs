//! Changes of routes: whose they are, and what becomes of those that a change does not list.

use std::collections::BTreeMap;
use std::time::SystemTime;

use tracing::info;

use crate::model::Route;

use super::{Now, Refusal, Registry};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commit {
    Apply,
    /// Find out whether it would be accepted, and change nothing.
    DryRun,
}

/// Whose routes are changed.
#[derive(Clone, Copy, Debug)]
pub enum Owner<'a> {
    Operator,
    Module { instance_id: &'a str, registration_id: &'a str },
}

impl Registry {
    /// Adds and replaces routes by id, and with `replace_all` removes the owner's other ones. Answers how many were
    /// added, changed or removed.
    pub fn update_routes(
        &self,
        owner: Owner<'_>,
        routes: BTreeMap<String, Route>,
        replace_all: bool,
        commit: Commit,
        now: Now,
    ) -> Result<(usize, u64), Refusal> {
        let (changed, revision) = self.change(commit, |state| match owner {
            Owner::Operator => {
                let (current, since) = (&mut state.operator_routes, &mut state.operator_routes_since);
                let changed = merge(current, since, routes, replace_all, now.wall);
                for record in state.modules.values() {
                    state.check_suited(&record.registration)?;
                }
                Ok(changed)
            }
            Owner::Module { instance_id, registration_id } => {
                self.prove(state, instance_id, registration_id)?;
                let record = state.record_mut(instance_id)?;
                let (current, since) = (&mut record.registration.module.routes, &mut record.routes_since);
                let changed = merge(current, since, routes, replace_all, now.wall);
                state.check_suited(&state.record(instance_id)?.registration)?;
                Ok(changed)
            }
        })?;
        if commit == Commit::Apply && changed > 0 {
            info!(?owner, changed, revision, "routes changed");
        }
        Ok((changed, revision))
    }
}

fn merge(
    current: &mut BTreeMap<String, Route>,
    since: &mut BTreeMap<String, SystemTime>,
    mut routes: BTreeMap<String, Route>,
    replace_all: bool,
    wall: SystemTime,
) -> usize {
    let before = current.len();
    if replace_all {
        current.retain(|route_id, _| routes.contains_key(route_id));
        since.retain(|route_id, _| routes.contains_key(route_id));
    }
    let removed = before - current.len();
    routes.retain(|route_id, route| current.get(route_id) != Some(route));
    let written = routes.len();
    for route_id in routes.keys() {
        since.entry(route_id.clone()).or_insert(wall);
    }
    current.append(&mut routes);
    removed + written
}
