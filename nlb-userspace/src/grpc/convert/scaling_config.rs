//! How a group scales, between protobuf and the model: as the contract's message, or as entries of an
//! instance's metadata.

use std::time::Duration;

use nlb_proto::ScalingConfig;

use super::numbers::signed_32;
use super::validate::{self, FieldViolation};
use crate::model::Texts;
use crate::policy::scaling::policy::{Policy, TargetLoad};

const LONGEST_COOLDOWN_SECONDS: u32 = 24 * 3600;

/// The prefix of metadata keys that say how the instance's group scales.
const PREFIX: &str = "scaling.";

pub(crate) fn parse(config: ScalingConfig) -> Result<Policy, FieldViolation> {
    let given =
        |field, number| validate::unsigned_32(field, number).map(|number| Some(number).filter(|n| *n != 0));
    let min = given("min_instances", config.min_instances)?.unwrap_or(1);
    let max = given("max_instances", config.max_instances)?.unwrap_or(Policy::DEFAULT_MAX.max(min));
    if min > max {
        return Err(FieldViolation::new(
            "min_instances",
            format!("{min} is above max_instances, which is {max}"),
        ));
    }
    let mut targets = TargetLoad {
        cpu_percent: percent("target_cpu_percent", config.target_cpu_percent)?,
        memory_percent: percent("target_memory_percent", config.target_memory_percent)?,
        connections: given("target_connections", config.target_connections)?,
    };
    if targets == TargetLoad::default() {
        targets.cpu_percent = Some(Policy::DEFAULT_CPU_PERCENT);
    }
    let scale_up = given("scale_up_threshold", config.scale_up_threshold)?;
    let scale_down = given("scale_down_threshold", config.scale_down_threshold)?;
    let cooldown = match given("cooldown_seconds", config.cooldown_seconds)? {
        None => Policy::DEFAULT_COOLDOWN,
        Some(seconds @ 1..=LONGEST_COOLDOWN_SECONDS) => Duration::from_secs(seconds.into()),
        Some(seconds) => {
            let problem = format!("{seconds} is more than a day; give 0 to {LONGEST_COOLDOWN_SECONDS}");
            return Err(FieldViolation::new("cooldown_seconds", problem));
        }
    };
    let automatic = config.auto_scaling_enabled;
    let policy = Policy { automatic, min, max, targets, scale_up, scale_down, cooldown };
    if policy.contradicts_itself() {
        return Err(FieldViolation::new(
            "scale_down_threshold",
            "is not below scale_up_threshold (where that is 0, below the target): the same load would want both",
        ));
    }
    Ok(policy)
}

/// Reads a policy from metadata, by the names of the message's fields; `None` if there is no such entry. A
/// policy in metadata is meant to act, so `auto_scaling_enabled` is true unless an entry says otherwise.
pub(crate) fn parse_metadata(metadata: &Texts) -> Result<Option<Policy>, FieldViolation> {
    let mut config = ScalingConfig { auto_scaling_enabled: true, ..Default::default() };
    let mut given = false;
    for (key, value) in metadata {
        let Some(name) = key.strip_prefix(PREFIX) else { continue };
        given = true;
        let violation = |problem| FieldViolation::new(format!("metadata.{key}"), problem);
        if name == "auto_scaling_enabled" {
            config.auto_scaling_enabled =
                value.parse().map_err(|_| violation(format!("{value:?} is neither true nor false")))?;
            continue;
        }
        let mut fields = numbers(&mut config);
        let Some((_, field)) = fields.iter_mut().find(|(field, _)| *field == name) else {
            let known: Vec<&str> = fields.iter().map(|(field, _)| *field).collect();
            let problem = format!("is none of auto_scaling_enabled, {}, after {PREFIX}", known.join(", "));
            return Err(violation(problem));
        };
        **field =
            value.parse().map_err(|_| violation(format!("{value:?} is not a number; give 0 or more")))?;
    }
    if !given {
        return Ok(None);
    }
    let policy = parse(config);
    policy.map(Some).map_err(|violation| FieldViolation {
        field: format!("metadata.{PREFIX}{}", violation.field),
        ..violation
    })
}

/// A ScaleRequest's config: exactly this number of instances, and the policy unchanged.
pub(crate) fn render(policy: &Policy, instances: u32) -> ScalingConfig {
    let given = |number: Option<u32>| number.map_or(0, signed_32);
    ScalingConfig {
        min_instances: signed_32(instances),
        max_instances: signed_32(instances),
        target_cpu_percent: given(policy.targets.cpu_percent),
        target_memory_percent: given(policy.targets.memory_percent),
        target_connections: given(policy.targets.connections),
        scale_up_threshold: given(policy.scale_up),
        scale_down_threshold: given(policy.scale_down),
        cooldown_seconds: signed_32(policy.cooldown.as_secs()),
        auto_scaling_enabled: policy.automatic,
    }
}

fn percent(field: &str, number: i32) -> Result<Option<u32>, FieldViolation> {
    match u32::try_from(number) {
        Ok(0) => Ok(None),
        Ok(percent @ 1..=100) => Ok(Some(percent)),
        _ => Err(FieldViolation::new(field, format!("{number} is not a percentage; give 0 to 100"))),
    }
}

fn numbers(config: &mut ScalingConfig) -> [(&'static str, &mut i32); 8] {
    [
        ("min_instances", &mut config.min_instances),
        ("max_instances", &mut config.max_instances),
        ("target_cpu_percent", &mut config.target_cpu_percent),
        ("target_memory_percent", &mut config.target_memory_percent),
        ("target_connections", &mut config.target_connections),
        ("scale_up_threshold", &mut config.scale_up_threshold),
        ("scale_down_threshold", &mut config.scale_down_threshold),
        ("cooldown_seconds", &mut config.cooldown_seconds),
    ]
}
