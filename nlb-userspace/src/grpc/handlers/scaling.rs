//! TriggerScaling, and the Scale calls by which the NLB asks instances for more or fewer instances.

use std::convert::Infallible;
use std::time::Duration;

use nlb_proto::{ModuleType, ScaleRequest, TriggerScalingRequest, TriggerScalingResponse};
use tokio::time::Instant;

use super::control::Control;
use crate::controllers::scaling::{Number, ScaleOrder, ScaleOutcome, SizeRequest, Unscalable, policy_of};
use crate::grpc::client::fan_out::{all_done, peer};
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::grpc::convert::{enums, scaling_config};
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;
use crate::registry::State;

/// The interval at which groups without heartbeats are evaluated.
const EVALUATION_INTERVAL: Duration = Duration::from_secs(1);

/// The actions; hyphens stand for underscores.
const ACTIONS: [&str; 4] = ["scale_up", "scale_down", "set", "auto"];

impl Control {
    /// Scales a group as an operator requests, by the same call that automatic scaling makes.
    pub async fn trigger_scaling(
        self,
        request: TriggerScalingRequest,
    ) -> Result<TriggerScalingResponse, CallError> {
        let instance_id = match request.instance_id.as_str() {
            "" => None,
            id => Some(validate::id("instance_id", id)?),
        };
        let module_type = validate::known::<ModuleType>("module_type", request.module_type)?;
        let policy = request.config.map(scaling_config::parse).transpose();
        let policy = policy.map_err(|violation| violation.within("config"))?;
        let action = request.scaling_action.replace('-', "_");
        let number = number(&action, request.target_instances, policy.is_some())?;

        let snapshot = self.registry.snapshot();
        let key = group(&snapshot, instance_id.as_deref(), module_type)?;
        let policy = match action.as_str() {
            "auto" => {
                let policy = policy.or_else(|| policy_of(&key, &snapshot)).unwrap_or_default();
                Some(Policy { automatic: true, ..policy })
            }
            _ => policy,
        };
        let wanted = SizeRequest { number, policy, instance_id };
        let decision = self.scaling.request_size(&key, &wanted, &snapshot, Instant::now())?;
        let text = match &decision.order {
            None => match &decision.pending {
                None => format!("{} instances, as there are", decision.wanted),
                Some(pending) => format!("{} instances; {pending} before", decision.wanted),
            },
            Some(order) => {
                let instance_id = order.instance_id.clone();
                let outcome = self.ask_to_scale(order, true).await;
                let answers = all_done(vec![(instance_id.clone(), outcome)])?;
                let text = answers.into_iter().map(|(_, text)| text).collect::<String>();
                let mut confirmed = format!("{instance_id} scales to {} instances", decision.wanted);
                if let Some(replaced) = &decision.pending {
                    confirmed.push_str(&format!(", in place of {replaced} before"));
                }
                if text.is_empty() { confirmed } else { format!("{confirmed}: {text}") }
            }
        };
        let adopted = match wanted.policy {
            None => "",
            Some(policy) => {
                let automatic = policy.automatic;
                let revision = self.registry.set_scaling(&key, policy)?;
                self.settled(revision).await?;
                if automatic {
                    "; the config is in force"
                } else {
                    "; the config is in force, for manual calls only"
                }
            }
        };
        Ok(TriggerScalingResponse {
            success: true,
            message: text + adopted,
            current_instances: signed_32(decision.current),
            target_instances: signed_32(decision.wanted),
            scaling_action: request.scaling_action,
            error: None,
        })
    }

    /// Asks an instance to scale in a task of its own, so that a heartbeat does not wait for the answer.
    pub fn scale(&self, order: ScaleOrder) {
        let control = self.clone();
        tokio::spawn(async move { control.ask_to_scale(&order, false).await });
    }

    /// Makes the Scale call, and records its outcome with the group.
    async fn ask_to_scale(&self, order: &ScaleOrder, immediate: bool) -> Outcome<String> {
        let outcome = match self.registry.snapshot().record(&order.instance_id) {
            Err(gone) => Outcome::Unreachable(gone.to_string()),
            Ok(record) => {
                let request = ScaleRequest {
                    instance_id: order.instance_id.clone(),
                    config: Some(scaling_config::render(&order.policy, order.wanted)),
                    immediate,
                };
                self.peers.ask(&peer(record), request, ANSWER_TIMEOUT).await
            }
        };
        let outcome = outcome.map(|answer| answer.message);
        self.scaling.conclude(
            order,
            match &outcome {
                Outcome::Done(text) => ScaleOutcome::Accepted(text.clone()),
                // Its answers never decode: another instance may do better.
                Outcome::Undecodable(_) => ScaleOutcome::Failed(outcome.to_string()),
                unknown if unknown.may_be_done() => ScaleOutcome::Unknown(unknown.to_string()),
                failed => ScaleOutcome::Failed(failed.to_string()),
            },
        );
        outcome
    }

    /// Evaluates all groups at the interval. Runs until it is dropped.
    pub async fn watch_scaling(&self) -> Infallible {
        loop {
            tokio::time::sleep(EVALUATION_INTERVAL).await;
            let (snapshot, traffic) = (self.registry.snapshot(), self.traffic.borrow().clone());
            for order in self.scaling.evaluate(&snapshot, &traffic, Instant::now()) {
                self.scale(order);
            }
            let gone = self.scaling.gone(&snapshot);
            if !gone.is_empty() {
                self.registry.forget_scaling(&gone);
            }
        }
    }
}

/// An instance's group, or the only group of a type.
fn group(
    snapshot: &State,
    instance_id: Option<&str>,
    module_type: ModuleType,
) -> Result<GroupKey, CallError> {
    if let Some(instance_id) = instance_id {
        let key = GroupKey::of(&snapshot.record(instance_id)?.registration.module);
        if enums::module_type_from_wire(module_type).is_some_and(|given| given != key.module_type) {
            let problem = format!("is not that of {instance_id:?}; leave it out, or name another instance");
            return Err(FieldViolation::new("module_type", problem).into());
        }
        return Ok(key);
    }
    let Some(wanted) = enums::module_type_from_wire(module_type) else {
        return Err(
            FieldViolation::new("instance_id", "is empty, and so is module_type; give one of them").into()
        );
    };
    let of_type = snapshot.modules.values().map(|record| GroupKey::of(&record.registration.module));
    let mut groups: Vec<GroupKey> = of_type.filter(|key| key.module_type == wanted).collect();
    groups.sort();
    groups.dedup();
    match groups.len() {
        0 => Err(CallError::Unscalable(Unscalable::Empty)),
        1 => Ok(groups.remove(0)),
        several => {
            let problem = format!(
                "has {several} versions, each of which is a group of its own; name an instance_id of the one that is meant"
            );
            Err(FieldViolation::new("module_type", problem).into())
        }
    }
}

fn number(action: &str, target: i32, has_config: bool) -> Result<Number, FieldViolation> {
    let target = validate::unsigned_32("target_instances", target)?;
    let given = Some(target).filter(|target| *target != 0);
    match (action, given) {
        ("scale_up" | "up", given) => Ok(Number::More(given)),
        ("scale_down" | "down", given) => Ok(Number::Fewer(given)),
        ("set" | "", Some(target)) => Ok(Number::Exactly(target)),
        ("", None) if has_config => Ok(Number::Same),
        ("auto", None) => Ok(Number::Same),
        ("auto", Some(target)) => {
            let problem =
                format!("is {target}, and auto lets the load decide; give 0, or scaling_action set");
            Err(FieldViolation::new("target_instances", problem))
        }
        ("set", None) => Err(FieldViolation::new("target_instances", "is 0; say how many there are to be")),
        ("", None) => {
            let problem =
                format!("is empty; give one of {}, or target_instances, or config", ACTIONS.join(", "));
            Err(FieldViolation::new("scaling_action", problem))
        }
        (unknown, _) => {
            let shown: String = unknown.chars().take(64).collect();
            Err(FieldViolation::new("scaling_action", format!("{shown:?} is none of {}", ACTIONS.join(", "))))
        }
    }
}
