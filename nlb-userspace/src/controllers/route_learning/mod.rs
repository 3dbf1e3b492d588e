//! Route learning: modules are asked whether they can handle a destination without a route, and their answers
//! become a route.
//!
//! The first packet raises an upcall; until that is answered, the packets of its kind are dropped, so that
//! the client retransmits and is not refused ([`nlb_common::upcall`]). A port scan raises an upcall for each
//! port, so there are bounds on the destinations that wait, that modules are asked about at a time, and that
//! they are asked about each second. Destinations beyond the bounds are throttled: they get a negative entry
//! with a short time to live. A destination that no module can handle gets a negative entry, too.

mod expiry;
mod queue;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{self, Instant, MissedTickBehavior};
use tracing::debug;

use crate::model::Ability;
use crate::model::clock::Now;
use crate::model::traffic::Traffic;
use crate::model::upcall::NegativeEntry;
use crate::model::upcall::Question;
use crate::registry::{NotLearned, Registry};
use expiry::LearnedRouteExpiry;
use queue::UpcallQueue;

/// How often learned routes are reviewed, apart from changes.
const EVALUATION_INTERVAL: Duration = Duration::from_secs(1);

/// The channel to the kernel: its upcalls, and negative entries.
pub struct UpcallChannel {
    pub questions: mpsc::Receiver<Question>,
    pub answers: mpsc::Sender<NegativeEntry>,
}

/// Answers upcalls by asking modules with `ask`, which returns their answers, and expires learned routes.
/// Runs until it is dropped.
pub async fn watch<A, F>(
    registry: Arc<Registry>,
    traffic: watch::Receiver<Arc<Traffic>>,
    mut channel: UpcallChannel,
    ask: A,
) -> Infallible
where
    A: Fn(&Question) -> F,
    F: Future<Output = BTreeMap<String, Ability>> + Send + 'static,
{
    let mut desired = registry.desired();
    let mut queue = UpcallQueue::new(Instant::now());
    let mut expiry = LearnedRouteExpiry::default();
    let mut asked = JoinSet::new();
    let mut looks = time::interval(EVALUATION_INTERVAL);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(question) = queue.next(Instant::now()) {
            match registry.snapshot().may_learn(&question.destination) {
                Ok(()) => {
                    let answers = ask(&question);
                    asked.spawn(async move { (question, answers.await) });
                }
                Err(reason) => {
                    queue.done(&question.destination);
                    channel.refuse(&question, &reason);
                }
            }
        }
        let alarm = queue.alarm();
        tokio::select! {
            Some(question) = channel.questions.recv() => {
                if let Err(question) = queue.take(question) {
                    channel.close(question.throttled());
                }
            }
            Some(done) = asked.join_next() => {
                let (question, answers) = done.expect("asking does not panic");
                queue.done(&question.destination);
                if let Err(reason) = registry.learn(question.destination, &answers, Now::read()) {
                    channel.refuse(&question, &reason);
                }
            }
            () = time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
            Ok(()) = desired.changed() => expiry.evaluate(&registry, &traffic.borrow(), Instant::now()),
            _ = looks.tick() => expiry.evaluate(&registry, &traffic.borrow(), Instant::now()),
        }
    }
}

impl UpcallChannel {
    fn refuse(&self, question: &Question, reason: &NotLearned) {
        debug!(destination = %question.destination, client = %question.client, "no route learned: {reason}");
        // A covered destination has a service, or gets one with the next change of the maps.
        if *reason != NotLearned::Covered {
            self.close(question.refused());
        }
    }

    fn close(&self, answer: NegativeEntry) {
        if self.answers.try_send(answer).is_err() {
            debug!("the channel of negative entries is full; this upcall expires in the kernel");
        }
    }
}
