//! The health check that a module requests: HealthCheckConfig to the model.

use std::time::Duration;

use hyper::http::uri::PathAndQuery;
use nlb_proto::{HealthCheckConfig, Protocol};

use super::validate::{self, FieldViolation};
use crate::model::Texts;
use crate::policy::health::{Check, Probe};

/// A module that accepts no connection is found within 4 to 6 s: three failures in a row.
const INTERVAL: Duration = Duration::from_secs(2);
const TIMEOUT: Duration = Duration::from_secs(2);
const LONGEST_SECONDS: i32 = 3600;
const MOST_IN_A_ROW: i32 = 100;
const PATH_LENGTH: usize = 1024;

/// The kind of check, before its details.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Connect,
    Http,
    Grpc,
    Module,
}

/// Metadata keys that have a meaning, and the kind of check that each is for. Other keys are ignored.
const KEYS: [(&str, Kind, &str); 3] = [
    ("service", Kind::Grpc, "is for health_check_protocol PROTOCOL_GRPC only"),
    ("expected_status", Kind::Http, "is for health_check_protocol PROTOCOL_HTTP only"),
    ("deep", Kind::Module, "is for metadata check=module only"),
];

pub(crate) fn parse(config: HealthCheckConfig) -> Result<Check, FieldViolation> {
    let timeout = seconds("timeout_seconds", config.timeout_seconds)?;
    let interval = seconds("interval_seconds", config.interval_seconds)?;
    let interval = interval.unwrap_or(INTERVAL.max(timeout.unwrap_or_default()));
    if let Some(timeout) = timeout.filter(|timeout| *timeout > interval) {
        let problem = format!(
            "{} is longer than interval_seconds, which is {}; a check has to end before the next one",
            timeout.as_secs(),
            interval.as_secs()
        );
        return Err(FieldViolation::new("timeout_seconds", problem));
    }
    let protocol = validate::known_or_unspecified::<Protocol>(config.health_check_protocol);
    let metadata = validate::text_map("metadata", config.metadata)?;
    let kind = kind(protocol, !config.health_check_path.is_empty(), &metadata)?;
    for (key, belongs_to, problem) in KEYS {
        if metadata.contains_key(key) && kind != belongs_to {
            return Err(FieldViolation::new(format!("metadata.{key}"), problem));
        }
    }
    if !config.health_check_path.is_empty() && kind != Kind::Http {
        return Err(FieldViolation::new(
            "health_check_path",
            "is for health_check_protocol PROTOCOL_HTTP only",
        ));
    }
    let port = validate::port("health_check_port", config.health_check_port)?;
    if port.is_some() && kind == Kind::Module {
        let problem = "is not used with metadata check=module, which asks at instance.address; leave it 0";
        return Err(FieldViolation::new("health_check_port", problem));
    }
    let probe = match kind {
        Kind::Connect => Probe::Connect,
        Kind::Http => Probe::Http {
            path: path(&config.health_check_path)?,
            expected_status: expected_status(&metadata)?,
        },
        Kind::Grpc => Probe::Grpc { service: metadata.get("service").cloned().unwrap_or_default() },
        Kind::Module => Probe::Module { deep: validate::bool_entry("metadata", &metadata, "deep")? },
    };
    Ok(Check {
        probe,
        port,
        interval,
        timeout: timeout.unwrap_or(interval.min(TIMEOUT)),
        unhealthy_threshold: in_a_row("unhealthy_threshold", config.unhealthy_threshold, 3)?,
        healthy_threshold: in_a_row("healthy_threshold", config.healthy_threshold, 2)?,
    })
}

fn kind(protocol: Protocol, has_path: bool, metadata: &Texts) -> Result<Kind, FieldViolation> {
    match metadata.get("check").map(String::as_str) {
        None => {}
        Some("module") if matches!(protocol, Protocol::Unspecified | Protocol::Grpc) => {
            return Ok(Kind::Module);
        }
        Some("module") => {
            let problem =
                "is not how ModuleService is asked, as metadata check=module wants; leave it unspecified";
            return Err(FieldViolation::new("health_check_protocol", problem));
        }
        Some(other) => {
            let problem = format!("{other:?} is not module; leave it out to check by health_check_protocol");
            return Err(FieldViolation::new("metadata.check", problem));
        }
    }
    let problem = match protocol {
        Protocol::Unspecified if has_path => return Ok(Kind::Http),
        Protocol::Http | Protocol::Hls | Protocol::Dash => return Ok(Kind::Http),
        Protocol::Grpc => return Ok(Kind::Grpc),
        Protocol::Udp | Protocol::Http3 | Protocol::Srt | Protocol::Webrtc => {
            "runs over UDP, where silence is no sign of failure; check a TCP port, or use metadata check=module"
        }
        Protocol::Https | Protocol::Whip | Protocol::Whep => {
            "needs TLS, which this build does not support; use PROTOCOL_TCP, or PROTOCOL_HTTP on a port without TLS"
        }
        Protocol::Unspecified
        | Protocol::Tcp
        | Protocol::Http2
        | Protocol::Websocket
        | Protocol::Mysql
        | Protocol::Postgres
        | Protocol::Mongodb
        | Protocol::Redis
        | Protocol::Rtmp
        | Protocol::Rtmps => return Ok(Kind::Connect),
    };
    Err(FieldViolation::new("health_check_protocol", format!("{} {problem}", protocol.as_str_name())))
}

/// `None` for 0, which selects the default.
fn seconds(field: &str, number: i32) -> Result<Option<Duration>, FieldViolation> {
    match number {
        0 => Ok(None),
        1..=LONGEST_SECONDS => Ok(Some(Duration::from_secs(number.unsigned_abs().into()))),
        _ => {
            Err(FieldViolation::new(field, format!("{number} is out of bounds; give 0 to {LONGEST_SECONDS}")))
        }
    }
}

fn in_a_row(field: &str, number: i32, unset: u32) -> Result<u32, FieldViolation> {
    match number {
        0 => Ok(unset),
        1..=MOST_IN_A_ROW => Ok(number.unsigned_abs()),
        _ => Err(FieldViolation::new(field, format!("{number} is out of bounds; give 0 to {MOST_IN_A_ROW}"))),
    }
}

fn path(path: &str) -> Result<String, FieldViolation> {
    let path = if path.is_empty() { "/" } else { path };
    validate::text("health_check_path", path, PATH_LENGTH)?;
    match path.parse::<PathAndQuery>() {
        Ok(_) if path.starts_with('/') => Ok(path.to_owned()),
        _ => {
            Err(FieldViolation::new("health_check_path", format!("{path:?} is not a path, such as /healthz")))
        }
    }
}

fn expected_status(metadata: &Texts) -> Result<Option<u16>, FieldViolation> {
    let Some(text) = metadata.get("expected_status") else { return Ok(None) };
    match text.parse() {
        Ok(status @ 200..=599) => Ok(Some(status)),
        _ => {
            let problem = format!("{text:?} is not a status that ends a request; give 200 to 599");
            Err(FieldViolation::new("metadata.expected_status", problem))
        }
    }
}
