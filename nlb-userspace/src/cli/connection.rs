//! The connection to a running NLB, and the exit code for its answers.

use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use nlb_proto::Error;
use tonic::transport::{Channel, Endpoint};

pub(super) async fn open(server: &str) -> anyhow::Result<Channel> {
    let uri = if server.contains("://") { server.to_owned() } else { format!("http://{server}") };
    let endpoint =
        Endpoint::from_shared(uri).with_context(|| format!("--server {server:?} is not host:port"))?;
    let channel = endpoint.connect_timeout(Duration::from_secs(3)).connect().await;
    channel.map_err(|error| {
        let cause =
            std::iter::successors(Some(&error as &dyn std::error::Error), |error| error.source()).last();
        let cause = cause.map(ToString::to_string).unwrap_or_default();
        anyhow!(
            "nothing answers at {server} ({cause}); is `nlb serve` running there? Name another with --server"
        )
    })
}

/// The message of a change that was made, or an error if it was refused.
pub(super) fn accepted(success: bool, message: String, error: Option<Error>) -> anyhow::Result<String> {
    match error {
        _ if success => Ok(message),
        Some(error) => bail!(error.message),
        None => bail!(message),
    }
}

/// A status's message as an error.
pub(super) fn rpc_error(status: tonic::Status) -> anyhow::Error {
    anyhow!("{} ({:?})", status.message(), status.code())
}
