//! Errors of the registry, with texts that tell the caller what to do.

use std::collections::BTreeSet;

use crate::compile::TooMany;
use crate::model::endpoint::Endpoint;
use crate::model::{Deployment, ModuleType};

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RegistryError {
    #[error("instance_id {0:?} is not registered; register it first")]
    UnknownInstance(String),
    #[error("registration_id is empty; give the one that RegisterModule returned for {0:?}")]
    CredentialMissing(String),
    #[error("registration_id is not that of {0:?} as it is registered now; register again")]
    CredentialInvalid(String),
    #[error(
        "instance_id {instance_id:?} belongs to a module with a valid lease at {address}; choose another id, or \
         give that module's registration_id in metadata registration_id"
    )]
    Taken { instance_id: String, address: Endpoint, epoch: u64 },
    #[error(
        "instance_id {0:?} belongs to a module with a valid lease on the same host that started later; end one \
         of the two processes, or choose another id"
    )]
    StartedEarlier(String),
    #[error("{0} modules are registered, which is the limit; unregister some, or raise --max-modules")]
    TooManyModules(usize),
    #[error("there would be {wanted} routes and the limit is {limit}; remove some, or raise --max-routes")]
    TooManyRoutes { wanted: usize, limit: usize },
    #[error("{0}, or remove some")]
    TooMany(TooMany),
    #[error("route {route_id:?} does not suit {instance_id:?}: {problem}")]
    Unsuited { route_id: String, instance_id: String, problem: String },
    #[error(
        "metadata quic_server_id is also that of {owner:?}, so connection ids could not distinguish the two; give \
         every instance its own"
    )]
    ServerIdTaken { owner: String },
    #[error(
        "metadata quic_server_id has another length ({len}) than that of {other:?} ({other_len}), which has the \
         same quic_config_id, {config}; a connection id does not contain that length, so make them equal, or use \
         another quic_config_id"
    )]
    ServerIdLength { len: u8, config: u8, other: String, other_len: u8 },
    #[error("no registered instance has version {0:?}; register one first")]
    UnknownVersion(String),
    #[error("no registered instance of deployment {deployment} has version {version:?}; register one first")]
    VersionElsewhere { version: String, deployment: Deployment },
    #[error("there is no deployment {:?}; there are: {}", asked.name(), list(known))]
    UnknownDeployment { asked: Deployment, known: BTreeSet<Deployment> },
    #[error(
        "{instance_id:?} is in deployment {actual}, and metadata deployment says {asked:?}; make them equal, or leave \
         out the metadata"
    )]
    OtherDeployment { instance_id: String, asked: String, actual: Deployment },
    #[error(
        "deployment {deployment} has instances of type {}, such as {instance_id:?}, and can have no others; choose \
         another name in metadata deployment, or leave it out",
        module_type.name()
    )]
    OtherType { deployment: Deployment, instance_id: String, module_type: ModuleType },
    #[error(
        "several deployments have {what}: {}; name one, or \"all\", in metadata deployment or by --deployment",
        list(deployments)
    )]
    ManyDeployments { what: String, deployments: BTreeSet<Deployment> },
    #[error("in deployment {deployment}: {error}")]
    InDeployment { deployment: Deployment, error: Box<RegistryError> },
    #[error("there is a split for each deployment: {}; name one in metadata deployment", list(_0))]
    OneSplitAtATime(BTreeSet<Deployment>),
    #[error(
        "version {version:?} is being promoted and has {percent} % of new flows; wait until it has all of them, \
         or roll it back first"
    )]
    Promoting { version: String, percent: u32 },
    #[error("the split was not changed yet, so there is none to roll back to")]
    NoFormerSplit,
    #[error("version {0:?} did not have the greatest share in any former split; promote it instead")]
    NeverActive(String),
    #[error(
        "every registered version has weight 0 in the former split, so no instance would get new flows; set \
         weights by SetTrafficWeight, or name a target_version"
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
        "a packet would be subject to {met} rate limits of one kind on the same target or on nested source \
         prefixes, and the data path checks at most {limit}; remove some"
    )]
    TooManyLimitsMet { met: usize, limit: usize },
    #[error(
        "{0:?} has a valid lease, and none of its health signals is UNHEALTHY; drain it first and end it, or force \
         the removal"
    )]
    Serves(String),
    #[error("{0:?} is unregistering; it has to register again to take flows")]
    Leaving(String),
}

/// The first ones by name. There may be any number.
fn list(deployments: &BTreeSet<Deployment>) -> String {
    const SHOWN: usize = 10;
    let rest = deployments.len().saturating_sub(SHOWN);
    let rest = (rest > 0).then(|| format!("and {rest} more"));
    let names = deployments.iter().take(SHOWN).map(Deployment::to_string).chain(rest);
    let names = names.collect::<Vec<_>>().join(", ");
    if names.is_empty() { "none yet".to_owned() } else { names }
}
