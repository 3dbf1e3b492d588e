//! The calls that modules answer: the path and the answer of each request.

use nlb_proto::*;

pub trait Call: prost::Message + Clone + 'static {
    type Answer: prost::Message + Default + 'static;
    const PATH: &'static str;
    /// The call removes something: a module that does not have it has nothing left to do.
    const REMOVES: bool = false;

    /// The reason why the call was not done, according to the answer.
    fn refusal(answer: &Self::Answer) -> Option<String>;
}

macro_rules! call {
    ($name:literal, $request:ident, $answer:ident, $refusal:expr) => {
        impl Call for $request {
            type Answer = $answer;
            const PATH: &'static str = concat!("/marchproxy.ModuleService/", $name);

            fn refusal(answer: &$answer) -> Option<String> {
                let refusal: fn(&$answer) -> Option<String> = $refusal;
                refusal(answer)
            }
        }
    };
}

/// Calls whose answers have a `success` field.
macro_rules! changes {
    ($($name:literal: $request:ident -> $answer:ident;)+) => {$(
        call!($name, $request, $answer, |answer| (!answer.success)
            .then(|| reason(&answer.message, answer.error.as_ref())));
    )+};
}

macro_rules! questions {
    ($($name:literal: $request:ident -> $answer:ident;)+) => {$(
        call!($name, $request, $answer, |_| None);
    )+};
}

changes! {
    "Reload": ReloadRequest -> ReloadResponse;
    "Shutdown": ShutdownRequest -> ShutdownResponse;
    "UpdateRoutes": UpdateRoutesRequest -> UpdateRoutesResponse;
    "SetRateLimit": SetRateLimitRequest -> SetRateLimitResponse;
    "RemoveRateLimit": RemoveRateLimitRequest -> RemoveRateLimitResponse;
    "Scale": ScaleRequest -> ScaleResponse;
    "SetTrafficWeight": SetTrafficWeightRequest -> SetTrafficWeightResponse;
    "Rollback": RollbackRequest -> RollbackResponse;
    "PromoteVersion": PromoteVersionRequest -> PromoteVersionResponse;
}

questions! {
    "GetStatus": GetStatusRequest -> GetStatusResponse;
    "CanHandle": CanHandleRequest -> CanHandleResponse;
    "GetActiveVersion": GetActiveVersionRequest -> GetActiveVersionResponse;
    "GetRateLimits": GetRateLimitsRequest -> GetRateLimitsResponse;
    "GetMetrics": GetMetricsRequest -> GetMetricsResponse;
    "HealthCheck": HealthCheckRequest -> HealthCheckResponse;
    "GetStats": GetStatsRequest -> GetStatsResponse;
    "GetConfig": GetConfigRequest -> GetConfigResponse;
}

impl Call for DeleteRouteRequest {
    type Answer = DeleteRouteResponse;
    const PATH: &'static str = "/marchproxy.ModuleService/DeleteRoute";
    const REMOVES: bool = true;

    fn refusal(answer: &DeleteRouteResponse) -> Option<String> {
        let error = answer.error.as_ref();
        let is_gone = error.is_some_and(|error| error.code() == StatusCode::NotFound);
        (!answer.success && !is_gone).then(|| reason(&answer.message, error))
    }
}

// A configuration that was not accepted has its own list of violations, which the caller gets.
call!("UpdateConfig", UpdateConfigRequest, UpdateConfigResponse, |answer| {
    let refused = !answer.success && answer.validation_errors.is_empty() && !answer.validation_passed;
    refused.then(|| reason(&answer.message, answer.error.as_ref()))
});

fn reason(message: &str, error: Option<&Error>) -> String {
    let reason = error.map(|error| error.message.as_str()).filter(|reason| !reason.is_empty());
    match reason.unwrap_or(message) {
        "" => "refused without a reason".to_owned(),
        reason => reason.to_owned(),
    }
}
