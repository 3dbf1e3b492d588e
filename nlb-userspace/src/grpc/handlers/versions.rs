//! Weights and versions: SetTrafficWeight, GetActiveVersion, PromoteVersion and Rollback of the NLB's
//! ModuleService. Each call is for a deployment: that of the instance or version that it names, or the one
//! that its metadata name.

use std::collections::BTreeSet;

use nlb_proto::{
    GetActiveVersionRequest, GetActiveVersionResponse, PromoteVersionRequest, PromoteVersionResponse,
    RollbackRequest, RollbackResponse, SetTrafficWeightRequest, SetTrafficWeightResponse,
};

use super::control::Control;
use crate::grpc::client::fan_out::{Consent, Participant, Unreached, message, split_by_lease};
use crate::grpc::client::peers::{PassedOn, Peer};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::split;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::clock::Now;
use crate::model::{DEFAULT_WEIGHT, Deployment};
use crate::policy::promotion::{Pace, WHOLE};
use crate::registry::{Commit, Deployments, Moved, RegistryError, Scope, State};

/// Percent of new flows a step, if the request names no rate.
const USUAL_RATE: u32 = 10;

const NEW_FLOWS_ONLY: &str = "new flows follow it; flows that have begun stay where they are";

impl Control {
    /// Sets an instance's weight, or a version's.
    pub async fn set_weight(
        self,
        request: SetTrafficWeightRequest,
        scope: Scope,
        passed_on: Option<PassedOn>,
    ) -> Result<SetTrafficWeightResponse, CallError> {
        let weight = validate::weight("weight", request.weight)?;
        let version = validate::version("version", &request.version)?;
        let of_version = request.instance_id.is_empty();
        if of_version && version.is_empty() {
            return Err(FieldViolation::new(
                "instance_id",
                "and version are both empty; name an instance or a version",
            )
            .into());
        }
        let turn = self.peers.serialise(passed_on.is_some()).await;
        let snapshot = self.registry.snapshot();
        let meant = scope_here(&snapshot, &scope, passed_on.as_ref());
        let (deployments, instance_ids) = if of_version {
            let deployments = snapshot.deployments_with(&meant, &version)?;
            let instance_ids = instances_of(&snapshot, &deployments, &version);
            (deployments, instance_ids)
        } else {
            let instance_id = validate::id("instance_id", &request.instance_id)?;
            (Deployments::from([snapshot.deployment_of(&instance_id, &meant)?]), vec![instance_id])
        };
        let set = |commit| match of_version {
            true => self.registry.set_version_weight(&deployments, &version, weight, commit, Now::read()),
            false => self.registry.set_instance_weight(&request.instance_id, &version, weight, commit),
        };
        set(Commit::DryRun)?;
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on.is_some())?;
        let former = |instance_id: &str| -> Result<u32, RegistryError> {
            let module = &snapshot.record(instance_id)?.registration.module;
            let weights = &snapshot.rollouts.of(&module.deployment).version_weights;
            let of_its_version = || weights.get(&version).copied().unwrap_or(DEFAULT_WEIGHT);
            Ok(if of_version { of_its_version() } else { module.weight })
        };
        let consent = if weight == 0 { Consent::Advisory } else { Consent::Required };
        let participants = peers.into_iter().map(|peer| {
            let weight = signed_32(former(&peer.instance_id)?);
            let undo = SetTrafficWeightRequest { weight, ..request.clone() };
            Ok(Participant { peer, call: request.clone(), undo, consent })
        });
        let participants = participants.collect::<Result<_, RegistryError>>()?;
        let agreement = self.peers.naming(&scope).agree(participants, unreached).await?;
        let (revision, missed) = agreement.commit(|| set(Commit::Apply)).await?;
        drop(turn);
        self.settled(revision).await?;
        Ok(SetTrafficWeightResponse {
            success: true,
            message: message(in_each(&deployments, NEW_FLOWS_ONLY), [missed.note()]),
            current_config: only(&deployments).and_then(|one| split::render(&self.registry.snapshot(), one)),
            error: missed.error(),
        })
    }

    /// The split of one deployment.
    pub fn active_version(
        &self,
        request: GetActiveVersionRequest,
        scope: &Scope,
    ) -> Result<GetActiveVersionResponse, CallError> {
        let snapshot = self.registry.snapshot();
        let deployment = match request.instance_id.as_str() {
            "" => snapshot.deployment_asked_about(scope)?,
            id => Some(snapshot.deployment_of(&validate::id("instance_id", id)?, scope)?),
        };
        let Some(deployment) = deployment else { return Ok(GetActiveVersionResponse::default()) };
        let shares = snapshot.version_shares(&deployment).into_iter();
        Ok(GetActiveVersionResponse {
            active_version: snapshot.active_version(&deployment).unwrap_or_default().to_owned(),
            config: split::render(&snapshot, &deployment),
            version_weights: shares.map(|(version, share)| (version, signed_32(share))).collect(),
        })
    }

    pub async fn promote(
        self,
        request: PromoteVersionRequest,
        scope: Scope,
        passed_on: Option<PassedOn>,
    ) -> Result<PromoteVersionResponse, CallError> {
        let pace = pace(&request)?;
        let asked = validate::version("version", &request.version)?;
        let turn = self.peers.serialise(passed_on.is_some()).await;
        let snapshot = self.registry.snapshot();
        let meant = scope_here(&snapshot, &scope, passed_on.as_ref());
        let Chosen { deployments, version, instance_ids } =
            promoted(&snapshot, &meant, &request.instance_id, asked, undone(passed_on.as_ref()))?;
        let promote = |commit| {
            let traffic = self.traffic.borrow().clone();
            self.registry.promote(&deployments, &version, pace, &traffic, commit, Now::read())
        };
        promote(Commit::DryRun)?;
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on.is_some())?;
        let promotion_rate = match pace {
            Pace::Steps(rate) => signed_32(rate),
            Pace::AtOnce => request.promotion_rate,
        };
        let call = PromoteVersionRequest { version: version.clone(), promotion_rate, ..request.clone() };
        let undo = RollbackRequest { instance_id: request.instance_id.clone(), ..Default::default() };
        let participant =
            |peer| Participant { peer, call: call.clone(), undo: undo.clone(), consent: Consent::Required };
        let participants = peers.into_iter().map(participant).collect();
        let peers = self.peers.naming(&scope).undoing(&version);
        let agreement = peers.agree(participants, unreached).await?;
        let (promoted, missed) = agreement.commit(|| promote(Commit::Apply)).await?;
        drop(turn);
        self.settled(promoted.revision).await?;
        let step = self.registry.settings().promotion.step;
        let done = |percent: u32| match (pace, percent) {
            (_, WHOLE) => format!("{version} has all new flows, and is watched for {step:?}"),
            (Pace::AtOnce, percent) => format!("{version} has {percent} % of new flows"),
            (Pace::Steps(more), percent) => {
                format!("{version} has {percent} % of new flows, and {more} % more every {step:?}")
            }
        };
        let alone = promoted.percent.len() == 1;
        let done = promoted.percent.iter().map(|(deployment, percent)| match alone {
            true => done(*percent),
            false => format!("in {deployment}, {}", done(*percent)),
        });
        let done = done.collect::<Vec<_>>().join("; ");
        Ok(PromoteVersionResponse {
            success: true,
            message: message(done, [missed.note()]),
            promoted_version: version,
            error: None,
        })
    }

    pub async fn roll_back(
        self,
        request: RollbackRequest,
        scope: Scope,
        passed_on: Option<PassedOn>,
    ) -> Result<RollbackResponse, CallError> {
        let target = validate::version("target_version", &request.target_version)?;
        let turn = self.peers.serialise(passed_on.is_some()).await;
        let snapshot = self.registry.snapshot();
        let meant = scope_here(&snapshot, &scope, passed_on.as_ref());
        let (deployments, instance_ids) = match request.instance_id.as_str() {
            "" => {
                let deployments = match undone(passed_on.as_ref()) {
                    Some(version) => snapshot.deployments_with(&meant, version)?,
                    None => snapshot.deployments_to_roll_back(&meant, &target)?,
                };
                (deployments, None)
            }
            id => {
                let instance_id = validate::id("instance_id", id)?;
                (Deployments::from([snapshot.deployment_of(&instance_id, &meant)?]), Some(vec![instance_id]))
            }
        };
        let back = |commit| self.registry.roll_back(&deployments, &target, commit);
        let planned = back(Commit::DryRun)?.moved;
        // The participants lose flows, or get them back.
        let instance_ids = instance_ids.unwrap_or_else(|| {
            let moved = planned.iter().flat_map(|(deployment, moved)| {
                [&moved.previous, &moved.current].map(|version| (deployment, version))
            });
            let mut instance_ids: Vec<String> = moved
                .flat_map(|(deployment, version)| snapshot.instances_of(deployment, version))
                .map(str::to_owned)
                .collect();
            instance_ids.sort();
            instance_ids.dedup();
            instance_ids
        });
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on.is_some())?;
        let participant = |peer: Peer| {
            let module = &snapshot.record(&peer.instance_id)?.registration.module;
            let Moved { previous, current } = &planned[&module.deployment];
            // The version that operators roll back from must not prevent it.
            let is_left = previous != current && module.version == *previous;
            let consent = if is_left { Consent::Advisory } else { Consent::Required };
            let call = RollbackRequest { target_version: current.clone(), ..request.clone() };
            let undo = PromoteVersionRequest {
                instance_id: request.instance_id.clone(),
                version: previous.clone(),
                immediate: true,
                ..Default::default()
            };
            Ok(Participant { peer, call, undo, consent })
        };
        let participants = peers.into_iter().map(participant).collect::<Result<_, RegistryError>>()?;
        let to: BTreeSet<&String> = planned.values().map(|moved| &moved.current).collect();
        let peers = self.peers.naming(&scope);
        // Of several versions none stands for all deployments.
        let peers =
            if let (1, Some(version)) = (to.len(), to.first()) { peers.undoing(version) } else { peers };
        let agreement = peers.agree(participants, unreached).await?;
        let (rolled, missed) = agreement.commit(|| back(Commit::Apply)).await?;
        drop(turn);
        self.settled(rolled.revision).await?;
        let done = in_each(&deployments, &format!("the previous split is restored; {NEW_FLOWS_ONLY}"));
        let agreed = |version: fn(&Moved) -> &String| {
            let versions: BTreeSet<&String> = rolled.moved.values().map(version).collect();
            // Where the deployments differ, no version is that of all.
            if versions.len() == 1 { versions.into_iter().cloned().collect() } else { String::new() }
        };
        Ok(RollbackResponse {
            success: true,
            message: message(done, [missed.note()]),
            previous_version: agreed(|moved| &moved.previous),
            current_version: agreed(|moved| &moved.current),
            error: missed.error(),
        })
    }
}

/// What was done, with the deployments where there are several.
fn in_each(deployments: &Deployments, done: &str) -> String {
    match only(deployments) {
        Some(_) => done.to_owned(),
        None => {
            let names: Vec<&str> = deployments.iter().map(Deployment::name).collect();
            format!("in {}: {done}", names.join(", "))
        }
    }
}

/// The deployment, if there is only one.
fn only(deployments: &Deployments) -> Option<&Deployment> {
    deployments.first().filter(|_| deployments.len() == 1)
}

fn instances_of(state: &State, deployments: &Deployments, version: &str) -> Vec<String> {
    let instance_ids = deployments.iter().flat_map(|deployment| state.instances_of(deployment, version));
    instance_ids.map(str::to_owned).collect()
}

/// The deployments that a call means. One that another NLB passed on names a deployment there, which counts
/// only if there is one of that name here.
fn scope_here(state: &State, scope: &Scope, passed_on: Option<&PassedOn>) -> Scope {
    match scope {
        Scope::One(name) if passed_on.is_some() && !state.knows_deployment(name) => Scope::Implied,
        known => known.clone(),
    }
}

/// The version of the call that this one undoes, if it undoes one.
fn undone(passed_on: Option<&PassedOn>) -> Option<&str> {
    passed_on?.undoes.as_deref()
}

/// The participants. A call that another NLB passed on has none here.
fn reachable_peers(
    state: &State,
    instances: &[String],
    passed_on: bool,
) -> Result<(Vec<Peer>, Unreached), RegistryError> {
    if passed_on { Ok(Default::default()) } else { split_by_lease(state, instances) }
}

fn pace(request: &PromoteVersionRequest) -> Result<Pace, FieldViolation> {
    if request.immediate {
        return Ok(Pace::AtOnce);
    }
    let rate = match u32::try_from(request.promotion_rate) {
        Ok(0) => Some(USUAL_RATE),
        rate => rate.ok().filter(|rate| *rate <= WHOLE),
    };
    rate.map(Pace::Steps).ok_or_else(|| {
        let problem = format!("{} is not 1 to {WHOLE} percent of new flows a step", request.promotion_rate);
        FieldViolation::new("promotion_rate", problem)
    })
}

/// What a promotion is about.
struct Chosen {
    deployments: Deployments,
    version: String,
    /// The instances that take part.
    instance_ids: Vec<String>,
}

/// An instance_id in the request stands for its version and deployment, and only that instance takes part.
/// The call may undo one for the deployments that have the version `undone`.
fn promoted(
    state: &State,
    scope: &Scope,
    instance_id: &str,
    version: String,
    undone: Option<&str>,
) -> Result<Chosen, CallError> {
    if instance_id.is_empty() {
        if version.is_empty() {
            return Err(
                FieldViolation::new("version", "and instance_id are both empty; name a version").into()
            );
        }
        let deployments = state.deployments_with(scope, undone.unwrap_or(&version))?;
        let instance_ids = instances_of(state, &deployments, &version);
        return Ok(Chosen { deployments, version, instance_ids });
    }
    let instance_id = validate::id("instance_id", instance_id)?;
    let deployments = Deployments::from([state.deployment_of(&instance_id, scope)?]);
    let actual = state.record(&instance_id)?.registration.module.version.clone();
    if !version.is_empty() && version != actual {
        return Err(RegistryError::VersionMismatch { instance_id, asked: version, actual }.into());
    }
    Ok(Chosen { deployments, version: actual, instance_ids: vec![instance_id] })
}
