//! Scaling as modules and operators see it: Scale requests, answers to heartbeats, and refusals.

use std::collections::HashMap;
use std::time::Duration;

use nlb_proto::*;
use prost::Message as _;
use tonic::{Code, Status};

use super::fake_module::{Fake, FakeHandle};
use super::fleet::{registration, registration_at, with_metadata};
use super::nlb::Nlb;

const SCALES: Fake = Fake::Answers(|call| match call {
    "Scale" => {
        let message = "started".to_owned();
        Ok(ScaleResponse { success: true, message, ..Default::default() }.encode_to_vec())
    }
    call => Err(Status::unimplemented(call)),
});

/// A fault in a config, and the field that the refusal must name.
type Case = (fn(&mut ScalingConfig), &'static str);

/// Up to four instances, of five connections each.
fn config() -> ScalingConfig {
    ScalingConfig {
        max_instances: 4,
        target_connections: 5,
        cooldown_seconds: 60,
        auto_scaling_enabled: true,
        ..Default::default()
    }
}

fn by_instance(instance_id: &str, scaling_action: &str, target_instances: i32) -> TriggerScalingRequest {
    TriggerScalingRequest {
        instance_id: instance_id.into(),
        scaling_action: scaling_action.into(),
        target_instances,
        ..Default::default()
    }
}

impl Nlb {
    async fn trigger(&mut self, request: TriggerScalingRequest) -> TriggerScalingResponse {
        self.modules.trigger_scaling(request).await.expect("well formed").into_inner()
    }

    async fn details(&mut self, instance_id: &str) -> HashMap<String, String> {
        let request = GetModuleInfoRequest { instance_id: instance_id.into() };
        self.modules.get_module_info(request).await.unwrap().into_inner().details
    }

    async fn beat(&mut self, instance_id: &str, registration_id: &str) -> HeartbeatResponse {
        let (instance_id, registration_id) = (instance_id.into(), registration_id.into());
        let request = HeartbeatRequest { instance_id, registration_id, ..Default::default() };
        self.modules.heartbeat(request).await.unwrap().into_inner()
    }

    /// Waits until a Scale request has its outcome.
    async fn last_scaling(&mut self, instance_id: &str) -> String {
        for _ in 0..500 {
            let last = self.details(instance_id).await.remove("scaling.last").unwrap_or_default();
            if last.contains("done: ") {
                return last;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the Scale request has no outcome: {:?}", self.details(instance_id).await)
    }
}

fn scaled(module: &FakeHandle) -> Vec<String> {
    module.calls().into_iter().filter(|call| call == "Scale").collect()
}

/// Registers as the existing fake with this metadata; returns the registration_id.
async fn with_policy(nlb: &mut Nlb, instance_id: &str, entries: &[(&str, &str)]) -> String {
    let instance = with_metadata(nlb.listed(instance_id).await.unwrap(), entries);
    nlb.add(RegisterModuleRequest { instance: Some(instance), ..registration(instance_id) }).await
}

#[tokio::test]
async fn a_breach_makes_one_call_and_one_notice_in_a_heartbeat() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let policy = [
        ("scaling.max_instances", "4"),
        ("scaling.target_connections", "5"),
        ("scaling.cooldown_seconds", "3600"),
    ];
    let id = with_policy(&mut nlb, "a", &policy).await;
    nlb.count_flows("a", &[12]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..3 {
        assert!(!nlb.beat("a", &id).await.should_scale);
    }
    let answer = nlb.beat("a", &id).await;
    assert!(answer.should_scale);
    assert_eq!(answer.instructions["scale_to"], "3");
    let last = nlb.last_scaling("a").await;
    assert_eq!(last, "a was asked for 3 instances in place of 1; done: started");
    for _ in 0..10 {
        let answer = nlb.beat("a", &id).await;
        assert!(!answer.should_scale && !answer.instructions.contains_key("scale_to"));
    }
    assert_eq!(scaled(&module).len(), 1, "one call in a cooldown");
    let request: ScaleRequest = module.last("Scale").unwrap();
    let asked = request.config.unwrap();
    assert_eq!((asked.min_instances, asked.max_instances, asked.target_connections), (3, 3, 5));
    assert!(!request.immediate);
    let details = nlb.details("a").await;
    assert_eq!((details["scaling.bounds"].as_str(), details["scaling.orders"].as_str()), ("1 to 4", "1"));
    assert!(details["scaling.state"].starts_with("cooling"), "{details:?}");
}

#[tokio::test]
async fn an_operator_scales_by_hand() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let other = nlb.add_fake("b", 2, "v1", SCALES).await;
    let answer = nlb.trigger(by_instance("a", "scale_up", 0)).await;
    assert!(answer.success, "{}", answer.message);
    assert_eq!((answer.current_instances, answer.target_instances), (2, 3));
    assert_eq!(
        (answer.scaling_action.as_str(), answer.message.as_str()),
        ("scale_up", "a scales to 3 instances: started")
    );
    let request: ScaleRequest = module.last("Scale").unwrap();
    assert!(request.immediate && request.instance_id == "a");

    let by_type = |scaling_action: &str, target_instances| TriggerScalingRequest {
        module_type: ModuleType::Alb.into(),
        ..by_instance("", scaling_action, target_instances)
    };
    assert_eq!(nlb.trigger(by_type("scale_down", 1)).await.target_instances, 1);
    assert_eq!(nlb.trigger(by_type("set", 5)).await.target_instances, 5);
    assert_eq!(scaled(&module).len(), 3, "the last instance is asked again");
    let cancelled = nlb.trigger(by_type("set", 2)).await;
    assert_eq!(
        (cancelled.success, cancelled.message.as_str()),
        (true, "a scales to 2 instances, in place of 5 instances requested of a before: started")
    );
    assert_eq!((cancelled.current_instances, cancelled.target_instances), (2, 2));
    let request: ScaleRequest = module.last("Scale").unwrap();
    assert_eq!(request.config.unwrap().max_instances, 2);
    let same = nlb.trigger(by_type("set", 2)).await;
    assert!(same.success && same.message.contains("as there are"), "{}", same.message);
    assert_eq!((scaled(&module).len(), scaled(&other).len()), (4, 0));
}

#[tokio::test]
async fn a_pending_request_is_shown_until_it_is_reached_or_cancelled() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", SCALES).await;
    let shown = async |nlb: &mut Nlb| {
        let request = GetNlbStatusRequest::default();
        let status = nlb.modules.get_nlb_status(request).await.unwrap().into_inner();
        let own = nlb.front.get_status(GetStatusRequest::default()).await.unwrap().into_inner();
        let pending = "pending_scaling";
        assert_eq!(own.details.get(pending), status.details.get(pending));
        let of_module = nlb.details("a").await.remove("scaling.pending");
        (status.details.get(pending).cloned(), of_module)
    };
    assert!(nlb.trigger(by_instance("a", "set", 3)).await.success);
    let text = |text: &str| Some(text.to_owned());
    let requested = text("3 instances requested of a");
    assert_eq!(
        shown(&mut nlb).await,
        (text("ALB v1: 3 instances requested of a, 1 registered"), requested.clone())
    );
    nlb.add_fake("b", 2, "v1", SCALES).await;
    assert_eq!(shown(&mut nlb).await, (text("ALB v1: 3 instances requested of a, 2 registered"), requested));
    nlb.add_fake("c", 3, "v1", SCALES).await;
    assert_eq!(shown(&mut nlb).await, (None, None));
    assert!(nlb.trigger(by_instance("a", "set", 5)).await.success);
    assert!(nlb.trigger(by_instance("a", "set", 3)).await.success);
    assert_eq!(shown(&mut nlb).await, (None, None));
}

#[tokio::test]
async fn an_empty_message_of_the_module_is_left_out() {
    let mut nlb = Nlb::start().await;
    nlb.add_fake("a", 1, "v1", Fake::CONFIRMS).await;
    let answer = nlb.trigger(by_instance("a", "up", 0)).await;
    assert_eq!((answer.success, answer.message.as_str()), (true, "a scales to 2 instances"));
}

#[tokio::test]
async fn a_config_by_hand_takes_the_place_of_the_modules_own() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let id = with_policy(&mut nlb, "a", &[("scaling.max_instances", "2")]).await;
    let request = TriggerScalingRequest { config: Some(config()), ..by_instance("a", "", 0) };
    let answer = nlb.trigger(request).await;
    assert!(answer.success && answer.message.contains("in force"), "{}", answer.message);
    assert_eq!(scaled(&module).len(), 0);
    assert_eq!(nlb.details("a").await["scaling.bounds"], "1 to 4");
    nlb.count_flows("a", &[1000]);
    tokio::time::sleep(Duration::from_millis(100)).await;
    for _ in 0..4 {
        nlb.beat("a", &id).await;
    }
    assert!(nlb.last_scaling("a").await.starts_with("a was asked for 4 instances"));
}

#[tokio::test]
async fn sizes_out_of_bounds_are_refused_and_change_nothing() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let refusal = async |nlb: &mut Nlb, request| {
        let answer = nlb.trigger(request).await;
        assert!(!answer.success);
        let error = answer.error.unwrap();
        assert_eq!(answer.message, error.message);
        (error.code(), error.message)
    };
    for (action, target, word) in [
        ("scale_up", 11, "max_instances"),
        ("up", 11, "max_instances"),
        ("down", 0, "min_instances"),
        ("set", 11, "max_instances"),
        ("scale_down", 0, "min_instances"),
        ("scale_up", 1, "not more"),
        ("scale_down", 1, "not fewer"),
    ] {
        let (code, message) = refusal(&mut nlb, by_instance("a", action, target)).await;
        let expected = StatusCode::InvalidArgument;
        assert!(code == expected && message.contains(word), "{action} {target}: {message}");
    }
    let with_config = TriggerScalingRequest { config: Some(config()), ..by_instance("a", "set", 5) };
    assert!(refusal(&mut nlb, with_config).await.1.contains("max_instances, which is 4"));
    assert_eq!(refusal(&mut nlb, by_instance("ghost", "scale_up", 0)).await.0, StatusCode::NotFound);
    let of_type = |module_type: ModuleType| TriggerScalingRequest {
        module_type: module_type.into(),
        ..by_instance("", "scale_up", 0)
    };
    let (code, message) = refusal(&mut nlb, of_type(ModuleType::Rtmp)).await;
    assert!(code == StatusCode::NotFound && message.contains("start one first"), "{message}");
    assert!(module.calls().is_empty());
    assert_eq!(nlb.details("a").await["scaling.bounds"], "1 to 10");
    assert_eq!(nlb.details("a").await["scaling.orders"], "0");

    nlb.add(registration_at("b", 2, "v2")).await;
    let status = nlb.modules.trigger_scaling(of_type(ModuleType::Alb)).await.unwrap_err();
    assert!(status.message().starts_with("module_type: has 2 versions"), "{}", status.message());
}

#[tokio::test]
async fn a_module_that_does_not_scale_is_reported() {
    for (fake, code, word) in [
        (Fake::REFUSES, StatusCode::Error, "busy"),
        (Fake::UNIMPLEMENTED, StatusCode::Error, "unimplemented"),
        (Fake::GARBLED, StatusCode::Error, "undecodable"),
        (Fake::Unreachable, StatusCode::Unavailable, "unreachable"),
        (Fake::Silent, StatusCode::Unavailable, "slow"),
    ] {
        let mut nlb = Nlb::start().await;
        nlb.add_fake("a", 1, "v1", fake).await;
        let request = TriggerScalingRequest { config: Some(config()), ..by_instance("a", "scale_up", 0) };
        let answer = nlb.trigger(request).await;
        let error = answer.error.unwrap();
        assert!(!answer.success && error.code() == code, "{error:?}");
        assert!(error.details["a"].contains(word), "{error:?}");
        let details = nlb.details("a").await;
        assert!(
            details["scaling.last"].contains(&format!("not done: {}", error.details["a"])),
            "{details:?}"
        );
        assert_eq!(details["scaling.bounds"], "1 to 10", "the config was not set either");
    }
}

#[tokio::test]
async fn actions_have_the_names_that_others_give_them() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    nlb.add_fake("b", 2, "v1", SCALES).await;
    for (action, wanted) in [("scale-up", 3), ("scale_up", 4), ("scale-down", 3), ("scale_down", 2)] {
        let answer = nlb.trigger(by_instance("a", action, 0)).await;
        assert!(answer.success, "{}", answer.message);
        assert_eq!((answer.scaling_action.as_str(), answer.target_instances), (action, wanted));
    }
    assert_eq!(module.calls().iter().filter(|call| *call == "Scale").count(), 4);
}

/// `auto` has the load decide from then on, by the policy that the group has or that is given.
#[tokio::test]
async fn auto_turns_automatic_scaling_on() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let config = ScalingConfig { auto_scaling_enabled: false, max_instances: 7, ..config() };
    assert!(
        nlb.trigger(TriggerScalingRequest { config: Some(config), ..by_instance("a", "", 0) }).await.success
    );
    assert_eq!(nlb.details("a").await["scaling.state"], "manual only");
    let answer = nlb.trigger(by_instance("a", "auto", 0)).await;
    assert!(answer.success && answer.current_instances == answer.target_instances, "{answer:?}");
    let details = nlb.details("a").await;
    assert_eq!((details["scaling.state"].as_str(), details["scaling.bounds"].as_str()), ("steady", "1 to 7"));
    assert!(!module.calls().contains(&"Scale".to_owned()));
}

#[tokio::test]
async fn malformed_triggers_are_refused_by_their_field() {
    let mut nlb = Nlb::start().await;
    let module = nlb.add_fake("a", 1, "v1", SCALES).await;
    let up = || by_instance("a", "scale_up", 0);
    let configured = |config| TriggerScalingRequest { config: Some(config), ..up() };
    let mut cases = vec![
        (TriggerScalingRequest::default(), "scaling_action"),
        (by_instance("", "scale_up", 0), "instance_id"),
        (by_instance("a b", "scale_up", 0), "instance_id"),
        (by_instance("a\0", "scale_up", 0), "instance_id"),
        (by_instance(&"x".repeat(129), "scale_up", 0), "instance_id"),
        (TriggerScalingRequest { module_type: 99, ..up() }, "module_type"),
        (TriggerScalingRequest { module_type: -1, ..up() }, "module_type"),
        (TriggerScalingRequest { module_type: ModuleType::Rtmp.into(), ..up() }, "module_type"),
        (by_instance("a", "explode", 0), "scaling_action"),
        (by_instance("a", "scale_up\0", 0), "scaling_action"),
        (by_instance("a", "auto", 3), "target_instances"),
        (by_instance("a", &"x".repeat(1 << 16), 0), "scaling_action"),
        (by_instance("a", "", 0), "scaling_action"),
        (by_instance("a", "set", 0), "target_instances"),
        (by_instance("a", "set", -1), "target_instances"),
        (by_instance("a", "scale_up", i32::MIN), "target_instances"),
    ];
    let spoilt: [Case; 12] = [
        (|config| config.min_instances = -1, "config.min_instances"),
        (|config| config.min_instances = 5, "config.min_instances"),
        (|config| config.max_instances = -1, "config.max_instances"),
        (|config| config.target_cpu_percent = 101, "config.target_cpu_percent"),
        (|config| config.target_memory_percent = -1, "config.target_memory_percent"),
        (|config| config.target_connections = -1, "config.target_connections"),
        (|config| config.scale_up_threshold = -1, "config.scale_up_threshold"),
        (|config| config.scale_down_threshold = -1, "config.scale_down_threshold"),
        (|config| config.scale_down_threshold = 100, "config.scale_down_threshold"),
        (
            |config| (config.scale_up_threshold, config.scale_down_threshold) = (50, 60),
            "config.scale_down_threshold",
        ),
        (|config| config.cooldown_seconds = -1, "config.cooldown_seconds"),
        (|config| config.cooldown_seconds = i32::MAX, "config.cooldown_seconds"),
    ];
    for (spoil, field) in spoilt {
        let mut config = config();
        spoil(&mut config);
        cases.push((configured(config), field));
    }
    for (request, field) in cases {
        let status = nlb.modules.trigger_scaling(request).await.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert_eq!(status.message().split(": ").next().unwrap().split(' ').next(), Some(field), "{status}");
        assert!(status.message().len() < 300, "{} bytes", status.message().len());
    }
    let unknown = nlb.modules.trigger_scaling(by_instance("a", "explode", 0)).await.unwrap_err();
    assert!(unknown.message().contains("scale_up, scale_down, set, auto"), "{}", unknown.message());
    assert!(module.calls().is_empty());
    assert!(!nlb.details("a").await.contains_key("scaling.orders"), "the group is not scaled yet");
}

#[tokio::test]
async fn malformed_scaling_metadata_is_refused_by_its_key() {
    let mut nlb = Nlb::start().await;
    for (key, value) in [
        ("scaling.max_instances", "many"),
        ("scaling.max_instances", "-1"),
        ("scaling.cooldown_seconds", "99999999"),
        ("scaling.target_cpu_percent", "101"),
        ("scaling.auto_scaling_enabled", "yes"),
        ("scaling.speed", "1"),
        ("scaling.", "1"),
    ] {
        let mut request = registration("a");
        let instance = request.instance.take().unwrap();
        request.instance = Some(with_metadata(instance, &[(key, value)]));
        let status = nlb.modules.register_module(request).await.unwrap_err();
        let field = format!("instance.metadata.{key}: ");
        assert!(status.message().starts_with(&field), "{key}={value}: {}", status.message());
    }
    assert_eq!(nlb.registry.desired().borrow().revision, 0, "nothing was changed");
}
