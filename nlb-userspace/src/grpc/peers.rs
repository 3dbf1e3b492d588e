//! Calls that are passed on to modules.

use std::time::Duration;

use nlb_proto::SetTrafficWeightRequest;
use nlb_proto::module_service_client::ModuleServiceClient;
use tonic::transport::Endpoint;
use tonic::{Code, Request, Status};
use tracing::warn;

use crate::resolve;

/// Marks a call as passed on. A front that is registered as a module somewhere must not pass it on again: it would go
/// round and round.
const PASSED_ON: &str = "nlb-passed-on";

const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
const ANSWER_PATIENCE: Duration = Duration::from_secs(2);

pub fn is_passed_on<T>(request: &Request<T>) -> bool {
    request.metadata().contains_key(PASSED_ON)
}

/// Tells instances of a weight, all at once. Answers who refused it, and why.
///
/// The weight is ours to enforce, so a module that does not know the call has nothing against it; nor has one that
/// cannot be reached, which is when an operator most needs to take its flows away.
pub async fn tell_weight(
    instances: Vec<(String, resolve::Endpoint)>,
    call: &SetTrafficWeightRequest,
) -> Vec<(String, String)> {
    let mut calls = tokio::task::JoinSet::new();
    for (instance_id, address) in instances {
        let call = call.clone();
        calls.spawn(async move {
            let outcome = set_weight(&address, call).await;
            (instance_id, address, outcome)
        });
    }
    let mut refusals = Vec::new();
    while let Some(call) = calls.join_next().await {
        let (instance_id, address, outcome) = call.expect("the call does not panic");
        match outcome {
            Ok(()) => {}
            Err(status) if status.code() == Code::Unimplemented => {}
            Err(status)
                if matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Cancelled) =>
            {
                warn!(instance = instance_id, %address, %status, "not told of its weight");
            }
            Err(status) => refusals.push((instance_id, status.message().to_owned())),
        }
    }
    refusals.sort();
    refusals
}

async fn set_weight(address: &resolve::Endpoint, call: SetTrafficWeightRequest) -> Result<(), Status> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"));
    let endpoint = endpoint.map_err(|error| Status::unavailable(error.to_string()))?;
    let channel = endpoint.connect_timeout(CONNECT_PATIENCE).timeout(ANSWER_PATIENCE).connect().await;
    let channel = channel.map_err(|error| Status::unavailable(error.to_string()))?;
    let mut request = Request::new(call);
    request.metadata_mut().insert(PASSED_ON, tonic::metadata::MetadataValue::from_static("1"));
    let answer = ModuleServiceClient::new(channel).set_traffic_weight(request).await?.into_inner();
    if answer.success {
        return Ok(());
    }
    let reason = answer.error.map(|error| error.message).filter(|reason| !reason.is_empty());
    Err(Status::aborted(reason.unwrap_or(answer.message)))
}
