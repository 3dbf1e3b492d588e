//! Whether a module may serve the routes that it would get, beside the modules that are there.

use std::sync::Arc;

use imbl::OrdMap;

use super::{Record, Registration, RegistryError};
use crate::model::Routes;

/// Whether a module can serve these routes: as its own, and those that are for it as the operator's.
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

/// Whether connection ids will tell a newcomer from the other modules.
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
