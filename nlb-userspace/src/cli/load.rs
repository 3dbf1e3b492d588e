//! `nlb load` and `nlb rebalance`: the distribution of load.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetLoadDistributionRequest, LoadInfo, RebalanceLoadRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::table::{self, Row};

#[derive(clap::Args)]
pub(super) struct Period {
    /// Show the means of the last hour
    #[arg(long)]
    hour: bool,
}

#[derive(clap::Args)]
pub(super) struct Rebalance {
    /// Only these modules [none: all that take new flows]
    instances: Vec<String>,
    /// The strategy: least_connections, load, equal or weight
    #[arg(long, value_name = "STRATEGY", default_value = "least_connections")]
    strategy: String,
    /// Rebalance also if the load is even enough
    #[arg(long)]
    force: bool,
}

#[derive(Serialize)]
struct Spread {
    balance_score: f64,
    instances: Vec<LoadRow>,
}

#[derive(Serialize)]
struct LoadRow {
    instance_id: String,
    active_flows: i32,
    new_flows_per_second: i64,
    cpu_percent: f64,
    memory_mb: f64,
    latency_ms: f64,
    queue_depth: i32,
    load_score: f64,
}

#[derive(Serialize)]
struct Rebalanced {
    message: String,
    /// Shares of new flows in percent.
    before: BTreeMap<String, i32>,
    after: BTreeMap<String, i32>,
}

pub(super) async fn show(channel: Channel, period: Period, output: Output) -> anyhow::Result<String> {
    let request = GetLoadDistributionRequest { include_historical: period.hour, ..Default::default() };
    let mut client = NlbServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let response = client.get_load_distribution(request).await.map_err(rpc_error)?.into_inner();
    let mut instances: Vec<LoadRow> = response.distribution.into_values().map(LoadRow::from).collect();
    instances.sort_by(|a, b| a.instance_id.cmp(&b.instance_id));
    let spread = Spread { balance_score: response.balance_score, instances };
    match output {
        Output::Json => table::json(&spread),
        Output::Text => {
            let rows = table::print(&spread.instances, output)?;
            Ok(format!(
                "{rows}balance score {:.2} (1: even, 0: one module has all flows)\n",
                spread.balance_score
            ))
        }
    }
}

pub(super) async fn rebalance(
    channel: Channel,
    settings: Rebalance,
    output: Output,
) -> anyhow::Result<String> {
    let Rebalance { instances: target_instances, strategy, force } = settings;
    let request = RebalanceLoadRequest { force, target_instances, strategy };
    let response =
        NlbServiceClient::new(channel).rebalance_load(request).await.map_err(rpc_error)?.into_inner();
    let rebalanced = Rebalanced {
        message: accepted(response.success, response.message, response.error)?,
        before: response.previous_distribution.into_iter().collect(),
        after: response.new_distribution.into_iter().collect(),
    };
    if output == Output::Json {
        return table::json(&rebalanced);
    }
    let mut text = rebalanced.message + "\n";
    for (instance_id, after) in &rebalanced.after {
        let before = rebalanced.before.get(instance_id).copied().unwrap_or_default();
        writeln!(text, "{instance_id}: {before} % of new flows before, {after} % now")
            .expect("writing to a String cannot fail");
    }
    Ok(text)
}

impl From<LoadInfo> for LoadRow {
    fn from(info: LoadInfo) -> Self {
        LoadRow {
            instance_id: info.instance_id,
            active_flows: info.active_connections,
            new_flows_per_second: info.requests_per_second,
            cpu_percent: info.cpu_usage_percent,
            memory_mb: info.memory_usage_mb,
            latency_ms: info.avg_latency_ms,
            queue_depth: info.queue_depth,
            load_score: info.load_score,
        }
    }
}

impl Row for LoadRow {
    const HEADINGS: &[&str] =
        &["INSTANCE", "FLOWS", "NEW/S", "CPU %", "MEMORY MB", "LATENCY MS", "QUEUE", "LOAD"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.instance_id.clone(),
            self.active_flows.to_string(),
            self.new_flows_per_second.to_string(),
            format!("{:.1}", self.cpu_percent),
            format!("{:.1}", self.memory_mb),
            format!("{:.2}", self.latency_ms),
            self.queue_depth.to_string(),
            format!("{:.2}", self.load_score),
        ]
    }
}
