//! `nlb promote` and `nlb rollback`: which version gets new flows.

use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::{PromoteVersionRequest, RollbackRequest};
use serde::Serialize;
use tonic::transport::Channel;

use super::connection::{accepted, rpc_error};
use super::output::Output;
use super::{deployment, table};

#[derive(clap::Args)]
pub(super) struct Promote {
    /// The version that gets all new flows
    version: String,
    /// Percent of new flows that the version gains with each step [none: all at once]
    #[arg(long, value_name = "PERCENT", allow_negative_numbers = true)]
    rate: Option<i32>,
    #[command(flatten)]
    named: deployment::Named,
}

#[derive(clap::Args)]
pub(super) struct Rollback {
    /// The version that had most new flows in the split to restore [none: the split before the last change]
    version: Option<String>,
    #[command(flatten)]
    named: deployment::Named,
}

#[derive(Serialize)]
struct Promoted {
    message: String,
    version: String,
}

#[derive(Serialize)]
struct RolledBack {
    message: String,
    /// The versions that had most new flows before, and have them now; empty where deployments differ.
    previous: String,
    current: String,
}

pub(super) async fn promote(channel: Channel, promote: Promote, output: Output) -> anyhow::Result<String> {
    let request = PromoteVersionRequest {
        version: promote.version,
        immediate: promote.rate.is_none(),
        promotion_rate: promote.rate.unwrap_or_default(),
        ..PromoteVersionRequest::default()
    };
    let request = promote.named.request(request)?;
    let response =
        ModuleServiceClient::new(channel).promote_version(request).await.map_err(rpc_error)?.into_inner();
    let message = accepted(response.success, response.message, response.error)?;
    match output {
        Output::Json => table::json(&Promoted { message, version: response.promoted_version }),
        Output::Text => Ok(message + "\n"),
    }
}

pub(super) async fn roll_back(
    channel: Channel,
    rollback: Rollback,
    output: Output,
) -> anyhow::Result<String> {
    let target_version = rollback.version.unwrap_or_default();
    let request = rollback.named.request(RollbackRequest { target_version, ..RollbackRequest::default() })?;
    let response = ModuleServiceClient::new(channel).rollback(request).await.map_err(rpc_error)?.into_inner();
    let rolled = RolledBack {
        message: accepted(response.success, response.message, response.error)?,
        previous: response.previous_version,
        current: response.current_version,
    };
    match output {
        Output::Json => table::json(&rolled),
        Output::Text => {
            let RolledBack { message, previous, current } = rolled;
            let moved =
                if previous == current { String::new() } else { format!(" (from {previous} to {current})") };
            Ok(format!("{message}{moved}\n"))
        }
    }
}
