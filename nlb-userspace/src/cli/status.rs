//! `nlb status`: the status of the NLB.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::SystemTime;

use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{CheckHealthRequest, GetNlbStatusRequest, Named as _};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::rpc_error;
use super::output::Output;
use super::table;

#[derive(clap::Args)]
pub(super) struct StatusArgs {
    /// Show the counters of all packets, too
    #[arg(long)]
    packets: bool,
}

#[derive(Serialize)]
struct Status {
    health: &'static str,
    message: String,
    version: String,
    uptime_seconds: u64,
    new_flows: i64,
    active_flows: i64,
    modules: i32,
    modules_by_type: BTreeMap<String, i32>,
    details: BTreeMap<String, String>,
}

pub(super) async fn show(channel: Channel, args: StatusArgs, output: Output) -> anyhow::Result<String> {
    let mut client = NlbServiceClient::new(channel);
    let request = CheckHealthRequest { check_modules: true, deep_check: false };
    let mut health = client.check_health(request).await.map_err(rpc_error)?.into_inner();
    if args.packets {
        // Both at once would ask every module.
        let request = CheckHealthRequest { check_modules: false, deep_check: true };
        health.checks.extend(client.check_health(request).await.map_err(rpc_error)?.into_inner().checks);
    }
    let status = client.get_nlb_status(GetNlbStatusRequest::default()).await.map_err(rpc_error)?.into_inner();
    let started = status.started_at.and_then(|started| SystemTime::try_from(started).ok());
    let uptime = started.and_then(|started| started.elapsed().ok()).unwrap_or_default();
    let status = Status {
        health: health.status().short_name(),
        message: health.message,
        version: status.version,
        uptime_seconds: uptime.as_secs(),
        new_flows: status.total_requests,
        active_flows: status.active_connections,
        modules: status.registered_modules,
        modules_by_type: status.modules_by_type.into_iter().collect(),
        details: status.details.into_iter().chain(health.checks).collect(),
    };
    match output {
        Output::Json => table::json(&status),
        Output::Text => Ok(text(&status)),
    }
}

fn text(status: &Status) -> String {
    let by_type: Vec<String> =
        status.modules_by_type.iter().map(|(name, count)| format!("{count} {name}")).collect();
    let mut lines = vec![
        ("health", format!("{}: {}", status.health, status.message)),
        ("version", status.version.clone()),
        ("up", duration(status.uptime_seconds)),
        ("flows", format!("{} active, {} since the start", status.active_flows, status.new_flows)),
        ("modules", if by_type.is_empty() { "none".to_owned() } else { by_type.join(", ") }),
    ];
    lines.extend(status.details.iter().map(|(key, value)| (key.as_str(), value.clone())));
    let width = lines.iter().map(|(key, _)| key.len()).max().unwrap_or_default();
    lines.iter().fold(String::new(), |mut text, (key, value)| {
        writeln!(text, "{:<width$}  {value}", key.replace('_', " "))
            .expect("writing to a String cannot fail");
        text
    })
}

fn duration(seconds: u64) -> String {
    match (seconds / 86_400, seconds / 3600 % 24, seconds / 60 % 60, seconds % 60) {
        (0, 0, 0, s) => format!("{s}s"),
        (0, 0, m, s) => format!("{m}m {s}s"),
        (0, h, m, _) => format!("{h}h {m}m"),
        (d, h, _, _) => format!("{d}d {h}h"),
    }
}

#[cfg(test)]
mod tests {
    use super::duration;

    #[test]
    fn durations_show_their_two_greatest_units() {
        assert_eq!(duration(59), "59s");
        assert_eq!(duration(61), "1m 1s");
        assert_eq!(duration(3_700), "1h 1m");
        assert_eq!(duration(90_000), "1d 1h");
    }
}
