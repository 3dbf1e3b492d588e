//! Rate limits between protobuf and the model, and the calls that set, list and remove them.
//!
//! The data path enforces limits on source prefixes, routes, services and all traffic. A call that names an
//! instance is passed on to that module, which has to enforce its limits itself.

use std::net::IpAddr;

use ipnet::IpNet;
use nlb_proto as proto;

use super::control::Control;
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::{signed_32, signed_64};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::model::traffic::LimitCounts;
use crate::model::{L4, LimitTarget, LimitUnit, RateLimit, Texts};

impl Control {
    pub async fn set_rate_limit(
        self,
        request: proto::SetRateLimitRequest,
        passed_on: bool,
    ) -> Result<proto::SetRateLimitResponse, CallError> {
        let instance_id = self.optional_instance(&request.instance_id)?;
        let limit = request.limit.clone().ok_or_else(|| FieldViolation::new("limit", "is missing"))?;
        if let Some(instance_id) = instance_id {
            validate::id("limit_id", &limit.limit_id).map_err(|violation| violation.within("limit"))?;
            return self.relay(&instance_id, request, passed_on).await;
        }
        let (id, limit) = parse(limit).map_err(|violation| violation.within("limit"))?;
        let enabled = limit.enabled;
        let idle = self.without_effect(&limit.target);
        let revision = self.registry.set_rate_limit(id.clone(), limit)?;
        self.settled(revision).await?;
        let message = match idle {
            _ if !enabled => format!("{id} is kept and not in force: enabled is false"),
            None => format!("{id} is in force"),
            Some(why) => format!("{id} is kept, and in force once there is something to limit: {why}"),
        };
        Ok(proto::SetRateLimitResponse { success: true, message, error: None })
    }

    /// Removes one of the NLB's own limits, or one of the instance's.
    pub async fn remove_rate_limit(
        self,
        request: proto::RemoveRateLimitRequest,
        passed_on: bool,
    ) -> Result<proto::RemoveRateLimitResponse, CallError> {
        let id = validate::id("limit_id", &request.limit_id)?;
        let instance_id = self.optional_instance(&request.instance_id)?;
        if let Some(instance_id) = instance_id {
            return self.relay(&instance_id, request, passed_on).await;
        }
        let revision = self.registry.remove_rate_limit(&id)?;
        self.settled(revision).await?;
        Ok(proto::RemoveRateLimitResponse { success: true, message: format!("{id} is removed"), error: None })
    }

    /// The NLB's limits in the order of their ids, with the counts of passed and refused; or those of an
    /// instance.
    pub async fn rate_limits(
        &self,
        request: proto::GetRateLimitsRequest,
        passed_on: bool,
    ) -> Result<proto::GetRateLimitsResponse, CallError> {
        if let Some(instance_id) = self.optional_instance(&request.instance_id)? {
            validate::text("target", &request.target, validate::TEXT_LENGTH)?;
            return self.relay(&instance_id, request, passed_on).await;
        }
        let target = match request.target.as_str() {
            "" => None,
            text => Some(target(text)?),
        };
        let snapshot = self.registry.snapshot();
        let traffic = self.traffic.borrow();
        let limits: Vec<proto::RateLimit> = snapshot
            .rate_limits
            .iter()
            .filter(|(_, limit)| target.as_ref().is_none_or(|target| limit.target == *target))
            .map(|(id, limit)| render(id, limit, traffic.limits.get(id).copied().unwrap_or_default()))
            .collect();
        let total_limits = signed_32(limits.len());
        Ok(proto::GetRateLimitsResponse { limits, total_limits })
    }

    /// The registered instance that the request names, if any.
    fn optional_instance(&self, instance_id: &str) -> Result<Option<String>, CallError> {
        let id = validate::optional_id("instance_id", instance_id)?;
        if let Some(id) = &id {
            self.registry.snapshot().record(id)?;
        }
        Ok(id)
    }

    /// Why a limit on this target has no effect now.
    fn without_effect(&self, target: &LimitTarget) -> Option<String> {
        let snapshot = self.registry.snapshot();
        match target {
            LimitTarget::All | LimitTarget::Source(_) => None,
            LimitTarget::Route(id) => {
                let of_modules = || {
                    snapshot.modules.values().any(|record| record.registration.module.routes.contains_key(id))
                };
                let known = snapshot.operator_routes.contains_key(id) || of_modules();
                (!known).then(|| format!("no route has the id {id:?}"))
            }
            LimitTarget::Service(vip, port, l4) => {
                let applied = self.applied.borrow();
                let served = applied.image.serves(*vip, *port, *l4);
                (!served).then(|| format!("no route serves port {port}/{l4} of {vip}"))
            }
        }
    }
}

/// The metadata keys of a limit's unit and counters.
const UNIT: &str = "unit";
const PASSED: &str = "passed";
const REFUSED: &str = "refused";

fn parse(limit: proto::RateLimit) -> Result<(String, RateLimit), FieldViolation> {
    let id = validate::id("limit_id", &limit.limit_id)?;
    let mut metadata = validate::text_map("metadata", limit.metadata)?;
    // GetRateLimits adds these; a caller may send its answer back.
    metadata.remove(PASSED);
    metadata.remove(REFUSED);
    let limit = RateLimit {
        target: target(&limit.target)?,
        unit: unit(&metadata)?,
        per_second: validate::unsigned("requests_per_second", limit.requests_per_second)?,
        per_minute: validate::unsigned("requests_per_minute", limit.requests_per_minute)?,
        per_hour: validate::unsigned("requests_per_hour", limit.requests_per_hour)?,
        burst: validate::unsigned("burst_size", limit.burst_size)?,
        enabled: limit.enabled,
        metadata,
    };
    if limit.per_second == 0 && limit.per_minute == 0 && limit.per_hour == 0 {
        let problem = "is 0, and so are requests_per_minute and requests_per_hour; give at least one of them";
        return Err(FieldViolation::new("requests_per_second", problem));
    }
    Ok((id, limit))
}

fn render(id: &str, limit: &RateLimit, counts: LimitCounts) -> proto::RateLimit {
    let mut metadata: std::collections::HashMap<String, String> =
        limit.metadata.clone().into_iter().collect();
    metadata.insert(PASSED.to_owned(), counts.passed.to_string());
    metadata.insert(REFUSED.to_owned(), counts.refused.to_string());
    proto::RateLimit {
        limit_id: id.to_owned(),
        target: target_text(&limit.target),
        requests_per_second: signed_64(limit.per_second),
        requests_per_minute: signed_64(limit.per_minute),
        requests_per_hour: signed_64(limit.per_hour),
        burst_size: signed_64(limit.burst),
        enabled: limit.enabled,
        metadata,
    }
}

fn unit(metadata: &Texts) -> Result<LimitUnit, FieldViolation> {
    match metadata.get(UNIT).map(String::as_str) {
        None | Some("requests") => Ok(LimitUnit::NewFlows),
        Some("packets") => Ok(LimitUnit::Packets),
        Some("bytes") => Ok(LimitUnit::Bytes),
        Some(other) => {
            let problem = format!("{other:?} is no unit; give requests (new flows), packets or bytes");
            Err(FieldViolation::new("metadata.unit", problem))
        }
    }
}

const TARGETS: &str = "name the instance that limits it, or give * (everything), ip:CIDR, route:ID or \
                       service:VIP:PORT/PROTOCOL, such as \
                       service:192.0.2.1:443/tcp or service:[2001:db8::1]:443/udp";

fn target(text: &str) -> Result<LimitTarget, FieldViolation> {
    let wrong = |problem: String| FieldViolation::new("target", problem);
    if text == "*" {
        return Ok(LimitTarget::All);
    }
    match text.split_once(':') {
        Some(("ip", net)) => match net.parse::<IpNet>().or_else(|_| net.parse::<IpAddr>().map(IpNet::from)) {
            Ok(net) if net == net.trunc() => Ok(LimitTarget::Source(net)),
            Ok(net) => {
                Err(wrong(format!("{text:?} has bits beyond its prefix; {} would be without", net.trunc())))
            }
            Err(_) => Err(wrong(format!("{net:?} is neither an address nor a CIDR"))),
        },
        Some(("route", id)) => Ok(LimitTarget::Route(validate::id("target", id)?)),
        Some(("service", service)) => {
            service_target(service).ok_or_else(|| wrong(format!("{service:?} is no service; {TARGETS}")))
        }
        _ => Err(wrong(format!("{text:?} is nothing that the NLB can limit; {TARGETS}"))),
    }
}

fn service_target(text: &str) -> Option<LimitTarget> {
    let (endpoint, protocol) = text.rsplit_once('/')?;
    let (vip, port) = endpoint.rsplit_once(':')?;
    let bare = vip.strip_prefix('[').and_then(|vip| vip.strip_suffix(']')).unwrap_or(vip);
    let l4 = match protocol.to_ascii_lowercase().as_str() {
        "tcp" => L4::Tcp,
        "udp" => L4::Udp,
        _ => return None,
    };
    let port = port.parse().ok().filter(|port| *port != 0)?;
    Some(LimitTarget::Service(bare.parse().ok()?, port, l4))
}

fn target_text(target: &LimitTarget) -> String {
    match target {
        LimitTarget::All => "*".to_owned(),
        LimitTarget::Source(net) => format!("ip:{net}"),
        LimitTarget::Route(id) => format!("route:{id}"),
        LimitTarget::Service(IpAddr::V4(vip), port, l4) => format!("service:{vip}:{port}/{l4}"),
        LimitTarget::Service(IpAddr::V6(vip), port, l4) => format!("service:[{vip}]:{port}/{l4}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_are_read_as_they_are_written() {
        for text in [
            "*",
            "ip:10.0.0.0/8",
            "ip:2001:db8::/32",
            "ip:192.0.2.7/32",
            "route:web",
            "service:192.0.2.1:443/tcp",
            "service:[2001:db8::1]:53/udp",
        ] {
            assert_eq!(target(text).map(|target| target_text(&target)), Ok(text.to_owned()));
        }
        assert_eq!(target("ip:192.0.2.7"), target("ip:192.0.2.7/32"));
        assert_eq!(target("service:2001:db8::1:53/UDP"), target("service:[2001:db8::1]:53/udp"));
    }

    #[test]
    fn other_targets_are_refused_with_the_reason() {
        for (text, reason) in [
            ("", "nothing that the NLB can limit"),
            ("user:7", "nothing that the NLB can limit"),
            ("ip:10.0.0.1/8", "10.0.0.0/8 would be without"),
            ("ip:example.org", "neither an address nor a CIDR"),
            ("route:", "is empty"),
            ("service:192.0.2.1/tcp", "is no service"),
            ("service:192.0.2.1:0/tcp", "is no service"),
            ("service:192.0.2.1:80/sctp", "is no service"),
        ] {
            let violation = target(text).expect_err(text);
            assert!(violation.problem.contains(reason), "{text}: {violation}");
        }
    }
}
