//! Polls modules for their active version, and applies the weights in their answers to the registry.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nlb_proto::{BlueGreenConfig, GetActiveVersionRequest, GetActiveVersionResponse};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tracing::warn;

use super::fan_out::reachable_peer;
use super::peers::{Outcome, Peers};
use crate::controllers::active_version::{Asked, PollSchedule};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::clock::Now;
use crate::model::weight_request::{WeightOutcome, WeightRequest};
use crate::registry::Registry;

const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// Calls in progress at a time.
const MAX_IN_FLIGHT: usize = 64;

/// The most versions that an answer may name: more than any split has.
const MAX_VERSIONS: usize = 64;

/// Polls each instance when it registers and then at intervals of `every`. Runs until it is dropped.
pub async fn ask(registry: Arc<Registry>, peers: Peers, every: Duration) -> Infallible {
    let mut schedule = PollSchedule::new(every);
    let mut asked = FuturesUnordered::new();
    let mut unfulfilled = PendingWeights::default();
    let mut ticks = interval(POLL_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some((asked, outcome)) = asked.next() => {
                unfulfilled.take(&registry, &asked, request(&registry, &asked, outcome));
                schedule.record_answer(asked, Instant::now());
                continue;
            }
        }
        let snapshot = registry.snapshot();
        if schedule.follow(&snapshot) {
            unfulfilled.try_again(&registry);
        }
        for question in
            schedule.take_due(&snapshot, Instant::now(), MAX_IN_FLIGHT.saturating_sub(asked.len()))
        {
            let request = GetActiveVersionRequest { instance_id: question.instance_id.clone() };
            let answer = peers.call_valid(reachable_peer(&snapshot, &question.instance_id), request);
            asked.push(async move { (question, answer.await) });
        }
    }
}

/// Weights of answers that could not be applied, by instance id. Each problem is logged once, and retried if
/// that can help.
#[derive(Default)]
struct PendingWeights(BTreeMap<String, Problem>);

struct Problem {
    asked: Asked,
    /// A weight request that may be applicable later, when other modules have registered.
    waits: Option<WeightRequest>,
    why: String,
}

impl PendingWeights {
    fn take(
        &mut self,
        registry: &Registry,
        asked: &Asked,
        request: Result<Option<WeightRequest>, FieldViolation>,
    ) {
        let before = self.0.remove(&asked.instance_id);
        let (waits, why) = match request {
            Ok(None) => return,
            Ok(Some(request)) => {
                match registry.apply_weight_request(&asked.instance_id, asked.epoch, &request, Now::read()) {
                    WeightOutcome::Done => return,
                    WeightOutcome::Waits(why) => (Some(request), why),
                }
            }
            Err(violation) => (None, violation.to_string()),
        };
        if before.is_none_or(|before| before.asked != *asked || before.why != why) {
            warn!(
                instance = asked.instance_id,
                why, "the weights of the module's GetActiveVersion answer are not applied"
            );
        }
        self.0.insert(asked.instance_id.clone(), Problem { asked: asked.clone(), waits, why });
    }

    fn try_again(&mut self, registry: &Registry) {
        let state = registry.snapshot();
        self.0.retain(|instance_id, Problem { asked, waits, .. }| match waits {
            Some(request) => {
                let tried = registry.apply_weight_request(instance_id, asked.epoch, request, Now::read());
                matches!(tried, WeightOutcome::Waits(_))
            }
            None => asked.is_current(&state),
        });
    }
}

/// The weights in a module's answer; `None` if it has none.
fn request(
    registry: &Registry,
    asked: &Asked,
    outcome: Outcome<GetActiveVersionResponse>,
) -> Result<Option<WeightRequest>, FieldViolation> {
    let (Some(answer), snapshot) = (outcome.done(), registry.snapshot()) else { return Ok(None) };
    match snapshot.record(&asked.instance_id) {
        Ok(record) => read(answer, &record.registration.module.version),
        Err(_) => Ok(None),
    }
}

/// Reads an answer of an instance of version `own`. Only weights count: a version that the answer calls
/// active does not, since most modules name their own.
fn read(answer: GetActiveVersionResponse, own: &str) -> Result<Option<WeightRequest>, FieldViolation> {
    if answer.version_weights.is_empty() {
        return answer.config.map_or(Ok(None), blue_and_green);
    }
    if answer.version_weights.len() > MAX_VERSIONS {
        let problem =
            format!("names {} versions; at most {MAX_VERSIONS} are read", answer.version_weights.len());
        return Err(FieldViolation::new("version_weights", problem));
    }
    let weights = answer
        .version_weights
        .into_iter()
        .map(|(version, weight)| {
            let field = format!("version_weights[{version:?}]");
            Ok((validate::version(&field, &version)?, validate::weight(&field, weight)?))
        })
        .collect::<Result<BTreeMap<_, _>, FieldViolation>>()?;
    Ok(match weights.get(own) {
        Some(weight) if weights.len() == 1 => Some(WeightRequest::Own(*weight)),
        _ => split(weights),
    })
}

/// A config of one version divides nothing.
fn blue_and_green(config: BlueGreenConfig) -> Result<Option<WeightRequest>, FieldViolation> {
    let sides = [
        ("config.blue", config.blue_version, config.blue_weight),
        ("config.green", config.green_version, config.green_weight),
    ];
    let mut weights = BTreeMap::new();
    for (side, version, weight) in sides {
        let version = validate::version(&format!("{side}_version"), &version)?;
        let weight = validate::weight(&format!("{side}_weight"), weight)?;
        if !(version.is_empty() && weight == 0) {
            weights.insert(version, weight);
        }
    }
    Ok(if weights.len() == 2 { split(weights) } else { None })
}

/// A split in which every weight is 0 counts as unset.
fn split(weights: BTreeMap<String, u32>) -> Option<WeightRequest> {
    weights.values().any(|weight| *weight > 0).then_some(WeightRequest::Split(weights))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn weights(weights: &[(&str, i32)]) -> GetActiveVersionResponse {
        let version_weights =
            weights.iter().map(|(version, weight)| (version.to_string(), *weight)).collect();
        GetActiveVersionResponse { active_version: "v1".into(), config: None, version_weights }
    }

    fn config(blue: (&str, i32), green: (&str, i32)) -> GetActiveVersionResponse {
        let config = BlueGreenConfig {
            blue_version: blue.0.into(),
            blue_weight: blue.1,
            green_version: green.0.into(),
            green_weight: green.1,
            ..Default::default()
        };
        GetActiveVersionResponse { config: Some(config), ..weights(&[]) }
    }

    fn divided(weights: &[(&str, u32)]) -> Option<WeightRequest> {
        Some(WeightRequest::Split(
            weights.iter().map(|(version, weight)| (version.to_string(), *weight)).collect(),
        ))
    }

    #[test]
    fn an_answer_is_a_split_or_the_instances_own_weight() {
        for (answer, expected) in [
            (weights(&[("v1", 10), ("v2", 90)]), divided(&[("v1", 10), ("v2", 90)])),
            (weights(&[("v1", 10)]), Some(WeightRequest::Own(10))),
            (weights(&[("v1", 0)]), Some(WeightRequest::Own(0))),
            (weights(&[("v2", 100)]), divided(&[("v2", 100)])),
            (config(("v1", 0), ("v2", 7)), divided(&[("v1", 0), ("v2", 7)])),
            (config(("", 5), ("v2", 7)), divided(&[("", 5), ("v2", 7)])),
        ] {
            assert_eq!(read(answer, "v1"), Ok(expected));
        }
    }

    #[test]
    fn an_answer_without_weights_is_no_weight_request() {
        for answer in [
            GetActiveVersionResponse::default(),
            weights(&[]),
            weights(&[("v1", 0), ("v2", 0)]),
            config(("v1", 0), ("v2", 0)),
            config(("v1", 100), ("", 0)),
            config(("v1", 100), ("v1", 50)),
        ] {
            assert_eq!(read(answer, "v1"), Ok(None));
        }
    }

    #[test]
    fn an_invalid_weight_is_named() {
        for (answer, field) in [
            (weights(&[("v1", -1), ("v2", 5)]), "version_weights[\"v1\"]"),
            (weights(&[("v1", 10_001)]), "version_weights[\"v1\"]"),
            (config(("v1", 1), ("v2", -5)), "config.green_weight"),
            (config(("v\n1", 1), ("v2", 5)), "config.blue_version"),
        ] {
            assert_eq!(read(answer, "v1").unwrap_err().field, field);
        }
        let many: Vec<String> = (0..65).map(|n| format!("v{n}")).collect();
        let many: Vec<(&str, i32)> = many.iter().map(|version| (version.as_str(), 1)).collect();
        assert_eq!(read(weights(&many), "v1").unwrap_err().field, "version_weights");
    }
}
