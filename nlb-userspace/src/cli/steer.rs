//! `nlb weight`, `nlb drain` and `nlb remove`: which modules get new flows.

use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::operator_service_client::OperatorServiceClient;
use nlb_proto::{DrainModuleRequest, RemoveModuleRequest, ResumeModuleRequest, SetTrafficWeightRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::{deployment, table};
use crate::config::Span;

#[derive(clap::Args)]
pub(super) struct Weight {
    /// A module's instance id; with --version, a version
    name: String,
    /// The share of new flows relative to the peers: 0 (none) to 10000
    #[arg(allow_negative_numbers = true)]
    weight: i32,
    /// NAME is a version: set its share relative to the other versions
    #[arg(long = "version")]
    of_version: bool,
    #[command(flatten)]
    named: deployment::Named,
}

#[derive(clap::Args)]
pub(super) struct Drain {
    /// The module's instance id
    instance_id: String,
    /// How long to wait for the connections to close [the NLB's setting]
    #[arg(long, value_name = "TIME")]
    timeout: Option<Span>,
    /// End the drain: the module takes new flows again
    #[arg(long, conflicts_with = "timeout")]
    undo: bool,
}

#[derive(clap::Args)]
pub(super) struct Remove {
    /// The module's instance id
    instance_id: String,
    /// Remove it although it serves
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct WeightSet {
    message: String,
    /// Shares of the two main versions, if there are several.
    versions: Vec<Share>,
}

#[derive(Serialize)]
struct Share {
    version: String,
    weight: i32,
}

#[derive(Serialize)]
struct Drained {
    message: String,
    closed: i32,
    left: i32,
}

pub(super) async fn weight(channel: Channel, weight: Weight, output: Output) -> anyhow::Result<String> {
    let Weight { name, weight, of_version, named } = weight;
    let (instance_id, version) = if of_version { (String::new(), name) } else { (name, String::new()) };
    let request = named.request(SetTrafficWeightRequest { instance_id, version, weight })?;
    let response =
        ModuleServiceClient::new(channel).set_traffic_weight(request).await.map_err(rpc_error)?.into_inner();
    let message = accepted(response.success, response.message, response.error)?;
    let versions = response.current_config.map_or_else(Vec::new, |split| {
        let blue = Share { version: split.blue_version, weight: split.blue_weight };
        vec![blue, Share { version: split.green_version, weight: split.green_weight }]
    });
    match output {
        Output::Json => table::json(&WeightSet { message, versions }),
        Output::Text => {
            let shares: Vec<String> = versions
                .iter()
                .map(|share| format!("version {} has {}", share.version, share.weight))
                .collect();
            let shares = if shares.is_empty() { String::new() } else { format!(" ({})", shares.join(", ")) };
            Ok(format!("{message}{shares}\n"))
        }
    }
}

pub(super) async fn drain(channel: Channel, drain: Drain, output: Output) -> anyhow::Result<String> {
    let mut client = OperatorServiceClient::new(channel);
    let instance_id = drain.instance_id;
    let drained = if drain.undo {
        let response =
            client.resume_module(ResumeModuleRequest { instance_id }).await.map_err(rpc_error)?.into_inner();
        let message = accepted(response.success, response.message, response.error)?;
        Drained { message, closed: 0, left: 0 }
    } else {
        // The contract counts whole seconds, and 0 selects the default.
        let seconds = drain.timeout.map_or(0, |Span(timeout)| timeout.as_millis().div_ceil(1000));
        let timeout_seconds = seconds.try_into().unwrap_or(i32::MAX);
        let request = DrainModuleRequest { instance_id, timeout_seconds };
        let response = client.drain_module(request).await.map_err(rpc_error)?.into_inner();
        let message = accepted(response.success, response.message, response.error)?;
        Drained { message, closed: response.active_connections_drained, left: response.active_connections }
    };
    match output {
        Output::Json => table::json(&drained),
        Output::Text => Ok(drained.message + "\n"),
    }
}

pub(super) async fn remove(channel: Channel, remove: Remove, output: Output) -> anyhow::Result<String> {
    let Remove { instance_id, force } = remove;
    let request = RemoveModuleRequest { instance_id, force };
    let response =
        OperatorServiceClient::new(channel).remove_module(request).await.map_err(rpc_error)?.into_inner();
    table::message(accepted(response.success, response.message, response.error)?, output)
}
