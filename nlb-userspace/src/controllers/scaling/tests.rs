//! Scaling without gRPC: heartbeats and counters in, Scale requests out, in time that the test advances.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{self, Instant};

use super::autoscaler::Autoscaler;
use super::*;
use crate::model::clock::Now;
use crate::model::traffic::Counts;
use crate::model::{Backend, ForwardMode, RouteKey};
use crate::policy::scaling::load::Load;
use crate::policy::scaling::policy::{Policy, TargetLoad};
use crate::registry::fixtures::{Fleet as _, registration, registry};
use crate::registry::{Registry, Report};

/// At most four instances, of ten connections each.
fn policy() -> Policy {
    let targets = TargetLoad { connections: Some(10), ..TargetLoad::default() };
    Policy { automatic: true, max: 4, targets, ..Policy::default() }
}

fn load(instances: u32, connections: u64) -> Load {
    Load { instances, connections, ..Load::default() }
}

const COOLDOWN: Duration = Policy::DEFAULT_COOLDOWN;

#[test]
fn the_number_brings_the_highest_measure_to_its_target_within_the_bounds() {
    let policy = policy();
    for (there, connections, wanted) in [
        (1, 10, 1),
        (1, 11, 2),
        (1, 30, 3),
        (1, 31, 4),
        (1, 500, 4),
        (4, 500, 4),
        (2, 10, 2),
        (2, 9, 1),
        (3, 14, 2),
        (4, 0, 1),
        (1, 0, 1),
        (0, 0, 0),
        (5, 50, 4),
    ] {
        assert_eq!(policy.wanted(&load(there, connections)), wanted, "{there} with {connections}");
    }
    let at_least_two = Policy { min: 2, ..policy };
    assert_eq!((at_least_two.wanted(&load(1, 0)), at_least_two.wanted(&load(4, 0))), (2, 2));
}

#[test]
fn thresholds_are_percent_of_cpu_and_memory_and_of_the_target_of_connections() {
    let targets = TargetLoad { cpu_percent: Some(50), memory_percent: Some(60), connections: Some(100) };
    let policy = Policy { targets, scale_up: Some(80), scale_down: Some(20), ..policy() };
    let wanted = |cpu, memory, connections| {
        policy.wanted(&Load { instances: 2, cpu_percent: cpu, memory_percent: memory, connections })
    };
    assert_eq!(wanted(Some(80.0), None, 0), 2, "80 % of CPU is not above the threshold");
    assert_eq!(wanted(Some(81.0), None, 0), 4, "81 % of two are 50 % of four");
    assert_eq!(wanted(None, Some(81.0), 0), 3);
    assert_eq!(wanted(None, None, 160), 2, "80 % of 2 x 100 connections");
    assert_eq!(wanted(None, None, 162), 3);
    assert_eq!(wanted(Some(19.0), Some(19.0), 39), 1);
    assert_eq!(wanted(Some(20.0), Some(19.0), 39), 2, "one measure is not below its threshold");
    assert_eq!(wanted(Some(19.0), None, 39), 2, "no instance reports the other measure");
}

#[test]
fn a_group_shrinks_only_if_fewer_instances_would_suffice() {
    let policy = Policy { scale_up: Some(100), scale_down: Some(90), ..policy() };
    assert_eq!(policy.wanted(&load(2, 17)), 2, "one instance would have 170 %");
    assert_eq!(policy.wanted(&load(4, 30)), 3);
}

#[test]
fn contradicting_thresholds_are_detected() {
    assert!(!policy().contradicts_itself() && !Policy::default().contradicts_itself());
    assert!(Policy { scale_down: Some(100), ..policy() }.contradicts_itself());
    assert!(Policy { scale_up: Some(50), scale_down: Some(50), ..policy() }.contradicts_itself());
}

#[tokio::test(start_paused = true)]
async fn three_samples_in_a_row_and_nothing_in_the_cooldown() {
    let policy = policy();
    let mut autoscaler = Autoscaler::default();
    let mut sample = |connections| {
        let asked = autoscaler.sample(&policy, &load(2, connections), Instant::now());
        if asked.is_some() {
            autoscaler.cool(&policy, Instant::now());
        }
        (asked, autoscaler)
    };
    // Every transition from every state.
    assert_eq!(sample(15), (None, Autoscaler::Steady));
    assert_eq!(sample(30), (None, Autoscaler::Growing(1)));
    assert_eq!(sample(15), (None, Autoscaler::Steady));
    assert_eq!(sample(5), (None, Autoscaler::Shrinking(1)));
    assert_eq!(sample(15), (None, Autoscaler::Steady));
    assert_eq!(sample(30), (None, Autoscaler::Growing(1)));
    assert_eq!(sample(5), (None, Autoscaler::Shrinking(1)), "a sample of the other kind starts over");
    assert_eq!(sample(30), (None, Autoscaler::Growing(1)));
    assert_eq!(sample(30), (None, Autoscaler::Growing(2)));
    let cooling = Autoscaler::Cooling { until: Instant::now() + COOLDOWN };
    assert_eq!(sample(30), (Some(3), cooling));
    for _ in 0..5 {
        assert_eq!(sample(30), (None, cooling));
        assert_eq!(sample(5), (None, cooling));
    }
    time::advance(COOLDOWN - Duration::from_millis(1)).await;
    assert_eq!(sample(5), (None, cooling));
    time::advance(Duration::from_millis(1)).await;
    assert_eq!(sample(5), (None, Autoscaler::Shrinking(1)), "samples of the cooldown do not count");
    assert_eq!(sample(5), (None, Autoscaler::Shrinking(2)));
    let cooling = Autoscaler::Cooling { until: Instant::now() + COOLDOWN };
    assert_eq!(sample(5), (Some(1), cooling));
    time::advance(COOLDOWN).await;
    assert_eq!(sample(15), (None, Autoscaler::Steady));
}

/// Instances of one group, some with a scaling policy.
struct Group {
    registry: Registry,
    scaling: Scaling,
    traffic: Traffic,
    ids: Vec<(&'static str, String)>,
}

impl Group {
    fn new(members: &[(&'static str, Option<Policy>)]) -> Self {
        let (registry, scaling) = (registry(), Scaling::default());
        let mut group = Group { registry, scaling, traffic: Traffic::default(), ids: Vec::new() };
        for (id, policy) in members {
            let mut registration = registration(id);
            registration.scaling = policy.clone();
            let registered = group.registry.admit(registration, Now::read()).unwrap();
            group.ids.push((id, registered.registration_id.reveal().to_owned()));
        }
        group
    }

    fn set_connections(&mut self, instance_id: &str, active_flows: u64) {
        let backend = Backend {
            instance_id: instance_id.to_owned(),
            route: Some(RouteKey { id: "web".into(), operators: false }),
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            mode: ForwardMode::Nat,
            snat: Default::default(),
        };
        self.traffic.backends.insert(backend.into(), Counts { active_flows, ..Counts::default() });
    }

    fn heartbeat(&self, instance_id: &str) -> HeartbeatOutcome {
        self.report(instance_id, None)
    }

    fn report(&self, instance_id: &str, report: Option<Report>) -> HeartbeatOutcome {
        let (_, proof) = self.ids.iter().find(|(id, _)| *id == instance_id).unwrap();
        self.registry.heartbeat(instance_id, proof, None, report, Now::read()).unwrap();
        self.scaling.record_heartbeat(instance_id, &self.registry.snapshot(), &self.traffic, Instant::now())
    }

    fn evaluate(&self) -> Vec<ScaleOrder> {
        self.scaling.evaluate(&self.registry.snapshot(), &self.traffic, Instant::now())
    }

    /// Sends heartbeats of one instance until a Scale request follows.
    fn order_after(&self, instance_id: &str, heartbeats: u32) -> ScaleOrder {
        for _ in 1..heartbeats {
            assert_eq!(self.heartbeat(instance_id).order, None);
        }
        self.heartbeat(instance_id).order.expect("an order")
    }

    fn request_size(&self, number: Number) -> Result<Decision, Unscalable> {
        let request_size = SizeRequest { number, policy: None, instance_id: None };
        self.scaling.request_size(&self.key(), &request_size, &self.registry.snapshot(), Instant::now())
    }

    fn key(&self) -> GroupKey {
        GroupKey::of(&self.registry.snapshot().modules.values().next().unwrap().registration.module)
    }

    fn detail(&self, key: &str) -> String {
        let state = self.registry.snapshot();
        let details = self.scaling.details(state.modules.values().next().unwrap(), &state, Instant::now());
        details.get(key).cloned().unwrap_or_default()
    }
}

#[tokio::test(start_paused = true)]
async fn a_breach_leads_to_one_order_and_one_notice() {
    let mut group = Group::new(&[("a", Some(policy()))]);
    group.set_connections("a", 25);
    let order = group.order_after("a", 3);
    assert_eq!((order.instance_id.as_str(), order.current, order.wanted), ("a", 1, 3));
    let record_heartbeat = group.heartbeat("a");
    assert_eq!(record_heartbeat, HeartbeatOutcome { asked_for: Some(3), order: None });
    for _ in 0..10 {
        assert_eq!(
            group.heartbeat("a"),
            HeartbeatOutcome::default(),
            "one notice, and one request in the cooldown"
        );
    }
    assert_eq!(group.detail("scaling.state"), "cooling for 60 s");
    time::advance(COOLDOWN).await;
    assert_eq!(group.order_after("a", 3).number, 2, "no instance was started: another request");
}

#[tokio::test(start_paused = true)]
async fn many_instances_make_one_sample_a_round() {
    let mut group = Group::new(&[("a", Some(policy())), ("b", None), ("c", None)]);
    group.set_connections("b", 100);
    for round in 1..=2 {
        for id in ["a", "b", "c"] {
            assert_eq!(group.heartbeat(id).order, None, "{id} in round {round}");
        }
    }
    let order = group.heartbeat("a").order.expect("the third round begins");
    assert_eq!((order.instance_id.as_str(), order.wanted), ("a", 4));
    // An instance without heartbeats does not delay the round.
    time::advance(COOLDOWN).await;
    for id in ["b", "c", "b", "c", "b", "c"] {
        assert_eq!(group.heartbeat(id).order, None);
    }
    assert!(group.heartbeat("b").order.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_group_without_heartbeats_is_sampled_every_thirty_seconds() {
    let mut group = Group::new(&[("a", Some(policy()))]);
    group.set_connections("a", 25);
    group.heartbeat("a");
    assert_eq!(group.evaluate(), []);
    time::advance(Duration::from_secs(29)).await;
    assert_eq!(group.evaluate(), []);
    time::advance(Duration::from_secs(1)).await;
    assert_eq!(group.evaluate(), []);
    assert_eq!(group.detail("scaling.state"), "2 samples for more instances");
    assert_eq!(group.evaluate(), [], "not twice in the same 30 s");
    time::advance(Duration::from_secs(30)).await;
    assert_eq!(group.evaluate().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn groups_without_a_policy_are_not_scaled_and_groups_without_instances_are_removed() {
    let mut group = Group::new(&[("a", None)]);
    group.set_connections("a", 1000);
    for _ in 0..5 {
        assert_eq!(group.heartbeat("a"), HeartbeatOutcome::default());
    }
    let key = group.key();
    group.registry.set_scaling(&key, policy()).unwrap();
    assert_eq!(group.order_after("a", 3).wanted, 4);
    let epoch = group.registry.snapshot().record("a").unwrap().epoch;
    group.registry.remove("a", epoch);
    time::advance(COOLDOWN).await;
    assert_eq!(group.evaluate(), []);
    assert!(group.scaling.lock().is_empty());
    let gone = group.scaling.gone(&group.registry.snapshot());
    assert_eq!(gone, [key].into());
    group.registry.forget_scaling(&gone);
    assert!(group.registry.snapshot().scaling.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_last_instance_is_asked_again_unless_it_failed() {
    let policy = Some(policy());
    let mut group = Group::new(&[("a", None), ("b", policy.clone()), ("c", policy)]);
    group.set_connections("a", 100);
    group.heartbeat("b");
    let order = group.order_after("a", 3);
    assert_eq!(order.instance_id, "b", "the first instance with a policy");
    group.scaling.conclude(&order, ScaleOutcome::Failed("unreachable".into()));
    assert_eq!(
        group.detail("scaling.last"),
        "b was asked for 4 instances in place of 3; not done: unreachable"
    );
    time::advance(COOLDOWN).await;
    let order = group.order_after("a", 3);
    assert_eq!(order.instance_id, "c");
    group.scaling.conclude(&order, ScaleOutcome::Accepted("started".into()));
    time::advance(COOLDOWN).await;
    let order = group.order_after("a", 3);
    assert_eq!(order.instance_id, "c");
    group.scaling.conclude(&order, ScaleOutcome::Failed("busy".into()));
    time::advance(COOLDOWN).await;
    assert_eq!(group.order_after("a", 3).instance_id, "b", "after the last instance the first one");
}

#[tokio::test(start_paused = true)]
async fn instances_that_leave_or_are_silent_do_not_count() {
    let mut group = Group::new(&[("a", Some(policy())), ("b", None), ("c", None)]);
    group.set_connections("a", 18);
    group.registry.begin_maintenance("b").unwrap();
    group.heartbeat("a");
    assert_eq!(group.detail("scaling.instances"), "2");
    time::advance(Duration::from_secs(40)).await;
    group.registry.expire_leases(Instant::now());
    // Only a heartbeat of a restores its lease; c sends none.
    let order = group.order_after("a", 3);
    assert_eq!((order.current, order.wanted), (1, 2));
}

#[tokio::test(start_paused = true)]
async fn cpu_and_memory_come_from_heartbeats() {
    let targets = TargetLoad { cpu_percent: Some(50), memory_percent: Some(50), connections: None };
    let group = Group::new(&[("a", Some(Policy { targets, ..policy() }))]);
    let report = |cpu_usage_percent, memory_usage_mb, total: Option<&str>| {
        let custom =
            total.map(|total| ("memory_total_mb".to_owned(), total.to_owned())).into_iter().collect();
        Some(Report { cpu_usage_percent, memory_usage_mb, custom, ..Report::default() })
    };
    for (report, state) in [
        (report(60.0, 0.0, None), "1 samples for more instances"),
        (report(10.0, 900.0, None), "steady"),
        (report(10.0, 900.0, Some("1000")), "1 samples for more instances"),
        (report(10.0, 900.0, Some("none")), "steady"),
        (report(10.0, 900.0, Some("0")), "steady"),
    ] {
        group.report("a", report);
        assert_eq!(group.detail("scaling.state"), state);
    }
}

#[tokio::test(start_paused = true)]
async fn size_requests_are_applied_within_the_bounds_and_begin_a_cooldown() {
    let mut group = Group::new(&[("a", Some(policy())), ("b", None)]);
    use Number::*;
    let wanted =
        |number| group.request_size(number).map(|decision| (decision.wanted, decision.order.is_some()));
    assert_eq!(wanted(Exactly(2)), Ok((2, false)), "the current number");
    assert_eq!(wanted(Same), Ok((2, false)));
    assert_eq!(wanted(Exactly(5)), Err(Unscalable::AboveMax { wanted: 5, max: 4 }));
    assert_eq!(wanted(Exactly(0)), Err(Unscalable::BelowMin { wanted: 0, min: 1 }));
    assert_eq!(wanted(Fewer(Some(0))), Err(Unscalable::BelowMin { wanted: 0, min: 1 }));
    assert_eq!(wanted(More(Some(2))), Err(Unscalable::NotMore { wanted: 2, current: 2 }));
    assert_eq!(wanted(Fewer(Some(2))), Err(Unscalable::NotFewer { wanted: 2, current: 2 }));
    assert_eq!(group.detail("scaling.orders"), "0", "refused requests leave no trace");
    assert_eq!(wanted(More(None)), Ok((3, true)));
    assert_eq!(
        wanted(Fewer(None)),
        Ok((2, true)),
        "one fewer than was requested, and during the cooldown, too"
    );
    assert_eq!(wanted(Exactly(4)), Ok((4, true)));
    assert_eq!(group.heartbeat("a").asked_for, Some(4));
    group.set_connections("a", 100);
    for _ in 0..5 {
        assert_eq!(group.heartbeat("a").order, None, "the cooldown of the last size request");
    }
    for id in ["a", "b"] {
        group.registry.begin_maintenance(id).unwrap();
    }
    assert_eq!(group.request_size(More(None)), Err(Unscalable::Empty));
}

#[tokio::test(start_paused = true)]
async fn a_size_request_may_name_an_instance_and_set_bounds() {
    let group = Group::new(&[("a", Some(policy())), ("b", None)]);
    let request_size = SizeRequest {
        number: Number::Exactly(6),
        policy: Some(Policy { max: 6, ..policy() }),
        instance_id: Some("b".into()),
    };
    let state: Arc<State> = group.registry.snapshot();
    let order = group
        .scaling
        .request_size(&group.key(), &request_size, &state, Instant::now())
        .unwrap()
        .order
        .unwrap();
    assert_eq!((order.instance_id.as_str(), order.policy.max), ("b", 6));
    assert_eq!(group.detail("scaling.bounds"), "1 to 4", "not before the size request succeeds");
    group.registry.set_scaling(&group.key(), order.policy.clone()).unwrap();
    assert_eq!(group.detail("scaling.bounds"), "1 to 6");
}

#[tokio::test(start_paused = true)]
async fn a_pending_request_is_the_start_of_steps_and_is_replaced() {
    let mut group = Group::new(&[("a", Some(policy()))]);
    use Number::*;
    let wanted = |group: &Group, number| {
        group.request_size(number).map(|decision| (decision.wanted, decision.order.is_some()))
    };
    let pending = |group: &Group| group.detail("scaling.pending");
    assert_eq!(wanted(&group, More(None)), Ok((2, true)));
    assert_eq!(wanted(&group, More(None)), Ok((3, true)));
    assert_eq!(pending(&group), "3 instances requested of a");
    assert_eq!(wanted(&group, More(Some(3))), Err(Unscalable::NotMore { wanted: 3, current: 3 }));
    assert_eq!(wanted(&group, Same), Ok((1, false)), "a config alone requests no size");
    assert_eq!(pending(&group), "3 instances requested of a");
    assert_eq!(wanted(&group, Fewer(Some(2))), Ok((2, true)));
    assert_eq!(wanted(&group, Exactly(1)), Ok((1, true)), "cancelled");
    assert_eq!(pending(&group), "");
    assert_eq!(wanted(&group, Exactly(1)), Ok((1, false)), "nothing is left to cancel");

    // A number that was reached is no longer pending.
    assert_eq!(wanted(&group, Exactly(2)), Ok((2, true)));
    let registered = group.registry.admit(registration("b"), Now::read()).unwrap();
    group.ids.push(("b", registered.registration_id.reveal().to_owned()));
    group.evaluate();
    let epoch = group.registry.snapshot().record("b").unwrap().epoch;
    group.registry.remove("b", epoch);
    assert_eq!((pending(&group), wanted(&group, Exactly(1))), (String::new(), Ok((1, false))));
}

#[tokio::test(start_paused = true)]
async fn a_failed_request_is_not_pending_and_an_unknown_one_is() {
    let group = Group::new(&[("a", Some(policy())), ("b", None)]);
    let order = |number| group.request_size(number).unwrap().order.unwrap();
    let first = order(Number::Exactly(3));
    group.scaling.conclude(&first, ScaleOutcome::Unknown("slow".into()));
    assert_eq!(group.detail("scaling.pending"), "3 instances requested of a");
    let second = order(Number::Exactly(2));
    assert_eq!(second.instance_id, "a", "the instance that may have followed the first request");
    group.scaling.conclude(&second, ScaleOutcome::Failed("busy".into()));
    assert_eq!(group.detail("scaling.pending"), "3 instances requested of a", "the first is pending again");
    let epoch = group.registry.snapshot().record("a").unwrap().epoch;
    group.registry.remove("a", epoch);
    assert_eq!(group.detail("scaling.pending"), "", "who was asked has left");
}
