//! `nlb scale`: asking a group of instances for more of themselves, or fewer.

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{ModuleType, ScalingConfig, TriggerScalingRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, said};
use super::output::Output;
use super::table;
use crate::config::Span;

#[derive(clap::Args)]
pub struct Scale {
    /// An instance of the group, which is then the one that is asked
    #[arg(required_unless_present = "module_type")]
    instance_id: Option<String>,
    /// The only group of this type: ALB, DBLB, AILB, RTMP or NLB
    #[arg(long = "type", value_name = "TYPE", value_parser = module_type)]
    module_type: Option<ModuleType>,
    #[command(flatten)]
    wish: Wish,
    #[command(flatten)]
    policy: Policy,
}

#[derive(clap::Args)]
#[group(multiple = false)]
struct Wish {
    /// To this number of instances
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    to: Option<i32>,
    /// To one instance more
    #[arg(long)]
    up: bool,
    /// To one instance fewer
    #[arg(long)]
    down: bool,
}

/// How the group scales from now on. All of it is set if any of it is given.
#[derive(clap::Args)]
#[group(multiple = true)]
struct Policy {
    /// At least so many instances [with --max ...: 1]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    min: Option<i32>,
    /// At most so many [with --min ...: 10]
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    max: Option<i32>,
    /// What an instance should carry: percent of CPU
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    cpu: Option<i32>,
    /// ... percent of its memory
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    memory: Option<i32>,
    /// ... active flows
    #[arg(long, value_name = "NUMBER", allow_negative_numbers = true)]
    connections: Option<i32>,
    /// How long to wait after each change
    #[arg(long, value_name = "TIME")]
    cooldown: Option<Span>,
    /// Only when asked to, and not by load
    #[arg(long)]
    by_hand: bool,
}

#[derive(Serialize)]
struct Scaled {
    message: String,
    current: i32,
    wanted: i32,
}

pub async fn scale(channel: Channel, scale: Scale, output: Output) -> anyhow::Result<String> {
    let Scale { instance_id, module_type, wish, policy } = scale;
    let action = match wish {
        Wish { up: true, .. } => "scale_up",
        Wish { down: true, .. } => "scale_down",
        Wish { to: Some(_), .. } => "set",
        Wish { to: None, .. } => "",
    };
    let request = TriggerScalingRequest {
        instance_id: instance_id.unwrap_or_default(),
        module_type: module_type.unwrap_or_default().into(),
        scaling_action: action.to_owned(),
        target_instances: wish.to.unwrap_or_default(),
        config: policy.config(),
    };
    let response = NlbServiceClient::new(channel).trigger_scaling(request).await.map_err(said)?.into_inner();
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
    /// `None` if nothing of it is given.
    fn config(self) -> Option<ScalingConfig> {
        let Policy { min, max, cpu, memory, connections, cooldown, by_hand } = self;
        let numbers = [min, max, cpu, memory, connections];
        if numbers.iter().all(Option::is_none) && cooldown.is_none() && !by_hand {
            return None;
        }
        let [min_instances, max_instances, target_cpu_percent, target_memory_percent, target_connections] =
            numbers.map(Option::unwrap_or_default);
        // The wire counts whole seconds, and takes 0 for the default.
        let cooldown = cooldown.map_or(0, |Span(cooldown)| cooldown.as_millis().div_ceil(1000));
        Some(ScalingConfig {
            min_instances,
            max_instances,
            target_cpu_percent,
            target_memory_percent,
            target_connections,
            cooldown_seconds: cooldown.try_into().unwrap_or(i32::MAX),
            auto_scaling_enabled: !by_hand,
            ..ScalingConfig::default()
        })
    }
}

fn module_type(name: &str) -> Result<ModuleType, String> {
    let found = ModuleType::from_str_name(&format!("MODULE_TYPE_{}", name.to_ascii_uppercase()));
    found
        .filter(|found| *found != ModuleType::Unspecified)
        .ok_or_else(|| "it is none of ALB, DBLB, AILB, RTMP and NLB".to_owned())
}
