//! Whether a module may serve its routes beside the modules that are registered.

use std::sync::Arc;

use imbl::OrdMap;

use super::{Record, Registration, RegistryError};
use crate::model::Routes;

/// Checks that a module can serve these routes: its own, and those of the operator that are for it.
pub(super) fn check_suited(
    registration: &Registration,
    own: &Routes,
    operators: &Routes,
) -> Result<(), RegistryError> {
    let (id, module) = (&registration.instance_id, &registration.module);
    let unsuited = |route_id: &String, problem| RegistryError::Unsuited {
        route_id: route_id.clone(),
        instance_id: id.clone(),
        problem,
    };
    for (route_id, route) in own {
        route.suits(module).map_err(|problem| unsuited(route_id, problem))?;
    }
    for (route_id, route) in operators.iter().filter(|(_, route)| route.is_for(id, module)) {
        route.suits_ports(module).map_err(|problem| unsuited(route_id, problem))?;
    }
    Ok(())
}

/// Checks that connection ids distinguish a new module from the others.
pub(super) fn check_server_id(
    registration: &Registration,
    modules: &OrdMap<String, Arc<Record>>,
) -> Result<(), RegistryError> {
    let Some(server) = registration.module.quic else { return Ok(()) };
    let others = modules.iter().filter(|(id, _)| **id != registration.instance_id);
    let named = others.filter_map(|(id, record)| Some((id, record.registration.module.quic?)));
    for (other, known) in named.filter(|(_, known)| known.config == server.config) {
        if known.len != server.len {
            let (len, config, other_len) = (server.len, server.config, known.len);
            return Err(RegistryError::ServerIdLength { len, config, other: other.clone(), other_len });
        }
        if known == server {
            return Err(RegistryError::ServerIdTaken { owner: other.clone() });
        }
    }
    Ok(())
}
