//! Destinations that no route covers: modules are asked who can handle them, and the answer becomes a route.
//!
//! The first packet raises an upcall; until that is answered its like are dropped, so that the client sends again and is
//! not refused ([`nlb_common::upcall`]). Whoever scans ports raises one for each, so what reaches modules is bounded: in
//! how many wait, how many are asked about at a time, and how many a second. What comes beyond is treated as closed for a
//! while. If nobody can handle a destination, the kernel is told so, and leaves it alone.

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
use crate::model::upcall::Closed;
use crate::model::upcall::Question;
use crate::registry::{NotLearned, Registry};
use expiry::Keeper;
use queue::Desk;

/// How often learned routes are looked at, apart from changes.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The line to the kernel.
pub struct Line {
    pub questions: mpsc::Receiver<Question>,
    pub answers: mpsc::Sender<Closed>,
}

/// Has questions answered by this way of asking, which says what modules answer, and looks after the routes that come of
/// it. Runs until it is dropped.
pub async fn watch<A, F>(
    registry: Arc<Registry>,
    traffic: watch::Receiver<Arc<Traffic>>,
    mut line: Line,
    ask: A,
) -> Infallible
where
    A: Fn(&Question) -> F,
    F: Future<Output = BTreeMap<String, Ability>> + Send + 'static,
{
    let mut desired = registry.desired();
    let mut desk = Desk::new(Instant::now());
    let mut keeper = Keeper::default();
    let mut asked = JoinSet::new();
    let mut looks = time::interval(LOOK_EVERY);
    looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        while let Some(question) = desk.next(Instant::now()) {
            match registry.snapshot().may_learn(&question.wanted) {
                Ok(()) => {
                    let answers = ask(&question);
                    asked.spawn(async move { (question, answers.await) });
                }
                Err(reason) => {
                    desk.done(&question.wanted);
                    line.refuse(&question, &reason);
                }
            }
        }
        let alarm = desk.alarm();
        tokio::select! {
            Some(question) = line.questions.recv() => {
                if let Err(question) = desk.take(question) {
                    line.close(question.put_off());
                }
            }
            Some(done) = asked.join_next() => {
                let (question, answers) = done.expect("asking does not panic");
                desk.done(&question.wanted);
                if let Err(reason) = registry.learn(question.wanted, &answers, Now::read()) {
                    line.refuse(&question, &reason);
                }
            }
            () = time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
            Ok(()) = desired.changed() => keeper.look(&registry, &traffic.borrow(), Instant::now()),
            _ = looks.tick() => keeper.look(&registry, &traffic.borrow(), Instant::now()),
        }
    }
}

impl Line {
    fn refuse(&self, question: &Question, reason: &NotLearned) {
        debug!(wanted = %question.wanted, client = %question.client, "no route learned: {reason}");
        // What is covered has a service, or is about to.
        if *reason != NotLearned::Covered {
            self.close(question.refused());
        }
    }

    fn close(&self, answer: Closed) {
        if self.answers.try_send(answer).is_err() {
            debug!(
                "many destinations are closed at a time; the kernel closes this one by itself in a moment"
            );
        }
    }
}
