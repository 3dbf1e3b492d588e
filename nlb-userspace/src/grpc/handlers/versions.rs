//! Weights and versions: SetTrafficWeight, GetActiveVersion, PromoteVersion and Rollback of the NLB's
//! ModuleService.

use nlb_proto::{
    GetActiveVersionRequest, GetActiveVersionResponse, PromoteVersionRequest, PromoteVersionResponse,
    RollbackRequest, RollbackResponse, SetTrafficWeightRequest, SetTrafficWeightResponse,
};

use super::control::Control;
use crate::grpc::client::fan_out::{Consent, Participant, Unreached, message, split_by_lease};
use crate::grpc::client::peers::Peer;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::split;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::DEFAULT_WEIGHT;
use crate::model::clock::Now;
use crate::policy::promotion::{Pace, WHOLE};
use crate::registry::{Commit, RegistryError, State};

/// Percent of new flows a step, if the request names no rate.
const USUAL_RATE: u32 = 10;

const NEW_FLOWS_ONLY: &str = "new flows follow it; flows that have begun stay where they are";

impl Control {
    /// Sets an instance's weight, or a version's.
    pub async fn set_weight(
        self,
        request: SetTrafficWeightRequest,
        passed_on: bool,
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
        let turn = self.peers.serialise(passed_on).await;
        let snapshot = self.registry.snapshot();
        let (instance_ids, former) = if of_version {
            let instance_ids = snapshot.instances_of(&version).map(str::to_owned).collect();
            (instance_ids, snapshot.version_weights.get(&version).copied().unwrap_or(DEFAULT_WEIGHT))
        } else {
            let instance_id = validate::id("instance_id", &request.instance_id)?;
            let former = snapshot.record(&instance_id)?.registration.module.weight;
            (vec![instance_id], former)
        };
        let set = |commit| match of_version {
            true => self.registry.set_version_weight(&version, weight, commit, Now::read()),
            false => self.registry.set_instance_weight(&request.instance_id, &version, weight, commit),
        };
        set(Commit::DryRun)?;
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on)?;
        let undo = SetTrafficWeightRequest { weight: signed_32(former), ..request.clone() };
        let consent = if weight == 0 { Consent::Advisory } else { Consent::Required };
        let participants = peers.into_iter().map(|peer| Participant {
            peer,
            call: request.clone(),
            undo: undo.clone(),
            consent,
        });
        let agreement = self.peers.agree(participants.collect(), unreached).await?;
        let (revision, missed) = agreement.commit(|| set(Commit::Apply)).await?;
        drop(turn);
        self.settled(revision).await?;
        Ok(SetTrafficWeightResponse {
            success: true,
            message: message(NEW_FLOWS_ONLY, [missed.note()]),
            current_config: split::render(&self.registry.snapshot()),
            error: missed.error(),
        })
    }

    /// The split of the whole fleet, whichever instance the request names.
    pub fn active_version(
        &self,
        request: GetActiveVersionRequest,
    ) -> Result<GetActiveVersionResponse, CallError> {
        let snapshot = self.registry.snapshot();
        if !request.instance_id.is_empty() {
            snapshot.record(&validate::id("instance_id", &request.instance_id)?)?;
        }
        let shares = snapshot.version_shares().into_iter();
        Ok(GetActiveVersionResponse {
            active_version: snapshot.active_version().unwrap_or_default().to_owned(),
            config: split::render(&snapshot),
            version_weights: shares.map(|(version, share)| (version, signed_32(share))).collect(),
        })
    }

    pub async fn promote(
        self,
        request: PromoteVersionRequest,
        passed_on: bool,
    ) -> Result<PromoteVersionResponse, CallError> {
        let pace = pace(&request)?;
        let asked = validate::version("version", &request.version)?;
        let turn = self.peers.serialise(passed_on).await;
        let snapshot = self.registry.snapshot();
        let (version, instance_ids) = promoted(&snapshot, &request.instance_id, asked)?;
        let promote = |commit| {
            let traffic = self.traffic.borrow().clone();
            self.registry.promote(&version, pace, &traffic, commit, Now::read())
        };
        promote(Commit::DryRun)?;
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on)?;
        let promotion_rate = match pace {
            Pace::Steps(rate) => signed_32(rate),
            Pace::AtOnce => request.promotion_rate,
        };
        let call = PromoteVersionRequest { version: version.clone(), promotion_rate, ..request.clone() };
        let undo = RollbackRequest { instance_id: request.instance_id.clone(), ..Default::default() };
        let participant =
            |peer| Participant { peer, call: call.clone(), undo: undo.clone(), consent: Consent::Required };
        let agreement = self.peers.agree(peers.into_iter().map(participant).collect(), unreached).await?;
        let (promoted, missed) = agreement.commit(|| promote(Commit::Apply)).await?;
        drop(turn);
        self.settled(promoted.revision).await?;
        let step = self.registry.settings().promotion.step;
        let done = match (pace, promoted.percent) {
            (_, WHOLE) => format!("{version} has all new flows, and is watched for {step:?}"),
            (Pace::AtOnce, percent) => format!("{version} has {percent} % of new flows"),
            (Pace::Steps(more), percent) => {
                format!("{version} has {percent} % of new flows, and {more} % more every {step:?}")
            }
        };
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
        passed_on: bool,
    ) -> Result<RollbackResponse, CallError> {
        let target = validate::version("target_version", &request.target_version)?;
        let turn = self.peers.serialise(passed_on).await;
        let snapshot = self.registry.snapshot();
        let back = |commit| self.registry.roll_back(&target, commit);
        let instance_ids = match request.instance_id.as_str() {
            "" => None,
            id => {
                let instance_id = validate::id("instance_id", id)?;
                snapshot.record(&instance_id)?;
                Some(vec![instance_id])
            }
        };
        let planned = back(Commit::DryRun)?;
        // The participants lose flows, or get them back.
        let instance_ids = instance_ids.unwrap_or_else(|| {
            let versions = [planned.previous.as_str(), planned.current.as_str()];
            let mut instance_ids: Vec<String> = versions
                .iter()
                .flat_map(|version| snapshot.instances_of(version))
                .map(str::to_owned)
                .collect();
            instance_ids.sort();
            instance_ids.dedup();
            instance_ids
        });
        let (peers, unreached) = reachable_peers(&snapshot, &instance_ids, passed_on)?;
        let call = RollbackRequest { target_version: planned.current.clone(), ..request.clone() };
        // The version that operators roll back from must not prevent it.
        let is_left = |peer: &Peer| {
            let record = snapshot.record(&peer.instance_id);
            let version = record.map(|record| record.registration.module.version.as_str());
            planned.previous != planned.current && version == Ok(planned.previous.as_str())
        };
        let undo = PromoteVersionRequest {
            instance_id: request.instance_id.clone(),
            version: planned.previous.clone(),
            immediate: true,
            ..Default::default()
        };
        let participant = |peer: Peer| {
            let consent = if is_left(&peer) { Consent::Advisory } else { Consent::Required };
            Participant { peer, call: call.clone(), undo: undo.clone(), consent }
        };
        let agreement = self.peers.agree(peers.into_iter().map(participant).collect(), unreached).await?;
        let (rolled, missed) = agreement.commit(|| back(Commit::Apply)).await?;
        drop(turn);
        self.settled(rolled.revision).await?;
        Ok(RollbackResponse {
            success: true,
            message: message(format!("the previous split is restored; {NEW_FLOWS_ONLY}"), [missed.note()]),
            previous_version: rolled.previous,
            current_version: rolled.current,
            error: missed.error(),
        })
    }
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

/// The requested version, and the instances that take part. An instance_id in the request stands for its
/// version, and only that instance takes part.
fn promoted(state: &State, instance_id: &str, version: String) -> Result<(String, Vec<String>), CallError> {
    if instance_id.is_empty() {
        if version.is_empty() {
            return Err(
                FieldViolation::new("version", "and instance_id are both empty; name a version").into()
            );
        }
        let instance_ids = state.instances_of(&version).map(str::to_owned).collect();
        return Ok((version, instance_ids));
    }
    let instance_id = validate::id("instance_id", instance_id)?;
    let actual = state.record(&instance_id)?.registration.module.version.clone();
    if !version.is_empty() && version != actual {
        return Err(RegistryError::VersionMismatch { instance_id, asked: version, actual }.into());
    }
    Ok((actual, vec![instance_id]))
}
