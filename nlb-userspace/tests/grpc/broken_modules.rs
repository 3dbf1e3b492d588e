//! Modules that refuse, are unreachable, never answer, answer undecodable bytes or do not implement a call:
//! each call of the front reports them per instance, and data path and modules agree afterwards.

use std::time::Duration;

use nlb::model::Deployment;
use nlb::registry::Deployments;
use nlb_proto::*;
use prost::Message as _;
use tokio::time::timeout;
use tonic::{Code, Status};

use super::fake_module::{Fake, FakeHandle};
use super::fleet::route;
use super::nlb::Nlb;

const BROKEN: [(&str, Fake, Code); 6] = [
    ("busy", Fake::REFUSES, Code::Aborted),
    ("unreachable", Fake::Unreachable, Code::Unavailable),
    ("unreachable: ", Fake::NotGrpc, Code::Unavailable),
    ("slow", Fake::Silent, Code::DeadlineExceeded),
    ("undecodable", Fake::GARBLED, Code::Internal),
    ("unimplemented", Fake::UNIMPLEMENTED, Code::Unimplemented),
];

/// Every case has an NLB of its own, and most cases wait.
async fn at_once<T, F>(cases: impl IntoIterator<Item = T>, check: impl Fn(T) -> F)
where
    F: Future<Output = ()> + Send + 'static,
{
    let mut checks = tokio::task::JoinSet::new();
    for case in cases {
        checks.spawn(check(case));
    }
    checks.join_all().await;
}

fn albs() -> Deployments {
    [Deployment::named("ALB")].into()
}

async fn with_module(fake: Fake) -> (Nlb, FakeHandle) {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", fake).await;
    (nlb, module)
}

fn revision(nlb: &Nlb) -> u64 {
    nlb.registry.desired().borrow().revision
}

/// The change that an RPC requests, for the module "a" of version v1.
#[derive(Clone, Copy, Debug)]
enum Change {
    Weight,
    Update,
    Delete,
    Promote,
    Rollback,
}

impl Change {
    const ALL: [Change; 5] =
        [Change::Weight, Change::Update, Change::Delete, Change::Promote, Change::Rollback];

    async fn make(self, nlb: &mut Nlb) -> (bool, String, Option<Error>) {
        macro_rules! answer {
            ($call:ident, $request:expr) => {{
                let answer = nlb.front.$call($request).await.expect("well formed").into_inner();
                (answer.success, answer.message, answer.error)
            }};
        }
        let instance_id = || "a".to_owned();
        match self {
            Change::Weight => answer!(
                set_traffic_weight,
                SetTrafficWeightRequest { instance_id: instance_id(), weight: 7, ..Default::default() }
            ),
            Change::Update => {
                let more = Route { destination_port: 81, ..route("more") };
                let request = UpdateRoutesRequest {
                    instance_id: instance_id(),
                    routes: vec![more],
                    ..Default::default()
                };
                answer!(update_routes, request)
            }
            Change::Delete => answer!(
                delete_route,
                DeleteRouteRequest { instance_id: instance_id(), route_id: "web".into() }
            ),
            Change::Promote => answer!(
                promote_version,
                PromoteVersionRequest { version: "v1".into(), immediate: true, ..Default::default() }
            ),
            Change::Rollback => {
                answer!(rollback, RollbackRequest { instance_id: instance_id(), ..Default::default() })
            }
        }
    }
}

/// Failures of participants whose consent is required. A module without ModuleService, or without this call,
/// has no state that could differ from the data path's.
const CONSENT_REQUIRED: [&str; 3] = ["busy", "slow", "undecodable"];

#[tokio::test]
async fn a_failure_leaves_the_data_path_unchanged_unless_no_module_is_reachable() {
    let cases = BROKEN.into_iter().flat_map(|broken| Change::ALL.map(|change| (broken, change)));
    at_once(cases, |((word, fake, _), change)| async move {
        let (mut nlb, _) = with_module(fake).await;
        if matches!(change, Change::Rollback) {
            // A former split to go back to, without a call to the module.
            let commit = nlb::registry::Commit::Apply;
            nlb.registry
                .set_version_weight(&albs(), "v1", 5, commit, nlb::model::clock::Now::read())
                .unwrap();
        }
        let before = revision(&nlb);
        let (success, message, error) = change.make(&mut nlb).await;
        assert!(message.contains(word) && message.contains("a: "), "{change:?}, {word}: {message}");
        if CONSENT_REQUIRED.contains(&word) {
            let error = error.expect("a reason");
            assert!(error.details["a"].contains(word), "{change:?}: {error:?}");
            assert!(!success && revision(&nlb) == before, "{change:?} was made in spite of the failure");
        } else {
            assert!(success && error.is_none() && revision(&nlb) > before, "{change:?}, {word}: {message}");
        }
    })
    .await;
}

#[tokio::test]
async fn a_module_that_is_gone_after_it_had_answered_is_not_passed_over() {
    at_once([Fake::CONFIRMS, Fake::REFUSES, Fake::UNIMPLEMENTED], |fake| async move {
        let (mut nlb, module) = with_module(fake).await;
        // The content of the answer does not matter.
        nlb.front.get_status(GetStatusRequest { instance_id: "a".into() }).await.unwrap();
        module.end().await;
        let before = revision(&nlb);
        for change in [Change::Weight, Change::Update, Change::Delete, Change::Promote] {
            let (success, message, error) = change.make(&mut nlb).await;
            let error = error.unwrap_or_else(|| panic!("{change:?}: {message}"));
            assert!(!success && error.details["a"].contains("unreachable"), "{change:?}: {error:?}");
            assert_eq!(revision(&nlb), before, "{change:?} was made in spite of the failure");
        }
    })
    .await;
}

#[tokio::test]
async fn new_flows_end_whatever_the_module_answers() {
    let cases = BROKEN.into_iter().flat_map(|broken| ["a", ""].map(|instance_id| (broken, instance_id)));
    at_once(cases, |((word, fake, _), instance_id)| async move {
        let (mut nlb, _) = with_module(fake).await;
        let request =
            SetTrafficWeightRequest { instance_id: instance_id.into(), version: "v1".into(), weight: 0 };
        let answer = nlb.front.set_traffic_weight(request).await.unwrap().into_inner();
        assert!(answer.success && answer.message.contains(word), "{word}: {}", answer.message);
        let module = answer.error.map(|error| error.details["a"].clone());
        assert_eq!(module.is_some(), CONSENT_REQUIRED.contains(&word), "{word}");
        assert!(module.is_none_or(|module| module.contains(word)));
        let desired = nlb.registry.desired().borrow().clone();
        match instance_id {
            "" => assert_eq!(desired.splits[&Deployment::named("ALB")]["v1"], 0, "{word}"),
            id => assert_eq!(desired.modules[id].weight, 0, "{word}"),
        }
    })
    .await;
}

#[tokio::test]
async fn the_version_that_is_fled_from_does_not_hold_up_the_way_back() {
    let mut nlb = Nlb::start().await;
    let old = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let new = nlb.add_fake("b", 2, "v2", Fake::CONFIRMS).await;
    let request = PromoteVersionRequest { version: "v2".into(), immediate: true, ..Default::default() };
    assert!(nlb.front.promote_version(request.clone()).await.unwrap().into_inner().success);
    new.end().await;
    let answer = nlb.front.rollback(RollbackRequest::default()).await.unwrap().into_inner();
    assert!(answer.success && answer.current_version == "v1", "{}", answer.message);
    assert!(answer.error.unwrap().details["b"].contains("unreachable"));

    // A rollback to a version without instances is refused.
    let answer = nlb.front.promote_version(request).await.unwrap().into_inner();
    assert!(!answer.success, "v2 has no instance");
    let commit = nlb::registry::Commit::Apply;
    nlb.registry.set_version_weight(&albs(), "v1", 0, commit, nlb::model::clock::Now::read()).unwrap();
    old.end().await;
    let before = revision(&nlb);
    let answer = nlb.front.rollback(RollbackRequest::default()).await.unwrap().into_inner();
    assert!(!answer.success && answer.error.unwrap().details.contains_key("a"), "{}", answer.message);
    assert_eq!(revision(&nlb), before);
}

#[tokio::test]
async fn participants_that_agreed_get_the_former_weight_again() {
    let mut nlb = Nlb::start().await;
    let agrees = nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let garbled = nlb.add_fake("b", 2, "v1", Fake::GARBLED).await;
    nlb.add_fake("c", 3, "v1", Fake::REFUSES).await;
    let call = SetTrafficWeightRequest { version: "v1".into(), weight: 7, ..Default::default() };
    let answer = nlb.front.set_traffic_weight(call.clone()).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert_eq!(error.details["c"], "busy");
    assert!(error.details["b"].contains("undecodable"), "it could not be called either: {:?}", error.details);
    assert!(!error.details.contains_key("a"));
    let back = SetTrafficWeightRequest { weight: 100, ..call };
    assert_eq!(agrees.last("SetTrafficWeight"), Some(back.clone()));
    assert_eq!(garbled.last("SetTrafficWeight"), Some(back));
    assert!(nlb.registry.desired().borrow().splits.is_empty());
}

#[tokio::test]
async fn calls_that_are_the_modules_own_fail_with_its_reason() {
    at_once(BROKEN, |(word, fake, code)| async move {
        let (mut nlb, _) = with_module(fake).await;
        let before = revision(&nlb);
        let instance_id = "a".to_owned();
        let expected = if matches!(code, Code::Unavailable | Code::DeadlineExceeded) {
            StatusCode::Unavailable
        } else {
            StatusCode::Error
        };
        let check = |call: &str, success: bool, error: Option<Error>| {
            let error = error.unwrap_or_else(|| panic!("{call}, {word}: a reason"));
            assert!(!success && error.details["a"].contains(word), "{call}, {word}: {error:?}");
            assert_eq!(error.code(), expected, "{call}, {word}");
        };
        let request =
            ReloadRequest { instance_id: instance_id.clone(), timeout_seconds: 1, ..Default::default() };
        let answer = nlb.front.reload(request).await.unwrap().into_inner();
        check("Reload", answer.success, answer.error);
        let request = ScaleRequest { instance_id: instance_id.clone(), ..Default::default() };
        let answer = nlb.front.scale(request).await.unwrap().into_inner();
        assert_eq!((answer.current_instances, answer.desired_instances), (1, 1));
        check("Scale", answer.success, answer.error);
        let config = Some(ConfigUpdate { config_type: "x".into(), ..Default::default() });
        let request = UpdateConfigRequest { instance_id: instance_id.clone(), config, validate_only: true };
        let answer = nlb.front.update_config(request).await.unwrap().into_inner();
        check("UpdateConfig", answer.success, answer.error);
        let request = ShutdownRequest { instance_id: instance_id.clone(), ..Default::default() };
        let answer = nlb.front.shutdown(request).await.unwrap().into_inner();
        check("Shutdown", answer.success, answer.error);

        let request = GetConfigRequest { instance_id: instance_id.clone(), ..Default::default() };
        let status = nlb.front.get_config(request).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(word), "{status}");
        let request = GetStatsRequest { instance_id: instance_id.clone(), reset_counters: true };
        let status = nlb.front.get_stats(request).await.unwrap_err();
        assert!(status.code() == code && status.message().contains(word), "{status}");
        assert_eq!(revision(&nlb), before);
    })
    .await;
}

#[tokio::test]
async fn questions_are_answered_with_what_is_known_and_what_is_not() {
    at_once(BROKEN, |(word, fake, _)| async move {
        let (mut nlb, _) = with_module(fake).await;
        let instance_id = "a".to_owned();
        let request = GetStatusRequest { instance_id: instance_id.clone() };
        let status = nlb.front.get_status(request).await.unwrap().into_inner();
        assert_eq!(status.instance.as_ref().unwrap().instance_id, "a");
        assert_eq!(status.status(), HealthStatus::Healthy, "by its lease");
        assert!(status.message.contains(word) && status.details["module"].contains(word), "{status:?}");

        let request = HealthCheckRequest { instance_id: instance_id.clone(), deep_check: true };
        let health = nlb.front.health_check(request).await.unwrap().into_inner();
        let expected = if word == "unimplemented" { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
        assert_eq!(health.status(), expected, "{word}");
        assert!(health.checks["module"].contains(word), "{health:?}");
        let shallow = HealthCheckRequest { instance_id: instance_id.clone(), deep_check: false };
        let health = nlb.front.health_check(shallow).await.unwrap().into_inner();
        assert_eq!((health.status(), health.checks["lease"].as_str()), (HealthStatus::Healthy, "current"));

        let request = GetStatsRequest { instance_id: instance_id.clone(), reset_counters: false };
        let stats = nlb.front.get_stats(request).await.unwrap().into_inner().stats.unwrap();
        assert!(stats.custom_stats["source"].contains(word), "{stats:?}");

        nlb.wait_for("nlb_instance_new_flows_total{instance_id=a}", 0.0).await;
        let request = GetMetricsRequest { instance_id, ..Default::default() };
        let metrics = nlb.front.get_metrics(request).await.unwrap().into_inner().metrics.unwrap();
        let answered =
            metrics.metrics.iter().find(|point| point.name == "nlb_instance_answered_ratio").unwrap();
        assert!(answered.value == 0.0 && answered.labels["outcome"].contains(word), "{answered:?}");
        assert!(metrics.metrics.iter().any(|point| point.name == "nlb_instance_new_flows_total"));
    })
    .await;
}

#[tokio::test]
async fn can_handle_takes_the_best_answer_and_names_the_others() {
    let mut nlb = Nlb::start().await;
    let able =
        |priority| CanHandleResponse { can_handle: true, priority, ..Default::default() }.encode_to_vec();
    assert_eq!(able(7)[..2], [0x08, 0x01]);
    nlb.add_fake("a", 1, "v1", Fake::UNIMPLEMENTED).await;
    let request = || CanHandleRequest { route: Some(route("")), ..Default::default() };
    let answer = nlb.front.can_handle(request()).await.unwrap().into_inner();
    assert!(answer.can_handle && answer.priority == 0 && answer.reason.starts_with("a: "), "{answer:?}");

    nlb.add_fake("b", 2, "v1", Fake::Answers(|_| Ok(vec![0x08, 0x01, 0x10, 7]))).await;
    nlb.add_fake("c", 3, "v1", Fake::Answers(|_| Ok(Vec::new()))).await;
    nlb.add_fake("d", 4, "v1", Fake::GARBLED).await;
    nlb.add_fake("e", 5, "v1", Fake::Silent).await;
    nlb.add_fake("f", 6, "v1", Fake::Unreachable).await;
    nlb.add_fake("g", 7, "v1", Fake::Answers(|_| Err(Status::internal("oops")))).await;
    let answer = nlb.front.can_handle(request()).await.unwrap().into_inner();
    assert!(answer.can_handle && answer.priority == 7 && answer.reason.starts_with("b: "), "{answer:?}");
    for (id, word) in
        [("c", "cannot"), ("d", "undecodable"), ("e", "slow"), ("f", "unreachable"), ("g", "oops")]
    {
        assert!(answer.metadata[id].contains(word), "{id}: {:?}", answer.metadata);
    }
}

#[tokio::test]
async fn one_call_for_the_whole_fleet_names_those_that_failed() {
    let mut nlb = Nlb::start().await;
    for (n, (_, fake, _)) in BROKEN.into_iter().enumerate() {
        nlb.add_fake(&format!("m{n}"), n as u8 + 1, "v1", fake).await;
    }
    let module = nlb.add_fake("well", 7, "v1", Fake::CONFIRMS).await;
    let request = ReloadRequest { timeout_seconds: 1, ..Default::default() };
    let answer = nlb.front.reload(request).await.unwrap().into_inner();
    let error = answer.error.unwrap();
    assert!(error.message.starts_with("not done by 6 of 7 instances"), "{}", error.message);
    for (n, (word, ..)) in BROKEN.into_iter().enumerate() {
        assert!(error.details[&format!("m{n}")].contains(word), "{error:?}");
    }
    assert_eq!(module.last::<ReloadRequest>("Reload").unwrap().instance_id, "well");

    let request = HealthCheckRequest { deep_check: true, ..Default::default() };
    let health = nlb.front.health_check(request).await.unwrap().into_inner();
    for (n, (word, ..)) in BROKEN.into_iter().enumerate() {
        assert!(health.checks[&format!("module.m{n}")].contains(word), "{health:?}");
    }
    let request = CheckHealthRequest { deep_check: true, check_modules: true };
    let all = nlb.modules.check_health(request).await.unwrap().into_inner();
    assert_eq!((all.status(), &all.checks["modules"]), (health.status(), &health.checks["modules"]));
    for (n, (word, ..)) in BROKEN.into_iter().enumerate() {
        let id = format!("m{n}");
        assert!(all.checks[&format!("module.{id}")].contains(word), "{all:?}");
        let healthy = all.module_health[&id] == i32::from(HealthStatus::Healthy);
        assert_eq!(healthy, word.contains("unimplemented"), "{id} {word}: {all:?}");
    }
    let shallow = CheckHealthRequest { deep_check: false, check_modules: true };
    let shallow = nlb.modules.check_health(shallow).await.unwrap().into_inner();
    assert_eq!(shallow.checks["modules"], "7 of 7 are healthy", "nobody is asked");
}

#[tokio::test]
async fn a_module_that_does_not_shut_down_gets_its_flows_back() {
    at_once(BROKEN, |(_, fake, _)| async move {
        let (mut nlb, _) = with_module(fake).await;
        nlb.count_flows("a", &[0]);
        let request = ShutdownRequest { instance_id: "a".into(), graceful: true, timeout_seconds: 1 };
        let answer = nlb.front.shutdown(request).await.unwrap().into_inner();
        assert!(!answer.success && answer.error.unwrap().details.contains_key("a"));
        assert_eq!(nlb.listed("a").await.unwrap().health_status(), HealthStatus::Healthy);
    })
    .await;
}

#[tokio::test]
async fn a_change_goes_on_when_the_caller_hangs_up() {
    let (mut nlb, module) = with_module(Fake::Silent).await;
    let request = SetTrafficWeightRequest { instance_id: "a".into(), weight: 0, ..Default::default() };
    let mut front = nlb.front.clone();
    let call = tokio::spawn(async move { front.set_traffic_weight(request).await });
    while module.calls().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    call.abort();
    let changed = async {
        while nlb.listed("a").await.unwrap().traffic_weight != 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), changed).await.expect("the module was called, so the weight is set");
}

#[tokio::test]
async fn a_connection_is_kept_while_the_module_is_there() {
    let (mut nlb, module) = with_module(Fake::CONFIRMS).await;
    for _ in 0..5 {
        nlb.front.get_status(GetStatusRequest { instance_id: "a".into() }).await.unwrap();
    }
    assert_eq!(module.calls().len(), 5);
    assert_eq!(*module.open.borrow(), (1, 1), "one connection for all calls");
    let epoch = nlb.registry.snapshot().record("a").unwrap().epoch;
    nlb.registry.remove("a", epoch);
    let mut open = module.open.subscribe();
    let closed = timeout(Duration::from_secs(20), open.wait_for(|(_, open)| *open == 0)).await;
    closed.expect("the connection goes with the module").unwrap();
}
