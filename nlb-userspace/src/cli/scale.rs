//! `nlb scale`: asks a group of instances to scale, or sets how it scales.

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{ModuleType, Named as _, ScalingConfig, TriggerScalingRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::table;
use crate::config::Span;

#[derive(clap::Args)]
pub(super) struct Scale {
    /// An instance of the group; the NLB asks this one to scale
    #[arg(required_unless_present = "module_type")]
    instance_id: Option<String>,
    /// The only group of this type: ALB, DBLB, AILB, RTMP or NLB
    #[arg(long = "type", value_name = "TYPE", value_parser = module_type)]
    module_type: Option<ModuleType>,
    #[command(flatten)]
    size: Size,
    #[command(flatten)]
    policy: Policy,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct Size {
    /// Scale to this number of instances
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    to: Option<i32>,
    /// Scale to one instance more
    #[arg(long)]
    up: bool,
    /// Scale to one instance fewer
    #[arg(long)]
    down: bool,
}

/// How the group scales from now on. If any of these is given, the others get their defaults.
#[derive(clap::Args)]
#[group(multiple = true)]
struct Policy {
    /// The fewest instances [default if others are given: 1]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    min: Option<i32>,
    /// The most instances [default if others are given: 10]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    max: Option<i32>,
    /// The target per instance, in percent of CPU
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    cpu: Option<i32>,
    /// The target per instance, in percent of memory
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    memory: Option<i32>,
    /// The target per instance, in active flows
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    connections: Option<i32>,
    /// How long to wait after each change
    #[arg(long, value_name = "TIME")]
    cooldown: Option<Span>,
    /// Scale by manual calls only, and not by load
    #[arg(long, alias = "by-hand")]
    manual: bool,
}

#[derive(Serialize)]
struct Scaled {
    message: String,
    current: i32,
    wanted: i32,
}

pub(super) async fn scale(channel: Channel, scale: Scale, output: Output) -> anyhow::Result<String> {
    let Scale { instance_id, module_type, size, policy } = scale;
    let action = match size {
        Size { up: true, .. } => "scale_up",
        Size { down: true, .. } => "scale_down",
        Size { to: Some(_), .. } => "set",
        Size { to: None, .. } => "",
    };
    let request = TriggerScalingRequest {
        instance_id: instance_id.unwrap_or_default(),
        module_type: module_type.unwrap_or_default().into(),
        scaling_action: action.to_owned(),
        target_instances: size.to.unwrap_or_default(),
        config: policy.config(),
    };
    let response =
        NlbServiceClient::new(channel).trigger_scaling(request).await.map_err(rpc_error)?.into_inner();
    let scaled = Scaled {
        message: accepted(response.success, response.message, response.error)?,
        current: response.current_instances,
        wanted: response.target_instances,
    };
    match output {
        Output::Json => table::json(&scaled),
        Output::Text => Ok(scaled.message + "\n"),
    }
}

impl Policy {
    /// `None` if no setting is given.
    fn config(self) -> Option<ScalingConfig> {
        let Policy { min, max, cpu, memory, connections, cooldown, manual } = self;
        let numbers = [min, max, cpu, memory, connections];
        if numbers.iter().all(Option::is_none) && cooldown.is_none() && !manual {
            return None;
        }
        let [min_instances, max_instances, target_cpu_percent, target_memory_percent, target_connections] =
            numbers.map(Option::unwrap_or_default);
        // The contract counts whole seconds, and 0 selects the default.
        let cooldown = cooldown.map_or(0, |Span(cooldown)| cooldown.as_millis().div_ceil(1000));
        Some(ScalingConfig {
            min_instances,
            max_instances,
            target_cpu_percent,
            target_memory_percent,
            target_connections,
            cooldown_seconds: cooldown.try_into().unwrap_or(i32::MAX),
            auto_scaling_enabled: !manual,
            ..ScalingConfig::default()
        })
    }
}

fn module_type(name: &str) -> Result<ModuleType, String> {
    ModuleType::by_name(name)
        .filter(|found| *found != ModuleType::Unspecified)
        .ok_or_else(|| "it is none of ALB, DBLB, AILB, RTMP and NLB".to_owned())
}
