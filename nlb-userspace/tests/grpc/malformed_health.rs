//! Malformed values of every field of HealthCheckConfig are refused with its name, and change nothing.

use nlb_proto::*;
use tonic::Code;

use super::health::{checked, set};
use super::nlb::Nlb;

/// A fault in an otherwise valid config, and the field that the refusal must name.
type Case = (fn(&mut HealthCheckConfig), &'static str);

const BAD: &[Case] = &[
    (|c| c.interval_seconds = -1, "interval_seconds"),
    (|c| c.interval_seconds = 3601, "interval_seconds"),
    (|c| c.interval_seconds = i32::MAX, "interval_seconds"),
    (|c| c.timeout_seconds = -1, "timeout_seconds"),
    (|c| c.timeout_seconds = 3601, "timeout_seconds"),
    (|c| (c.interval_seconds, c.timeout_seconds) = (2, 3), "timeout_seconds"),
    (|c| c.unhealthy_threshold = -1, "unhealthy_threshold"),
    (|c| c.unhealthy_threshold = 101, "unhealthy_threshold"),
    (|c| c.healthy_threshold = -1, "healthy_threshold"),
    (|c| c.healthy_threshold = i32::MIN, "healthy_threshold"),
    (|c| c.health_check_path = "healthz".into(), "health_check_path"),
    (|c| c.health_check_path = "http://example.com/".into(), "health_check_path"),
    (|c| c.health_check_path = "/a b".into(), "health_check_path"),
    (|c| c.health_check_path = "/a\r\nHost: b".into(), "health_check_path"),
    (|c| c.health_check_path = "/\0".into(), "health_check_path"),
    (|c| c.health_check_path = format!("/{}", "x".repeat(1024)), "health_check_path"),
    (
        |c| {
            c.health_check_path = "/".into();
            c.set_health_check_protocol(Protocol::Tcp);
        },
        "health_check_path",
    ),
    (|c| c.health_check_port = -1, "health_check_port"),
    (|c| c.health_check_port = 65_536, "health_check_port"),
    (
        |c| {
            c.health_check_port = 80;
            set(c, "check", "module");
        },
        "health_check_port",
    ),
    (|c| c.set_health_check_protocol(Protocol::Srt), "health_check_protocol"),
    (|c| c.set_health_check_protocol(Protocol::Webrtc), "health_check_protocol"),
    (|c| c.set_health_check_protocol(Protocol::Whip), "health_check_protocol"),
    (|c| c.set_health_check_protocol(Protocol::Udp), "health_check_protocol"),
    (|c| c.set_health_check_protocol(Protocol::Http3), "health_check_protocol"),
    (|c| c.set_health_check_protocol(Protocol::Https), "health_check_protocol"),
    (
        |c| {
            c.set_health_check_protocol(Protocol::Http);
            set(c, "check", "module");
        },
        "health_check_protocol",
    ),
    (|c| set(c, "", "x"), "metadata"),
    (|c| set(c, "zone", "a\0b"), "metadata.zone"),
    (|c| set(c, "check", "ping"), "metadata.check"),
    (|c| set(c, "service", "echo"), "metadata.service"),
    (|c| set(c, "deep", "true"), "metadata.deep"),
    (|c| set(c, "expected_status", "200"), "metadata.expected_status"),
    (
        |c| {
            set(c, "check", "module");
            set(c, "deep", "yes");
        },
        "metadata.deep",
    ),
    (
        |c| {
            c.set_health_check_protocol(Protocol::Http);
            set(c, "expected_status", "99");
        },
        "metadata.expected_status",
    ),
];

#[tokio::test]
async fn every_malformed_field_is_refused_by_its_name() {
    let mut nlb = Nlb::start().await;
    for (case, (spoil, field)) in BAD.iter().enumerate() {
        let mut config = HealthCheckConfig::default();
        spoil(&mut config);
        let refused = nlb.modules.register_module(checked("alb-1", config)).await;
        let status = refused.expect_err(&format!("case {case}: {field}"));
        assert_eq!(status.code(), Code::InvalidArgument, "case {case}: {status}");
        let named = format!("health_config.{field}");
        assert!(status.message().starts_with(&named), "case {case}: {named} in {}", status.message());
    }
    assert_eq!(nlb.registry.desired().borrow().revision, 0, "nothing was changed");
    assert!(nlb.tried.lock().unwrap().is_empty());

    // A new field does not compile here until it has cases above.
    let HealthCheckConfig {
        interval_seconds: _,
        timeout_seconds: _,
        unhealthy_threshold: _,
        healthy_threshold: _,
        health_check_path: _,
        health_check_port: _,
        health_check_protocol: _,
        metadata: _,
    } = HealthCheckConfig::default();
}
