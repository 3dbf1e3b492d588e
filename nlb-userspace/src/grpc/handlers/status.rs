//! The status of the NLB itself.

use std::collections::BTreeMap;
use std::time::SystemTime;

use nlb_proto::{
    CheckHealthRequest, CheckHealthResponse, GetNlbStatusRequest, GetNlbStatusResponse, HealthCheckRequest,
    HealthCheckResponse, HealthStatus, Named as _,
};

use super::control::Control;
use crate::grpc::client::fan_out::peer;
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome, Peer};
use crate::grpc::convert::enums;
use crate::grpc::convert::numbers::{signed_32, signed_64};
use crate::model::Health;
use crate::registry::State;

/// What modules answered about their health, by instance id.
type Answers = BTreeMap<String, Outcome<HealthCheckResponse>>;

impl Control {
    /// The NLB's health and its modules'. A deep check that includes modules asks each of them.
    pub async fn check_health(&self, request: CheckHealthRequest, passed_on: bool) -> CheckHealthResponse {
        let asks = request.deep_check && request.check_modules && !passed_on;
        let answers = if asks { self.ask_modules().await } else { Answers::new() };
        self.own_health(request, &answers)
    }

    async fn ask_modules(&self) -> Answers {
        let peers = self.registry.snapshot().modules.values().map(|record| peer(record)).collect();
        let question =
            |peer: &Peer| HealthCheckRequest { instance_id: peer.instance_id.clone(), deep_check: true };
        self.peers.pass_on(peers, question, ANSWER_TIMEOUT, false).await.into_iter().collect()
    }

    /// The NLB's health, and its modules' if asked for: as the NLB sees them, and as they answered.
    pub(super) fn own_health(&self, request: CheckHealthRequest, answers: &Answers) -> CheckHealthResponse {
        let (mut status, mut message) = self.condition();
        let mut checks = self.data_path();
        if request.deep_check {
            let traffic = self.traffic.borrow();
            checks.insert("packets_seen".to_owned(), traffic.packets_seen.to_string());
            checks.insert("packets_of_unrecorded_flows".to_owned(), traffic.unrecorded.to_string());
            checks.insert("flows_that_found_a_full_pool".to_owned(), traffic.full.to_string());
            checks.insert("destinations_not_asked_about".to_owned(), traffic.unasked.to_string());
            for ((verdict, reason), packets) in &traffic.exits {
                checks.insert(format!("packets.{verdict}.{reason}"), packets.to_string());
            }
        }
        let mut module_health = BTreeMap::new();
        if request.check_modules {
            let snapshot = self.registry.snapshot();
            let seen = snapshot.modules.iter().map(|(id, record)| {
                let answer = answers.get(id);
                (
                    id.clone(),
                    answer.map_or(enums::health_to_wire(record.health()), |answer| {
                        found(record.health(), answer)
                    }),
                )
            });
            let health: BTreeMap<String, HealthStatus> = seen.collect();
            let count = |wanted: &[HealthStatus]| health.values().filter(|one| wanted.contains(one)).count();
            let well = count(&[HealthStatus::Healthy]);
            let serving = count(&[HealthStatus::Healthy, HealthStatus::Degraded]);
            checks.insert("modules".to_owned(), format!("{well} of {} are healthy", health.len()));
            checks.extend(answers.iter().map(|(id, answer)| (format!("module.{id}"), word(answer))));
            if status == HealthStatus::Healthy && well < health.len() {
                status = if serving == 0 { HealthStatus::Unhealthy } else { HealthStatus::Degraded };
                message = format!("{} of {} modules are not healthy", health.len() - well, health.len());
            }
            module_health = health.into_iter().map(|(id, health)| (id, health.into())).collect();
        }
        CheckHealthResponse {
            status: status.into(),
            message,
            module_health: module_health.into_iter().collect(),
            checks: checks.into_iter().collect(),
            checked_at: Some(SystemTime::now().into()),
        }
    }

    pub fn nlb_status(&self, request: GetNlbStatusRequest) -> GetNlbStatusResponse {
        let snapshot = self.registry.snapshot();
        let total = self.counted();
        let mut modules_by_type = BTreeMap::<String, i32>::new();
        for record in snapshot.modules.values() {
            let name = record.registration.module.module_type.name();
            *modules_by_type.entry(name.to_owned()).or_default() += 1;
        }
        let mut details = self.data_path();
        details.extend(self.details.iter().cloned());
        GetNlbStatusResponse {
            status: self.condition().0.into(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            started_at: Some(self.started_at.into()),
            total_requests: signed_64(total.new_flows),
            active_connections: signed_64(total.active_flows),
            registered_modules: signed_32(snapshot.modules.len()),
            modules_by_type: modules_by_type.into_iter().collect(),
            modules: if request.include_modules { self.instances() } else { Vec::new() },
            details: details.into_iter().collect(),
        }
    }

    /// Degraded while the maps do not hold the desired state, where the earlier one is still served, and
    /// while the disk does not hold what operators set.
    fn condition(&self) -> (HealthStatus, String) {
        let not_applied = self.applied.borrow().error.clone();
        let not_stored = self.stored.borrow().error.clone();
        match (not_applied, not_stored) {
            (None, None) => (HealthStatus::Healthy, "the data path holds the desired state".to_owned()),
            (Some(reason), _) => {
                (HealthStatus::Degraded, format!("the data path holds an earlier state: {reason}"))
            }
            (None, Some(reason)) => (
                HealthStatus::Degraded,
                format!("operators' settings are not on disk, and a restart loses them: {reason}"),
            ),
        }
    }

    fn data_path(&self) -> BTreeMap<String, String> {
        let applied = self.applied.borrow();
        let mut seen = BTreeMap::from([
            ("desired_revision".to_owned(), self.registry.desired().borrow().revision.to_string()),
            ("applied_revision".to_owned(), applied.revision.to_string()),
        ]);
        let unserved = &applied.image.unserved;
        seen.extend(
            (!unserved.is_empty()).then(|| ("routes_without_traffic".to_owned(), unserved.join(", "))),
        );
        seen.extend(applied.error.clone().map(|reason| ("apply_error".to_owned(), reason)));
        seen.extend(self.stored.borrow().error.clone().map(|reason| ("store_error".to_owned(), reason)));
        let snapshot = self.registry.snapshot();
        seen.extend(promotions(&snapshot).map(|text| ("promotion".to_owned(), text)));
        let pending = self.scaling.pending(&snapshot).into_iter().map(|(group, pending, current)| {
            let module_type = group.module_type.name();
            format!("{module_type} {}: {pending}, {current} registered", group.version)
        });
        let pending: Vec<String> = pending.collect();
        seen.extend((!pending.is_empty()).then(|| ("pending_scaling".to_owned(), pending.join("; "))));
        seen
    }
}

/// The progress or the end of each deployment's last promotion; with the deployment's name, if there are
/// several.
fn promotions(state: &State) -> Option<String> {
    let deployments = state.deployments();
    // Before modules have registered again after a start, it is not known whose the fleet's rollout is.
    let fleet = deployments.is_empty().then_some((None, &state.rollouts.fleet));
    let own = state.rollouts.own.iter().filter(|(deployment, _)| !deployments.contains(deployment));
    let absent = own.map(|(deployment, rollout)| (Some(deployment), rollout));
    let present = deployments.iter().map(|deployment| (Some(deployment), state.rollouts.of(deployment)));
    let all: Vec<_> = present.chain(absent).chain(fleet).collect();
    let alone = all.len() == 1;
    let texts = all.into_iter().filter_map(|(deployment, rollout)| {
        let under_way = match deployment {
            Some(deployment) => state.promotion_of(deployment),
            None => rollout.promotion.as_ref(),
        };
        let text = under_way.map(|p| format!("{} has {} % of new flows", p.version(), p.percent()));
        let text = text.or_else(|| rollout.last_promotion.clone())?;
        Some(match deployment {
            Some(deployment) if !alone => format!("{deployment}: {text}"),
            _ => text,
        })
    });
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| texts.join("; "))
}

/// A module's health as the NLB sees it, and as the module answered. A module without an answer is unhealthy,
/// unless it does not have the call.
pub(super) fn found(ours: Health, answer: &Outcome<HealthCheckResponse>) -> HealthStatus {
    match answer {
        Outcome::Done(answer) => merged(ours, answer.status()),
        Outcome::Unimplemented => enums::health_to_wire(ours),
        _ => HealthStatus::Unhealthy,
    }
}

/// The module's own status counts only where the NLB considers it healthy.
pub(super) fn merged(ours: Health, theirs: HealthStatus) -> HealthStatus {
    match (ours, theirs) {
        (Health::Healthy, theirs) if theirs != HealthStatus::Unspecified => theirs,
        (ours, _) => enums::health_to_wire(ours),
    }
}

/// An answer in words.
pub(super) fn word(answer: &Outcome<HealthCheckResponse>) -> String {
    match answer {
        Outcome::Done(answer) if answer.message.is_empty() => short(answer.status()),
        Outcome::Done(answer) => format!("{}: {}", short(answer.status()), answer.message),
        outcome => outcome.to_string(),
    }
}

pub(super) fn short(status: HealthStatus) -> String {
    status.short_name().to_owned()
}
