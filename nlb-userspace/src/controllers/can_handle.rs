//! CanHandle before packets: which module is asked about which route, and when.
//!
//! No packet waits for a module's answer. Every pair of a module and a route that it could serve is asked
//! when it is added or changes, and then in regular intervals: every second while there are few pairs, so
//! that a changed answer is soon applied, and every 30 seconds however many there are. [`Schedule`] has
//! neither a clock nor I/O; `grpc` makes the calls, and the registry records the answers.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::model::can_handle::Question;
use crate::model::{Desired, Module, Route, RouteKey};

const MIN_INTERVAL: Duration = Duration::from_secs(1);
const MAX_INTERVAL: Duration = Duration::from_secs(30);

/// Calls a second, spread over all pairs.
const QUESTIONS_PER_SECOND: f64 = 200.0;

/// The result of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PollResult {
    Answer,
    /// The module does not implement CanHandle, or is unreachable: it is not asked again for a while.
    Nothing,
}

/// When each question is asked.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    desired: Arc<Desired>,
    /// When each pair is asked next.
    pairs: BTreeMap<Question, Next>,
    queue: BTreeSet<(Instant, Question)>,
    /// Until when instances that did not answer are not asked.
    unanswered_until: BTreeMap<String, Instant>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    At(Instant),
    /// A call is in flight.
    Answer,
    /// A call is in flight, and the pair has changed since.
    AgainAfterAnswer,
}

impl Schedule {
    /// Updates the pairs. New and changed pairs are due at once.
    pub(crate) fn follow(&mut self, desired: Arc<Desired>, now: Instant) {
        let before = std::mem::replace(&mut self.desired, desired);
        let mut there = BTreeSet::new();
        for (instance_id, module) in &self.desired.modules {
            let same_module = before.modules.get(instance_id).filter(|old| old.version == module.version);
            for key in asked_about(&self.desired, instance_id, module) {
                let unchanged = same_module
                    .is_some_and(|old| find(&before, old, &key) == find(&self.desired, module, &key));
                let question = Question { instance_id: instance_id.clone(), route: key };
                if !unchanged {
                    let at = if has_just_been_learned(&question.route, &before, &self.desired) {
                        now + MIN_INTERVAL
                    } else {
                        now
                    };
                    match self.pairs.insert(question.clone(), Next::At(at)) {
                        Some(Next::At(at)) => drop(self.queue.remove(&(at, question.clone()))),
                        Some(_) => drop(self.pairs.insert(question.clone(), Next::AgainAfterAnswer)),
                        None => {}
                    }
                    if self.pairs[&question] == Next::At(at) {
                        self.queue.insert((at, question.clone()));
                    }
                }
                there.insert(question);
            }
        }
        self.pairs.retain(|question, _| there.contains(question));
        self.queue.retain(|(_, question)| there.contains(question));
        self.unanswered_until.retain(|instance_id, _| self.desired.modules.contains_key(instance_id));
    }

    /// An instance has registered, perhaps as another process: its questions are due at once.
    pub(crate) fn renew(&mut self, instance_id: &str, now: Instant) {
        self.unanswered_until.remove(instance_id);
        let first = RouteKey { id: String::new(), operators: false };
        let first = Question { instance_id: instance_id.to_owned(), route: first };
        let from_first = self.pairs.range_mut(first..);
        for (question, next) in from_first.take_while(|(question, _)| question.instance_id == instance_id) {
            match *next {
                Next::At(at) => {
                    self.queue.remove(&(at, question.clone()));
                    self.queue.insert((now, question.clone()));
                    *next = Next::At(now);
                }
                Next::Answer | Next::AgainAfterAnswer => *next = Next::AgainAfterAnswer,
            }
        }
    }

    /// The questions that are due, at most this many, and their routes.
    pub(crate) fn take_due(&mut self, now: Instant, at_most: usize) -> Vec<(Question, Route)> {
        let mut due = Vec::new();
        while due.len() < at_most && self.queue.first().is_some_and(|(at, _)| *at <= now) {
            let Some((_, question)) = self.queue.pop_first() else { break };
            if let Some(until) =
                self.unanswered_until.get(&question.instance_id).filter(|until| **until > now)
            {
                self.pairs.insert(question.clone(), Next::At(*until));
                self.queue.insert((*until, question));
                continue;
            }
            let module = self.desired.modules.get(&question.instance_id);
            if let Some(route) = module.and_then(|module| find(&self.desired, module, &question.route)) {
                let route = route.clone();
                self.pairs.insert(question.clone(), Next::Answer);
                due.push((question, route));
            }
        }
        due
    }

    /// Records that a question was answered or not, and schedules it again.
    pub(crate) fn record_answer(&mut self, question: &Question, result: PollResult, now: Instant) {
        match result {
            PollResult::Answer => drop(self.unanswered_until.remove(&question.instance_id)),
            // Unless the instance has registered again since.
            PollResult::Nothing if self.pairs.get(question) == Some(&Next::Answer) => {
                self.unanswered_until.insert(question.instance_id.clone(), now + MAX_INTERVAL);
            }
            PollResult::Nothing => {}
        }
        let at = match (self.pairs.get(question), result) {
            // The pair is gone, or was removed and added again.
            (None | Some(Next::At(_)), _) => return,
            (Some(Next::AgainAfterAnswer), _) => now,
            (Some(Next::Answer), PollResult::Answer) => now + self.interval(),
            (Some(Next::Answer), PollResult::Nothing) => now + MAX_INTERVAL,
        };
        self.pairs.insert(question.clone(), Next::At(at));
        self.queue.insert((at, question.clone()));
    }

    fn interval(&self) -> Duration {
        let all = Duration::from_secs_f64(self.pairs.len() as f64 / QUESTIONS_PER_SECOND);
        all.clamp(MIN_INTERVAL, MAX_INTERVAL)
    }
}

/// A route that was learned from answers: the modules need not be asked again at once.
fn has_just_been_learned(key: &RouteKey, before: &Desired, now: &Desired) -> bool {
    key.operators && now.learned_routes.contains_key(&key.id) && !before.learned_routes.contains_key(&key.id)
}

/// The routes that a module could serve: its own, the operator's that are for it, and learned routes.
fn asked_about<'a>(
    desired: &'a Desired,
    instance_id: &'a str,
    module: &'a Module,
) -> impl Iterator<Item = RouteKey> + 'a {
    let learned = desired.learned_routes.iter();
    let learned = learned
        .filter(move |(_, route)| route.suits(module).is_ok())
        .map(|(id, _)| RouteKey { id: id.clone(), operators: true });
    module.served(instance_id, &desired.operator_routes).map(|served| served.key()).chain(learned)
}

fn find<'a>(desired: &'a Desired, module: &'a Module, key: &RouteKey) -> Option<&'a Route> {
    let route = match key.operators {
        true => desired.operator_routes.get(&key.id).or_else(|| desired.learned_routes.get(&key.id)),
        false => module.routes.get(&key.id),
    };
    route.map(Arc::as_ref)
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;
    use crate::model::destination::L4Destination;
    use crate::model::{DataAddresses, L4, Routes};
    use crate::registry::fixtures::{registration, route};

    fn desired(instances: &[&str]) -> Desired {
        let modules = instances.iter().map(|id| (id.to_string(), registration(id).module)).collect();
        Desired { modules, ..Desired::default() }
    }

    fn module<'a>(desired: &'a mut Desired, instance_id: &str) -> &'a mut Module {
        Arc::make_mut(desired.modules.get_mut(instance_id).unwrap())
    }

    fn schedule(desired: Desired) -> Schedule {
        let mut schedule = Schedule::default();
        schedule.follow(Arc::new(desired), Instant::now());
        schedule
    }

    impl Schedule {
        fn ask(&mut self) -> Vec<Question> {
            self.take_due(Instant::now(), usize::MAX).into_iter().map(|(question, _)| question).collect()
        }

        fn named(&mut self) -> Vec<String> {
            let asked = self.ask().into_iter();
            asked.map(|question| format!("{}/{}", question.instance_id, question.route.id)).collect()
        }

        fn record_result(&mut self, question: &Question, result: PollResult) {
            self.record_answer(question, result, Instant::now());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_pair_is_asked_at_once_and_again_after_its_answer() {
        let mut schedule = schedule(desired(&["a"]));
        let asked = schedule.ask();
        assert_eq!(asked.len(), 1);
        time::advance(MAX_INTERVAL).await;
        assert_eq!(schedule.ask(), [], "one call at a time");
        schedule.record_result(&asked[0], PollResult::Answer);
        time::advance(MIN_INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(schedule.ask(), []);
        time::advance(Duration::from_millis(1)).await;
        assert_eq!(schedule.ask(), asked);
        schedule.record_result(&asked[0], PollResult::Nothing);
        time::advance(MAX_INTERVAL - Duration::from_millis(1)).await;
        assert_eq!(schedule.ask(), []);
        time::advance(Duration::from_millis(1)).await;
        assert_eq!(schedule.ask(), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn new_and_changed_pairs_are_due_at_once_and_removed_ones_are_dropped() {
        let mut schedule = schedule(desired(&["a", "b"]));
        let first = schedule.ask();
        first.iter().for_each(|question| schedule.record_result(question, PollResult::Answer));
        schedule.follow(Arc::new(desired(&["a", "b", "c"])), Instant::now());
        assert_eq!(schedule.named(), ["c/web"], "unchanged pairs are not asked");

        let mut next = desired(&["a", "b"]);
        module(&mut next, "b").routes.insert("web".into(), route(81).into());
        schedule.follow(Arc::new(next.clone()), Instant::now());
        assert_eq!(schedule.named(), ["b/web"]);
        module(&mut next, "a").version = "v2".into();
        schedule.follow(Arc::new(next.clone()), Instant::now());
        assert_eq!(schedule.named(), ["a/web"]);
        module(&mut next, "a").weight = 7;
        schedule.follow(Arc::new(next), Instant::now());
        assert_eq!(schedule.named(), [""; 0], "a change of weight asks no question");

        schedule.follow(Arc::default(), Instant::now());
        first.iter().for_each(|question| schedule.record_result(question, PollResult::Answer));
        time::advance(MAX_INTERVAL).await;
        assert_eq!(schedule.ask(), []);
        assert!(schedule.pairs.is_empty() && schedule.queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_change_during_a_question_is_asked_about_after_it() {
        let mut schedule = schedule(desired(&["a"]));
        let asked = schedule.ask();
        let mut next = desired(&["a"]);
        module(&mut next, "a").routes.insert("web".into(), route(81).into());
        schedule.follow(Arc::new(next), Instant::now());
        assert_eq!(schedule.ask(), []);
        schedule.record_result(&asked[0], PollResult::Nothing);
        assert_eq!(schedule.ask(), asked);
    }

    #[tokio::test(start_paused = true)]
    async fn an_instance_without_an_answer_is_not_asked_for_a_while_unless_it_registers_again() {
        let mut desired = desired(&["a", "b"]);
        module(&mut desired, "a").routes.insert("api".into(), route(81).into());
        let mut schedule = schedule(desired.clone());
        let asked = schedule.take_due(Instant::now(), 1);
        schedule.record_result(&asked[0].0, PollResult::Nothing);
        assert_eq!(schedule.named(), ["b/web"], "instance a is not asked about its other route either");
        module(&mut desired, "a").routes.insert("new".into(), route(82).into());
        schedule.follow(Arc::new(desired), Instant::now());
        assert_eq!(schedule.named(), [""; 0]);
        schedule.renew("a", Instant::now());
        let asked = schedule.ask();
        assert_eq!(asked.len(), 3);
        // The instance registers again during a call, so the missing answer does not count.
        schedule.renew("a", Instant::now());
        asked.iter().for_each(|question| schedule.record_result(question, PollResult::Nothing));
        let asked = schedule.ask();
        assert_eq!(asked.len(), 3);
        schedule.record_result(&asked[0], PollResult::Nothing);
        schedule.record_result(&asked[1], PollResult::Answer);
        schedule.record_result(&asked[2], PollResult::Answer);
        time::advance(MIN_INTERVAL).await;
        assert_eq!(schedule.ask(), asked[1..], "it answers");
    }

    #[tokio::test(start_paused = true)]
    async fn modules_are_asked_about_operators_routes_that_are_for_them() {
        let mut desired = desired(&["a", "b"]);
        let targets = crate::model::Targets::Instances(BTreeSet::from(["b".to_owned()]).into());
        desired.operator_routes.insert("special".into(), Route { targets, ..route(90) }.into());
        let mut schedule = schedule(desired);
        let asked = schedule.take_due(Instant::now(), 2);
        assert_eq!(asked.len(), 2, "at most two questions");
        let (question, about) = &asked[1];
        assert_eq!(
            (question.instance_id.as_str(), question.route.operators, about.port),
            ("b", true, Some(90))
        );
        assert_eq!(schedule.named(), ["b/web"]);
    }

    #[tokio::test(start_paused = true)]
    async fn every_module_that_could_serve_a_learned_route_is_asked() {
        let wanted = L4Destination { vip: "192.0.2.1".parse().unwrap(), port: 81, l4: L4::Tcp };
        let learned = |instances| {
            let learned_routes = Routes::unit(wanted.route_id(), wanted.route().into());
            let mut desired = Desired { learned_routes, ..desired(instances) };
            let v6 = Some("2001:db8::a".parse().unwrap());
            module(&mut desired, "six").data = DataAddresses { v4: None, v6 };
            desired
        };
        let mut schedule = schedule(learned(&["a", "six"]));
        assert_eq!(
            schedule.named(),
            ["a/web", "six/web"],
            "the route was learned from answers that just came"
        );
        schedule.follow(Arc::new(learned(&["a", "b", "six"])), Instant::now());
        assert_eq!(schedule.named(), ["b/learned:192.0.2.1:81/tcp", "b/web"]);
        time::advance(MIN_INTERVAL).await;
        assert_eq!(schedule.named(), ["a/learned:192.0.2.1:81/tcp"]);
    }

    #[tokio::test(start_paused = true)]
    async fn many_pairs_are_asked_less_often_but_every_thirty_seconds() {
        let many = |count: usize| {
            let ids: Vec<String> = (0..count).map(|n| format!("m{n}")).collect();
            schedule(desired(&ids.iter().map(String::as_str).collect::<Vec<_>>())).interval()
        };
        assert_eq!(many(200), MIN_INTERVAL);
        assert_eq!(many(2000), Duration::from_secs(10));
        assert_eq!(many(20_000), MAX_INTERVAL);
    }
}
