//! The default answers of an instance to the NLB's calls, from its own state. Calls that make no sense for
//! one process get UNIMPLEMENTED, with the reason.

use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, SystemTime};

use ipnet::IpNet;
use nlb_proto::*;
use tonic::Status;

use crate::control::Origin;
use crate::nlb::Failure;
use crate::state::{State, Stop};

const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30);
const DEFAULT_PAGE: i32 = 100;
const LARGEST_PAGE: i32 = 1000;

pub(crate) type Answer<T> = Result<T, Status>;

impl State {
    pub fn get_status(&self, _: GetStatusRequest) -> Answer<GetStatusResponse> {
        Ok(GetStatusResponse {
            instance: Some(self.instance()),
            status: self.health().into(),
            message: self.condition(),
            last_updated: now(),
            details: Default::default(),
        })
    }

    /// `deep` is the result of a deep check, and empty without one.
    pub fn health_check(&self, deep: Result<HashMap<String, String>, String>) -> HealthCheckResponse {
        let (status, message, mut checks) = match deep {
            Ok(checks) => (self.health(), self.condition(), checks),
            Err(reason) => (HealthStatus::Unhealthy, reason, HashMap::new()),
        };
        checks.insert("open_connections".to_owned(), self.open_connections().to_string());
        HealthCheckResponse { status: status.into(), message, checks, checked_at: now() }
    }

    /// Takes the routes that the NLB has for this instance: they are its only configuration that others can
    /// change without a call to it.
    pub async fn reload(&self, request: ReloadRequest) -> Answer<ReloadResponse> {
        if request.timeout_seconds < 0 {
            return Err(Status::invalid_argument("timeout_seconds is negative"));
        }
        let reloaded = self.nlb.routes(self).await.map(|routes| {
            let routes = routes.into_iter().map(|route| (route.route_id.clone(), route)).collect();
            let changes = differences(&self.routes(), &routes);
            self.set_routes(routes);
            changes
        });
        let (success, message, error) = outcome(&reloaded);
        Ok(ReloadResponse { success, message, error })
    }

    /// Answers at once; the process ends when it has drained.
    pub fn shutdown(&self, request: ShutdownRequest) -> Answer<ShutdownResponse> {
        let timeout = match u64::try_from(request.timeout_seconds) {
            Ok(0) => DEFAULT_TIMEOUT,
            Ok(seconds) => Duration::from_secs(seconds),
            Err(_) => return Err(Status::invalid_argument("timeout_seconds is negative")),
        };
        self.stop(if request.graceful { Stop::Drain(timeout) } else { Stop::AtOnce });
        let message = if request.graceful { "draining" } else { "ending" };
        Ok(ShutdownResponse { success: true, message: message.to_owned(), error: None })
    }

    /// Answers by the routes that the instance registered. The answer is yes for the operator's routes and,
    /// if the instance has no routes of its own, for all routes but learned ones: a configuration has
    /// assigned them to the instance. No configuration assigns a learned route.
    pub fn can_handle(&self, request: CanHandleRequest) -> Answer<CanHandleResponse> {
        let asked = request.route.ok_or_else(|| Status::invalid_argument("route is missing"))?;
        let own = self.routes();
        let best = own.values().filter(|route| covers(route, &asked)).max_by_key(|route| route.priority);
        let owner = request.context.get("owner").map(String::as_str);
        let (can_handle, priority, reason) = match best {
            // All modules give this answer, so that the NLB divides new flows as without the call.
            _ if owner == Some("operator") => (true, asked.priority, "is an operator's route".to_owned()),
            Some(route) => (true, route.priority, format!("covered by route {}", route.route_id)),
            None if own.is_empty() && owner != Some("learned") => {
                (true, 0, "has no routes of its own".to_owned())
            }
            None => (false, 0, format!("covered by none of {} routes", own.len())),
        };
        Ok(CanHandleResponse { can_handle, priority, reason, metadata: Default::default() })
    }

    pub fn get_routes(&self, request: GetRoutesRequest) -> Answer<GetRoutesResponse> {
        let query = request.query.unwrap_or_default();
        if !query.filters.is_empty() || !query.sort_by.is_empty() {
            return Err(Status::invalid_argument(
                "an instance lists its few routes by id; leave filters and sort_by empty",
            ));
        }
        let routes: Vec<Route> = self.routes().into_values().collect();
        let total = routes.len() as i32;
        let Pagination { page, page_size, .. } = query.pagination.unwrap_or_default();
        let page = page.max(1);
        let page_size = if page_size < 1 { DEFAULT_PAGE } else { page_size.min(LARGEST_PAGE) };
        let first = (i64::from(page) - 1) * i64::from(page_size);
        Ok(GetRoutesResponse {
            routes: routes.into_iter().skip(first as usize).take(page_size as usize).collect(),
            total_routes: total,
            pagination: Some(Pagination {
                page,
                page_size,
                total_items: total,
                total_pages: (total + page_size - 1) / page_size,
            }),
        })
    }

    /// Changes the routes at the NLB first: a change that the NLB refuses is not made here.
    pub async fn update_routes(
        &self,
        request: UpdateRoutesRequest,
        origin: Origin,
    ) -> Answer<UpdateRoutesResponse> {
        let mut routes = if request.replace_all { BTreeMap::new() } else { self.routes() };
        for route in request.routes {
            if route.route_id.is_empty() {
                return Err(Status::invalid_argument("a route has no route_id"));
            }
            routes.insert(route.route_id.clone(), route);
        }
        let changed = self.change_routes(routes, origin).await;
        let (success, message, error) = outcome(&changed);
        Ok(UpdateRoutesResponse { success, message, routes_updated: changed.unwrap_or_default(), error })
    }

    pub async fn delete_route(
        &self,
        request: DeleteRouteRequest,
        origin: Origin,
    ) -> Answer<DeleteRouteResponse> {
        let mut routes = self.routes();
        let changed = match routes.remove(&request.route_id) {
            Some(_) => self.change_routes(routes, origin).await,
            None => Err(Failure::NotFound(format!("there is no route `{}` here", request.route_id))),
        };
        let (success, message, error) = outcome(&changed);
        Ok(DeleteRouteResponse { success, message, error })
    }

    /// Returns how many routes were added, changed or removed.
    async fn change_routes(&self, routes: BTreeMap<String, Route>, origin: Origin) -> Result<i32, Failure> {
        let updated = match origin {
            Origin::Direct => self.nlb.set_routes(self, routes.values().cloned().collect()).await?,
            Origin::Nlb => differences(&self.routes(), &routes),
        };
        self.set_routes(routes);
        Ok(updated)
    }

    pub fn get_instances(&self, request: GetInstancesRequest) -> Answer<GetInstancesResponse> {
        let own = self.instance();
        let fits = (request.module_type == 0 || request.module_type == own.module_type)
            && (request.status_filter == 0 || request.status_filter == own.health_status);
        let instances = if fits { vec![own] } else { Vec::new() };
        Ok(GetInstancesResponse { total_instances: instances.len() as i32, instances })
    }

    /// There is no configuration of any type.
    pub fn get_config(&self, _: GetConfigRequest) -> Answer<GetConfigResponse> {
        Ok(GetConfigResponse { configs: Vec::new(), last_updated: None })
    }

    pub fn update_config(&self, request: UpdateConfigRequest) -> Answer<UpdateConfigResponse> {
        let config = request.config.ok_or_else(|| Status::invalid_argument("config is missing"))?;
        let why = format!("this module has no configuration of type `{}`", config.config_type);
        let (success, message, error) = outcome(&Err(Failure::NotFound(why)));
        Ok(UpdateConfigResponse { success, message, error, ..UpdateConfigResponse::default() })
    }

    pub fn get_stats(&self, request: GetStatsRequest) -> Answer<GetStatsResponse> {
        let stats = Some(self.stats());
        if request.reset_counters {
            self.reset_stats();
        }
        Ok(GetStatsResponse { stats })
    }

    /// The current figures, if the requested period includes the present.
    pub fn get_metrics(&self, request: GetMetricsRequest) -> Answer<GetMetricsResponse> {
        let collected = prost_types::Timestamp::from(SystemTime::now());
        let seconds = |time: &prost_types::Timestamp| (time.seconds, time.nanos);
        let asked_for_now = request.start_time.is_none_or(|start| seconds(&start) <= seconds(&collected))
            && request.end_time.is_none_or(|end| seconds(&end) >= seconds(&collected));
        let stats = self.stats();
        let metrics = [
            ("module_requests_total", stats.total_requests as f64),
            ("module_requests_failed_total", stats.failed_requests as f64),
            ("module_connections_total", stats.total_connections as f64),
            ("module_connections_open", stats.active_connections as f64),
            ("module_received_bytes_total", stats.bytes_received as f64),
            ("module_sent_bytes_total", stats.bytes_sent as f64),
            ("module_latency_average_milliseconds", stats.avg_latency_ms),
            ("module_latency_p50_milliseconds", stats.p50_latency_ms),
            ("module_latency_p95_milliseconds", stats.p95_latency_ms),
            ("module_latency_p99_milliseconds", stats.p99_latency_ms),
            ("module_cpu_usage_percent", stats.cpu_usage_percent),
            ("module_memory_usage_mebibytes", stats.memory_usage_mb),
        ];
        let wanted = |name: &str| {
            asked_for_now
                && (request.metric_names.is_empty() || request.metric_names.iter().any(|asked| asked == name))
        };
        let points =
            metrics.into_iter().filter(|(name, _)| wanted(name)).map(|(name, value)| MetricDataPoint {
                name: name.to_owned(),
                value,
                labels: [("instance_id".to_owned(), self.instance_id().to_owned())].into(),
                timestamp: Some(collected),
            });
        let metrics = ModuleMetrics {
            instance_id: self.instance_id().to_owned(),
            module_type: self.instance().module_type,
            metrics: points.collect(),
            collected_at: Some(collected),
        };
        Ok(GetMetricsResponse { metrics: Some(metrics), collected_at: Some(collected) })
    }

    fn condition(&self) -> String {
        format!("{} open connections", self.open_connections())
    }
}

/// The answer to a call that makes no sense for a single process, with the reason.
pub(crate) fn not_for_one_process<T>(why: &str) -> Answer<T> {
    Err(Status::unimplemented(why))
}

/// Whether traffic that `asked` describes also fits the route `own`.
fn covers(own: &Route, asked: &Route) -> bool {
    let same_protocol = own.protocol == asked.protocol
        || own.protocol() == Protocol::Tcp && !is_udp(asked.protocol())
        || own.protocol() == Protocol::Udp && is_udp(asked.protocol());
    let port = own.destination_port == 0 || own.destination_port == asked.destination_port;
    same_protocol
        && port
        && includes(&own.source_pattern, &asked.source_pattern)
        && includes(&own.destination_pattern, &asked.destination_pattern)
}

fn is_udp(protocol: Protocol) -> bool {
    matches!(protocol, Protocol::Udp | Protocol::Http3)
}

fn includes(own: &str, asked: &str) -> bool {
    if own.is_empty() || own == "*" || own == asked {
        return true;
    }
    match (network(own), network(asked)) {
        (Some(own), Some(asked)) => own.contains(&asked),
        _ => false,
    }
}

fn network(pattern: &str) -> Option<IpNet> {
    pattern.parse().ok().or_else(|| Some(IpNet::from(pattern.parse::<std::net::IpAddr>().ok()?)))
}

/// The number of entries that only one map has, or that differ.
fn differences(before: &BTreeMap<String, Route>, after: &BTreeMap<String, Route>) -> i32 {
    let written = after.iter().filter(|(id, route)| before.get(*id) != Some(route)).count();
    let removed = before.keys().filter(|id| !after.contains_key(*id)).count();
    (written + removed) as i32
}

pub(crate) fn outcome(changed: &Result<i32, Failure>) -> (bool, String, Option<Error>) {
    let (code, why) = match changed {
        Ok(0) => return (true, "nothing to change".to_owned(), None),
        Ok(changes) => return (true, format!("{changes} changes made"), None),
        Err(Failure::Temporary(why)) => (StatusCode::Unavailable, why),
        Err(Failure::NotFound(why)) => (StatusCode::NotFound, why),
        Err(Failure::Refused(why)) => (StatusCode::InvalidArgument, why),
    };
    let error =
        Error { code: code.into(), message: why.clone(), details: Default::default(), occurred_at: now() };
    (false, why.clone(), Some(error))
}

fn now() -> Option<prost_types::Timestamp> {
    Some(SystemTime::now().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_covers_what_lies_within_it() {
        let own = Route {
            protocol: Protocol::Tcp.into(),
            source_pattern: "10.0.0.0/8".into(),
            destination_pattern: "192.0.2.1".into(),
            destination_port: 80,
            ..Route::default()
        };
        let asked = Route { source_pattern: "10.1.2.3".into(), ..own.clone() };
        assert!(covers(&own, &asked));
        assert!(covers(&own, &Route { protocol: Protocol::Http.into(), ..asked.clone() }));
        for other in [
            Route { protocol: Protocol::Udp.into(), ..asked.clone() },
            Route { protocol: Protocol::Http3.into(), ..asked.clone() },
            Route { destination_port: 81, ..asked.clone() },
            Route { source_pattern: "11.1.2.3".into(), ..asked.clone() },
            Route { source_pattern: String::new(), ..asked.clone() },
            Route { destination_pattern: "192.0.2.2".into(), ..asked.clone() },
            Route { destination_pattern: "2001:db8::1".into(), ..asked.clone() },
        ] {
            assert!(!covers(&own, &other), "{other:?}");
        }
    }

    #[test]
    fn a_route_without_patterns_covers_its_protocol() {
        let own =
            Route { protocol: Protocol::Udp.into(), destination_pattern: "*".into(), ..Route::default() };
        let quic = Route { protocol: Protocol::Http3.into(), destination_port: 443, ..Route::default() };
        assert!(covers(&own, &quic));
        assert!(!covers(&own, &Route { protocol: Protocol::Http.into(), ..quic }));
    }
}
