//! Why a change is refused, in words that tell the caller what to do.

use std::sync::Arc;

use imbl::OrdMap;

use crate::compile::TooMany;
use crate::model::{Destination, ForwardMode, Module, Route, Routes};
use crate::resolve::Endpoint;

use super::{Record, Registration};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("instance_id {0:?} is not registered; register it first")]
    UnknownInstance(String),
    #[error("registration_id is empty; give the one that RegisterModule answered for {0:?}")]
    ProofMissing(String),
    #[error("registration_id is not that of {0:?} as it is registered now; register again")]
    ProofWrong(String),
    #[error(
        "instance_id {instance_id:?} belongs to a living module at {address}; choose another id, or prove to be that \
         module with metadata registration_id"
    )]
    Taken { instance_id: String, address: Endpoint, epoch: u64 },
    #[error("{0} modules are registered, which is the limit; unregister some, or raise --max-modules")]
    TooManyModules(usize),
    #[error("there would be {wanted} routes and the limit is {limit}; remove some, or raise --max-routes")]
    TooManyRoutes { wanted: usize, limit: usize },
    #[error("{0}, or remove some")]
    TooMany(TooMany),
    #[error("route {route_id:?} does not suit {instance_id:?}: {problem}")]
    Unsuited { route_id: String, instance_id: String, problem: String },
    #[error(
        "metadata quic_server_id is also that of {owner:?}, so connection ids would not tell them apart; give every instance \
         its own"
    )]
    ServerIdTaken { owner: String },
    #[error(
        "metadata quic_server_id has another length ({len}) than that of {other:?} ({other_len}), which has the same \
         quic_config_id, {config}; nothing in a connection id says how long it is, so make them equal, or use another \
         quic_config_id"
    )]
    ServerIdLength { len: u8, config: u8, other: String, other_len: u8 },
    #[error("no registered instance has version {0:?}; register one first")]
    UnknownVersion(String),
    #[error(
        "version {version:?} is being promoted and has {percent} % of new flows; wait until it has all of them, or roll it \
         back first"
    )]
    Promoting { version: String, percent: u32 },
    #[error("the split was not changed yet, so there is none to roll back to")]
    NoFormerSplit,
    #[error("version {0:?} did not have the greatest share in any former split; promote it instead")]
    NeverActive(String),
    #[error(
        "every registered version has weight 0 in the former split, so nobody would serve; set weights by SetTrafficWeight, \
         or name a target_version"
    )]
    EmptySplit,
    #[error("there is no route {0:?}")]
    UnknownRoute(String),
    #[error("version {asked:?} is not that of {instance_id:?}, which is {actual:?}")]
    VersionMismatch { instance_id: String, asked: String, actual: String },
    #[error("the destination of route {route_id:?} {problem}")]
    NotVip { route_id: String, problem: String },
    #[error("no rate limit has the id {0:?}; GetRateLimits lists them")]
    UnknownLimit(String),
    #[error(
        "one packet would meet {met} rate limits of one kind on the same target or on nested source prefixes, and the data \
         path asks {limit}; remove some"
    )]
    TooManyLimitsMet { met: usize, limit: usize },
    #[error("{0:?} is unregistering; it has to register again to take flows")]
    Leaving(String),
}

/// Whether a module can serve these routes: as its own, and those that are for it as the operator's.
pub(super) fn check_suited(
    registration: &Registration,
    own: &Routes,
    operators: &Routes,
) -> Result<(), Refusal> {
    let (id, module) = (&registration.instance_id, &registration.module);
    let unsuited = |route_id: &String, problem| Refusal::Unsuited {
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
) -> Result<(), Refusal> {
    let Some(server) = registration.module.quic else { return Ok(()) };
    let others = modules.iter().filter(|(id, _)| **id != registration.instance_id);
    let named = others.filter_map(|(id, record)| Some((id, record.registration.module.quic?)));
    for (other, known) in named.filter(|(_, known)| known.config == server.config) {
        if known.len != server.len {
            let (len, config, other_len) = (server.len, server.config, known.len);
            return Err(Refusal::ServerIdLength { len, config, other: other.clone(), other_len });
        }
        if known == server {
            return Err(Refusal::ServerIdTaken { owner: other.clone() });
        }
    }
    Ok(())
}

/// Whether a module can serve a route as the route asks for it.
pub trait Suited {
    fn suits_ports(&self, module: &Module) -> Result<(), String>;
    fn suits_family(&self, module: &Module) -> Result<(), String>;

    /// In both.
    fn suits(&self, module: &Module) -> Result<(), String> {
        self.suits_ports(module).and_then(|()| self.suits_family(module))
    }
}

impl Suited for Route {
    /// Direct server return leaves ports as they are.
    fn suits_ports(&self, module: &Module) -> Result<(), String> {
        let listen_port = self.listen_port.or(module.listen_port);
        let mode = match module.mode {
            ForwardMode::Nat => return Ok(()),
            ForwardMode::DsrL2 => "dsr-l2",
            ForwardMode::DsrIpip => "dsr-ipip",
            ForwardMode::Gue => "gue",
        };
        match listen_port {
            Some(port) if Some(port) != self.port => Err(format!(
                "listen_port {port} differs from the destination port, which forward_mode {mode} cannot change; make \
                 them equal, or use forward_mode nat"
            )),
            _ => Ok(()),
        }
    }

    /// NAT does not translate between address families; direct server return carries both.
    fn suits_family(&self, module: &Module) -> Result<(), String> {
        let vip_is_v6 = match self.destination {
            _ if module.mode != ForwardMode::Nat => return Ok(()),
            Destination::EveryVip => return Ok(()),
            Destination::Address(address) => address.is_ipv6(),
            Destination::Prefix(prefix) => prefix.addr().is_ipv6(),
        };
        let (family, served) = match vip_is_v6 {
            true => ("IPv6", module.data.v6.is_some()),
            false => ("IPv4", module.data.v4.is_some()),
        };
        if served {
            return Ok(());
        }
        Err(format!(
            "its destination is {family} and the module has no {family} address, which forward_mode nat needs; list one \
             in metadata data_address"
        ))
    }
}
