//! `nlb limits` and `nlb limit`: rate limits.

use clap::{Subcommand, ValueEnum};
use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::{GetRateLimitsRequest, RateLimit, RemoveRateLimitRequest, SetRateLimitRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::table::{self, Row};

#[derive(clap::Args)]
pub(super) struct Filters {
    /// Only limits on this target
    #[arg(long, value_name = "TARGET")]
    target: Option<String>,
    /// List the limits of this module instead of the NLB's
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
}

#[derive(Subcommand)]
pub(super) enum Change {
    /// Set a limit, or replace the one with that id
    Set(Box<Limit>),
    /// Remove a limit
    Remove {
        /// The limit's id
        limit_id: String,
        /// The module that has the limit, if it is not the NLB
        #[arg(long, value_name = "ID")]
        instance: Option<String>,
    },
}

#[derive(clap::Args)]
pub struct Limit {
    /// The limit's id
    limit_id: String,
    /// *, ip:CIDR, route:ID or service:VIP:PORT/PROTOCOL; with --instance any target that the module supports
    target: String,
    /// The limit per second; 0: no limit. A packet passes if every given limit admits it
    #[arg(long, value_name = "NUMBER", default_value_t, allow_negative_numbers = true)]
    per_second: i64,
    /// The limit per minute; 0: no limit
    #[arg(long, value_name = "NUMBER", default_value_t, allow_negative_numbers = true)]
    per_minute: i64,
    /// The limit per hour; 0: no limit
    #[arg(long, value_name = "NUMBER", default_value_t, allow_negative_numbers = true)]
    per_hour: i64,
    /// The largest burst [one second's worth]
    #[arg(
        long,
        value_name = "NUMBER",
        default_value_t,
        hide_default_value = true,
        allow_negative_numbers = true
    )]
    burst: i64,
    /// The unit that is counted
    #[arg(long, value_enum, default_value = "requests")]
    unit: Unit,
    /// Store the limit without enforcing it
    #[arg(long)]
    off: bool,
    /// The module that enforces the limit, instead of the NLB
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Unit {
    /// New flows
    Requests,
    Packets,
    /// Bytes of IP packets
    Bytes,
}

#[derive(Serialize)]
struct LimitRow {
    limit_id: String,
    target: String,
    unit: String,
    per_second: i64,
    per_minute: i64,
    per_hour: i64,
    burst: i64,
    enabled: bool,
    /// The counts of passed and refused, in the limit's unit; unknown for a module's limit.
    passed: Option<u64>,
    refused: Option<u64>,
}

pub(super) async fn list(channel: Channel, filters: Filters, output: Output) -> anyhow::Result<String> {
    let request = GetRateLimitsRequest {
        instance_id: filters.instance.unwrap_or_default(),
        target: filters.target.unwrap_or_default(),
    };
    let mut client = ModuleServiceClient::new(channel).max_decoding_message_size(usize::MAX);
    let response = client.get_rate_limits(request).await.map_err(rpc_error)?.into_inner();
    let rows: Vec<LimitRow> = response.limits.into_iter().map(LimitRow::from).collect();
    table::print(&rows, output)
}

pub(super) async fn change(channel: Channel, change: Change, output: Output) -> anyhow::Result<String> {
    let mut client = ModuleServiceClient::new(channel);
    let message = match change {
        Change::Set(limit) => {
            let instance_id = limit.instance.clone().unwrap_or_default();
            let request = SetRateLimitRequest { instance_id, limit: Some((*limit).into()) };
            let response = client.set_rate_limit(request).await.map_err(rpc_error)?.into_inner();
            accepted(response.success, response.message, response.error)?
        }
        Change::Remove { limit_id, instance } => {
            let request = RemoveRateLimitRequest { instance_id: instance.unwrap_or_default(), limit_id };
            let response = client.remove_rate_limit(request).await.map_err(rpc_error)?.into_inner();
            accepted(response.success, response.message, response.error)?
        }
    };
    table::message(message, output)
}

impl From<Limit> for RateLimit {
    fn from(limit: Limit) -> Self {
        let unit = match limit.unit {
            Unit::Requests => None,
            Unit::Packets => Some("packets"),
            Unit::Bytes => Some("bytes"),
        };
        RateLimit {
            limit_id: limit.limit_id,
            target: limit.target,
            requests_per_second: limit.per_second,
            requests_per_minute: limit.per_minute,
            requests_per_hour: limit.per_hour,
            burst_size: limit.burst,
            enabled: !limit.off,
            metadata: unit.map(|unit| ("unit".to_owned(), unit.to_owned())).into_iter().collect(),
        }
    }
}

impl From<RateLimit> for LimitRow {
    fn from(limit: RateLimit) -> Self {
        let count = |key| limit.metadata.get(key).and_then(|count| count.parse().ok());
        LimitRow {
            unit: limit.metadata.get("unit").cloned().unwrap_or_else(|| "requests".to_owned()),
            passed: count("passed"),
            refused: count("refused"),
            limit_id: limit.limit_id,
            target: limit.target,
            per_second: limit.requests_per_second,
            per_minute: limit.requests_per_minute,
            per_hour: limit.requests_per_hour,
            burst: limit.burst_size,
            enabled: limit.enabled,
        }
    }
}

impl Row for LimitRow {
    const HEADINGS: &[&str] =
        &["LIMIT", "TARGET", "UNIT", "/S", "/MIN", "/H", "BURST", "STATE", "PASSED", "REFUSED"];

    fn cells(&self) -> Vec<String> {
        let given = |number: i64| if number == 0 { "-".to_owned() } else { number.to_string() };
        let known = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |count| count.to_string());
        vec![
            self.limit_id.clone(),
            self.target.clone(),
            self.unit.clone(),
            given(self.per_second),
            given(self.per_minute),
            given(self.per_hour),
            given(self.burst),
            if self.enabled { "on" } else { "off" }.to_owned(),
            known(self.passed),
            known(self.refused),
        ]
    }
}
