//! Polls modules for CanHandle, and passes their answers to the registry.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use nlb_proto::{CanHandleRequest, CanHandleResponse};
use tokio::time::{Instant, MissedTickBehavior, interval};

use super::fan_out::reachable_peer;
use super::peers::{Outcome, Peers};
use crate::controllers::can_handle::{PollResult, Schedule};
use crate::grpc::convert::route;
use crate::model::can_handle::Question;
use crate::model::{Ability, Route};
use crate::registry::Registry;

/// Answers that arrive within this time are applied as one change.
const BATCH_INTERVAL: Duration = Duration::from_millis(100);

/// Calls in progress at a time.
const MAX_IN_FLIGHT: usize = 64;

/// The owner of a learned route, in the context of CanHandle calls.
pub(crate) const LEARNED: &str = "learned";

/// Runs until it is dropped.
pub async fn ask(registry: Arc<Registry>, peers: Peers) -> Infallible {
    let mut desired = registry.desired();
    desired.mark_changed();
    let mut schedule = Schedule::default();
    let mut asked = FuturesUnordered::new();
    let mut epoch = 0;
    let mut answers = BTreeMap::new();
    let mut ticks = interval(BATCH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            Some((question, outcome)) = asked.next() => {
                schedule.record_answer(&question, record_answer(&outcome), Instant::now());
                if let Some(ability) = ability(outcome, registry.snapshot().is_learned(&question.route)) {
                    answers.insert(question, ability);
                }
                continue;
            }
        }
        registry.set_abilities(std::mem::take(&mut answers));
        if desired.has_changed().unwrap_or(false) {
            schedule.follow(desired.borrow_and_update().clone(), Instant::now());
        }
        let snapshot = registry.snapshot();
        for record in snapshot.registered_since(epoch) {
            schedule.renew(&record.registration.instance_id, Instant::now());
        }
        epoch = snapshot.last_epoch();
        for (question, route) in schedule.take_due(Instant::now(), MAX_IN_FLIGHT.saturating_sub(asked.len()))
        {
            let request = request(&question, &route, snapshot.is_learned(&question.route));
            let answer = peers.call_valid(reachable_peer(&snapshot, &question.instance_id), request);
            asked.push(async move { (question, answer.await) });
        }
    }
}

fn request(question: &Question, route: &Route, learned: bool) -> CanHandleRequest {
    let owner = match (question.route.operators, learned) {
        (false, _) => "module",
        (true, false) => "operator",
        (true, true) => LEARNED,
    };
    CanHandleRequest {
        route: Some(route::render(&question.route.id, route)),
        context: [("owner".to_owned(), owner.to_owned())].into(),
    }
}

fn record_answer(outcome: &Outcome<CanHandleResponse>) -> PollResult {
    match outcome {
        Outcome::Done(_) | Outcome::Refused(_) | Outcome::Undecodable(_) => PollResult::Answer,
        Outcome::Unreachable(_) | Outcome::Slow(_) | Outcome::Unimplemented => PollResult::Nothing,
    }
}

pub(crate) fn ability_in(answer: &CanHandleResponse) -> Ability {
    Ability { can_handle: answer.can_handle, priority: answer.priority }
}

/// `None` where the last answer stays in force. A learned route has no configuration, so only a module's
/// answer counts.
fn ability(outcome: Outcome<CanHandleResponse>, learned: bool) -> Option<Ability> {
    match outcome {
        Outcome::Done(answer) => Some(ability_in(&answer)),
        Outcome::Unimplemented => Some(Ability { can_handle: !learned, priority: 0 }),
        Outcome::Refused(_) | Outcome::Unreachable(_) | Outcome::Slow(_) | Outcome::Undecodable(_) => None,
    }
}
