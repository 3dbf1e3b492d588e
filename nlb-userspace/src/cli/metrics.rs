//! `nlb metrics`: the NLB's metrics.

use std::collections::BTreeMap;

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{GetModuleMetricsRequest, GetNlbMetricsRequest, MetricDataPoint};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::rpc_error;
use super::output::Output;
use super::table::{self, Row};

#[derive(clap::Args)]
pub(super) struct MetricsArgs {
    /// Names of metrics, or prefixes with a trailing *; none: all
    names: Vec<String>,
    /// Only metrics of this module, measured or reported
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
}

#[derive(Serialize)]
pub(super) struct MetricRow {
    name: String,
    labels: BTreeMap<String, String>,
    value: f64,
}

pub(super) async fn list(channel: Channel, args: MetricsArgs, output: Output) -> anyhow::Result<String> {
    // With many modules the answer is larger than the default limit of clients.
    let mut client = NlbServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let metric_names = args.names;
    let points = match args.instance {
        Some(instance_id) => {
            let request = GetModuleMetricsRequest { instance_id, metric_names, ..Default::default() };
            let response = client.get_module_metrics(request).await.map_err(rpc_error)?.into_inner();
            response.metrics.unwrap_or_default().metrics
        }
        None => {
            let request = GetNlbMetricsRequest { metric_names, ..Default::default() };
            client.get_nlb_metrics(request).await.map_err(rpc_error)?.into_inner().metrics
        }
    };
    let mut rows: Vec<MetricRow> = points.into_iter().map(MetricRow::from).collect();
    rows.sort_by(|a, b| (&a.name, &a.labels).cmp(&(&b.name, &b.labels)));
    table::print(&rows, output)
}

impl From<MetricDataPoint> for MetricRow {
    fn from(point: MetricDataPoint) -> Self {
        MetricRow { name: point.name, labels: point.labels.into_iter().collect(), value: point.value }
    }
}

impl Row for MetricRow {
    const HEADINGS: &[&str] = &["METRIC", "LABELS", "VALUE"];

    fn cells(&self) -> Vec<String> {
        let labels: Vec<String> =
            self.labels.iter().map(|(label, value)| format!("{label}={value}")).collect();
        let labels = if labels.is_empty() { "-".to_owned() } else { labels.join(",") };
        vec![self.name.clone(), labels, self.value.to_string()]
    }
}
