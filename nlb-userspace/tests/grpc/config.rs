//! UpdateNLBConfig and GetNLBConfig: which settings change at once, which after a restart, and which are
//! refused.

use std::path::Path;

use nlb::config::{Configuration, Options};
use nlb_proto::*;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tonic::Code;

use super::fleet::{registration, route};
use super::nlb::Nlb;
use super::settings::StateDir;

fn options(state_dir: &Path) -> Options {
    Options {
        iface: Some(vec!["eth0".into()]),
        vip: Some(vec!["192.0.2.1".parse().unwrap()]),
        max_routes: Some(3),
        state_dir: Some(state_dir.to_owned()),
        ..Options::default()
    }
}

pub async fn start(state_dir: &StateDir) -> Nlb {
    let (config, configuration) = Configuration::start(options(state_dir.path())).expect("sound options");
    Nlb::configured(config.registry, configuration, state_dir.path()).await
}

fn checked(config_data: Vec<u8>) -> ConfigUpdate {
    let checksum = Sha256::digest(&config_data).iter().map(|byte| format!("{byte:02x}")).collect();
    ConfigUpdate { config_type: "nlb".into(), config_data, checksum, ..ConfigUpdate::default() }
}

fn update(settings: Value) -> UpdateNlbConfigRequest {
    let config = Some(checked(settings.to_string().into_bytes()));
    UpdateNlbConfigRequest { config, validate_only: false, restart_required: false }
}

async fn current(nlb: &mut Nlb) -> (ConfigUpdate, Value) {
    let answer = nlb.modules.get_nlb_config(GetNlbConfigRequest::default()).await.unwrap().into_inner();
    let [config] = <[_; 1]>::try_from(answer.configs).expect("one type of configuration");
    assert_eq!(config.updated_at, answer.last_updated);
    let settings = serde_json::from_slice(&config.config_data).expect("JSON");
    (config, settings)
}

#[tokio::test]
async fn a_setting_takes_effect_at_once_and_is_kept_for_the_next_start() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let (before, settings) = current(&mut nlb).await;
    assert_eq!((before.config_id.as_str(), &settings["fail_open"]), ("nlb-0", &json!(true)));
    assert_eq!(settings["heartbeat_interval"], json!("10s"));

    let request = update(
        json!({ "fail_open": false, "heartbeat_interval": "2s", "drop_closed_ports": true, "learn_routes": true }),
    );
    let answer = nlb.modules.update_nlb_config(request).await.unwrap().into_inner();
    assert!(answer.success && answer.validation_passed && !answer.requires_restart, "{answer:?}");
    assert!(!nlb.registry.desired().borrow().fail_open);
    assert!(nlb.registry.desired().borrow().drop_closed_ports);
    assert!(nlb.registry.desired().borrow().learn_routes);
    assert_eq!(nlb.registry.settings().lease.interval.as_secs(), 2);

    let (after, settings) = current(&mut nlb).await;
    assert_eq!((after.config_id.as_str(), &settings["fail_open"]), ("nlb-1", &json!(false)));
    assert_eq!(after.checksum, checked(after.config_data.clone()).checksum);

    drop(nlb);
    let mut again = start(&state_dir).await;
    let (kept, settings) = current(&mut again).await;
    assert_eq!((kept.config_id.as_str(), &settings["fail_open"]), ("nlb-1", &json!(false)));
    assert!(!again.registry.settings().fail_open);
}

#[tokio::test]
async fn settings_that_need_a_restart_are_reported_and_need_restart_required() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let request = update(json!({ "max_pools": 2048, "reject": true }));
    let answer = nlb.modules.update_nlb_config(request.clone()).await.unwrap().into_inner();
    assert!(!answer.success && answer.requires_restart, "{answer:?}");
    assert!(answer.message.contains("max_pools would wait") && answer.message.contains("restart_required"));
    assert!(!nlb.registry.settings().reject, "no setting was changed");
    let asking = UpdateNlbConfigRequest { validate_only: true, ..request.clone() };
    let answer = nlb.modules.update_nlb_config(asking).await.unwrap().into_inner();
    assert!(answer.success && answer.validation_passed && answer.requires_restart, "{answer:?}");
    assert!(
        !nlb.registry.settings().reject && !state_dir.path().join("config.json").exists(),
        "no setting was changed"
    );

    let knowing = UpdateNlbConfigRequest { restart_required: true, ..request };
    let answer = nlb.modules.update_nlb_config(knowing).await.unwrap().into_inner();
    assert!(answer.success && answer.requires_restart, "{answer:?}");
    assert!(nlb.registry.settings().reject, "the live setting is applied");
    let (config, settings) = current(&mut nlb).await;
    assert_eq!(
        (&config.metadata["waiting_for_restart"], &settings["max_pools"]),
        (&"max_pools".into(), &json!(2048))
    );

    drop(nlb);
    let mut again = start(&state_dir).await;
    let (config, settings) = current(&mut again).await;
    assert_eq!((config.metadata["waiting_for_restart"].as_str(), &settings["max_pools"]), ("", &json!(2048)));
}

#[tokio::test]
async fn a_flag_wins_at_the_next_start_and_the_answer_reports_it() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let answer =
        nlb.modules.update_nlb_config(update(json!({ "max_routes": 5 }))).await.unwrap().into_inner();
    assert!(answer.success && answer.message.contains("max_routes is given by flag"), "{answer:?}");
    assert_eq!(nlb.registry.settings().max_routes, 5);
    drop(nlb);
    assert_eq!(start(&state_dir).await.registry.settings().max_routes, 3);
}

#[tokio::test]
async fn validate_only_changes_nothing() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let request = UpdateNlbConfigRequest { validate_only: true, ..update(json!({ "fail_open": false })) };
    let answer = nlb.modules.update_nlb_config(request).await.unwrap().into_inner();
    assert!(answer.success && answer.validation_passed, "{answer:?}");
    assert!(nlb.registry.settings().fail_open && !state_dir.path().exists());
    assert_eq!(current(&mut nlb).await.0.config_id, "nlb-0");
}

#[tokio::test]
async fn a_configuration_that_does_not_fit_is_refused_as_a_whole() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let initial_routes = vec![route("web"), Route { destination_port: 81, ..route("other") }];
    nlb.add(RegisterModuleRequest { initial_routes, ..registration("alb-1") }).await;
    for (settings, reason) in [
        (json!({ "fail_opne": false }), "unknown field `fail_opne`"),
        (json!({ "fail_open": "perhaps" }), "expected a boolean"),
        (json!({ "heartbeat_interval": "soon" }), "not a length of time"),
        (json!({ "missed_heartbeats": 0 }), "--missed-heartbeats must be at least 1"),
        (json!({ "max_routes": 1 }), "the limit is 1"),
        (json!({ "vip": ["192.0.2.7"] }), "192.0.2.1 is not among the configured VIPs"),
        (json!({ "state_dir": "/tmp" }), "unknown field `state_dir`"),
        (json!(["fail_open"]), "invalid type: sequence"),
        (json!({ "fail_open": false, "max_modules": -1 }), "invalid value: integer `-1`"),
    ] {
        let answer = nlb.modules.update_nlb_config(update(settings)).await.unwrap().into_inner();
        assert!(!answer.success && !answer.validation_passed, "{answer:?}");
        assert!(answer.validation_errors[0].contains(reason), "{reason}: {answer:?}");
        assert_eq!(answer.error.expect("an error").code(), StatusCode::InvalidArgument);
    }
    assert!(nlb.registry.settings().fail_open && !state_dir.path().exists());
}

#[tokio::test]
async fn malformed_updates_get_a_status_that_names_the_field() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let sound = checked(b"{}".to_vec());
    for (config, field) in [
        (None, "config:"),
        (Some(ConfigUpdate { config_type: "alb".into(), ..sound.clone() }), "config.config_type:"),
        (Some(ConfigUpdate { checksum: String::new(), ..sound.clone() }), "config.checksum:"),
        (Some(ConfigUpdate { checksum: "0".repeat(64), ..sound.clone() }), "config.checksum:"),
        (Some(checked(vec![b' '; 70_000])), "config.config_data:"),
        (Some(ConfigUpdate { config_id: "nlb\0".into(), ..sound.clone() }), "config.config_id:"),
    ] {
        let request = UpdateNlbConfigRequest { config, ..UpdateNlbConfigRequest::default() };
        let status = nlb.modules.update_nlb_config(request).await.expect_err(field);
        assert_eq!(status.code(), Code::InvalidArgument);
        assert!(status.message().starts_with(field), "{field} {status:?}");
    }
    let unknown = GetNlbConfigRequest { config_type: "alb".into() };
    assert_eq!(nlb.modules.get_nlb_config(unknown).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn an_update_of_an_older_configuration_is_refused() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let (read, _) = current(&mut nlb).await;
    let mut request = update(json!({ "reject": true }));
    request.config.as_mut().unwrap().config_id = read.config_id;
    let first = nlb.modules.update_nlb_config(request.clone()).await.unwrap().into_inner();
    assert!(first.success, "{first:?}");
    let second = nlb.modules.update_nlb_config(request.clone()).await.unwrap().into_inner();
    assert_eq!(second.error.expect("refused").code(), StatusCode::AlreadyExists);
    for own_name in ["my-config-1", "nlb-", "nlb-x", "nlb"] {
        request.config.as_mut().unwrap().config_id = own_name.into();
        let answer = nlb.modules.update_nlb_config(request.clone()).await.unwrap().into_inner();
        assert!(answer.success, "{own_name}: {answer:?}");
    }
    request.config.as_mut().unwrap().config_type = String::new();
    let answer = nlb.modules.update_nlb_config(request).await.unwrap().into_inner();
    assert!(answer.success, "the NLB has one type: {answer:?}");
}

#[tokio::test]
async fn settings_that_cannot_be_kept_are_not_put_in_force() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    std::fs::write(state_dir.path(), "a file where the directory should be").unwrap();
    let answer =
        nlb.modules.update_nlb_config(update(json!({ "fail_open": false }))).await.unwrap().into_inner();
    assert!(!answer.success && answer.message.contains("--state-dir"), "{answer:?}");
    assert!(nlb.registry.settings().fail_open);
    std::fs::remove_file(state_dir.path()).unwrap();
}

#[tokio::test]
async fn the_front_answers_for_the_nlb_when_no_instance_is_named() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let change = |settings: Value, validate_only| UpdateConfigRequest {
        config: Some(checked(settings.to_string().into_bytes())),
        validate_only,
        ..Default::default()
    };
    let answer = nlb.front.update_config(change(json!({ "reject": true }), true)).await.unwrap().into_inner();
    assert!(answer.success && answer.validation_passed && !nlb.registry.settings().reject, "{answer:?}");
    let answer =
        nlb.front.update_config(change(json!({ "reject": true }), false)).await.unwrap().into_inner();
    assert!(answer.success && nlb.registry.settings().reject, "{answer:?}");
    let answer = nlb.front.get_config(GetConfigRequest::default()).await.unwrap().into_inner();
    assert_eq!(answer.configs, [current(&mut nlb).await.0]);

    let answer =
        nlb.front.update_config(change(json!({ "max_pools": 2048 }), false)).await.unwrap().into_inner();
    assert!(!answer.success && answer.message.contains("UpdateNLBConfig"), "{answer:?}");
    let answer =
        nlb.front.update_config(change(json!({ "max_pools": 2048 }), true)).await.unwrap().into_inner();
    assert!(answer.validation_passed && answer.message.contains("UpdateNLBConfig"), "{answer:?}");
    let answer = nlb.front.update_config(change(json!({ "rejct": true }), false)).await.unwrap().into_inner();
    assert!(!answer.success && answer.validation_errors[0].contains("rejct"), "{answer:?}");
    let status = nlb.front.update_config(UpdateConfigRequest::default()).await.unwrap_err();
    assert!(status.code() == Code::InvalidArgument && status.message().starts_with("config:"), "{status}");
}

#[tokio::test]
async fn the_pace_of_promotions_changes_at_once() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    let request = update(json!({ "promotion_step": "2s", "promotion_max_error_percent": 9 }));
    assert!(nlb.modules.update_nlb_config(request).await.unwrap().into_inner().success);
    let promotion = nlb.registry.settings().promotion;
    assert_eq!((promotion.step.as_secs(), promotion.max_error_percent), (2, 9));
}

#[tokio::test]
async fn the_forward_mode_is_for_modules_that_register_later() {
    let state_dir = StateDir::new();
    let mut nlb = start(&state_dir).await;
    nlb.add(registration("alb-1")).await;
    let answer = nlb.modules.update_nlb_config(update(json!({ "forward_mode": "dsr-l2" }))).await.unwrap();
    let message = answer.into_inner().message;
    let note = "forward_mode is for modules that register from now on without one; registered modules that keep another: 1";
    assert_eq!(message, format!("in force; {note}"));
    let again = nlb.modules.update_nlb_config(update(json!({ "forward_mode": "dsr-l2" }))).await.unwrap();
    assert_eq!(again.into_inner().message, "in force");
    let refused = nlb.modules.update_nlb_config(update(json!({ "max_routes": 1_000_000_000_000_u64 }))).await;
    let refused = refused.unwrap().into_inner();
    assert!(!refused.success && refused.message.contains("--max-routes must be 1 to 1048576"), "{refused:?}");
}
