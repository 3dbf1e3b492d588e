//! The results of bad values. Unless a row says otherwise, they are refused with INVALID_ARGUMENT and the
//! name of the field, and bytes that are no message of the type with INTERNAL, gRPC's status for that.

use tonic::Code;

use super::fields::Bad::{self, *};
use super::fields::Field;

pub enum Then {
    /// The reason why the value is accepted.
    Accepted(&'static str),
    /// Refused with another status, or with another name.
    Refused(Code, &'static str),
}

use Then::{Accepted, Refused};

type Row = &'static [(&'static [Bad], Then)];

const STRICT: Row = &[];
const OPTIONAL: Row = &[(&[Empty, Missing], Accepted("it may be left out"))];
/// A flag has no bad values but bytes of another type.
const FLAG: Row = STRICT;
const COUNT: Row = &[(&[Highest], Accepted("counts have no upper bound"))];
const MAP: Row = &[(&[Twice], Accepted("of entries with the same key the last one counts, as in protobuf"))];
const ANSWERS: Row =
    &[(&[Negative, Lowest, Highest], Accepted("a field of answers; in requests it has no meaning"))];
const NOBODY_ELSES: Row = &[
    (&[Empty], Refused(Code::Unauthenticated, "registration_id")),
    (&[Huge, Nul, Control], Refused(Code::PermissionDenied, "registration_id")),
];

const ROWS: &[(&[&str], Row)] = &[
    // Ids.
    (
        &[
            "ModuleInstance.instance_id",
            "UnregisterModuleRequest.instance_id",
            "HeartbeatRequest.instance_id",
            "GetModuleInfoRequest.instance_id",
            "ReportMetricsRequest.instance_id",
            "GetModuleMetricsRequest.instance_id",
            "ShutdownRequest.instance_id",
            "ScaleRequest.instance_id",
            "DrainModuleRequest.instance_id",
            "ResumeModuleRequest.instance_id",
            "RemoveModuleRequest.instance_id",
            "Route.route_id",
            "DeleteRouteRequest.route_id",
            "RateLimit.limit_id",
            "RemoveRateLimitRequest.limit_id",
        ],
        STRICT,
    ),
    (
        &[
            "GetStatusRequest.instance_id",
            "ReloadRequest.instance_id",
            "GetRoutesRequest.instance_id",
            "UpdateRoutesRequest.instance_id",
            "GetRateLimitsRequest.instance_id",
            "SetRateLimitRequest.instance_id",
            "RemoveRateLimitRequest.instance_id",
            "GetMetricsRequest.instance_id",
            "StreamMetricsRequest.instance_id",
            "SetTrafficWeightRequest.instance_id",
            "GetActiveVersionRequest.instance_id",
            "RollbackRequest.instance_id",
            "PromoteVersionRequest.instance_id",
            "HealthCheckRequest.instance_id",
            "GetStatsRequest.instance_id",
            "GetConfigRequest.instance_id",
            "UpdateConfigRequest.instance_id",
            "UpdateRoutingRequest.source_instance_id",
        ],
        &[(&[Empty], Accepted("empty means the NLB itself, its operator, or everyone that the rest fits"))],
    ),
    (&["DeleteRouteRequest.instance_id"], &[(&[Empty], Refused(Code::NotFound, "web"))]),
    (
        &["ModuleStats.instance_id", "ModuleMetrics.instance_id"],
        &[(&[Empty], Accepted("the message around it names the instance"))],
    ),
    (&["UnregisterModuleRequest.registration_id", "HeartbeatRequest.registration_id"], NOBODY_ELSES),
    (
        &["ReportMetricsRequest.registration_id", "UpdateRoutingRequest.registration_id"],
        &[
            (&[Empty], Accepted("modules that know only the frozen fields cannot send it")),
            (&[Huge, Nul, Control], Refused(Code::PermissionDenied, "registration_id")),
        ],
    ),
    // Messages.
    (
        &[
            "RegisterModuleRequest.instance",
            "RouteRequestRequest.route",
            "ValidateRouteRequest.route",
            "CanHandleRequest.route",
            "ReportMetricsRequest.metrics",
            "UpdateNLBConfigRequest.config",
            "UpdateConfigRequest.config",
            "SetRateLimitRequest.limit",
        ],
        STRICT,
    ),
    (
        &[
            "RegisterModuleRequest.health_config",
            "HeartbeatRequest.current_stats",
            "ListModulesRequest.query",
            "GetRoutingTableRequest.query",
            "GetRoutesRequest.query",
            "Query.pagination",
            "ScaleRequest.config",
            "TriggerScalingRequest.config",
        ],
        OPTIONAL,
    ),
    (
        &[
            "ModuleInstance.started_at",
            "HeartbeatRequest.timestamp",
            "ModuleStats.since",
            "ReportMetricsRequest.reported_at",
            "ModuleMetrics.collected_at",
            "MetricDataPoint.timestamp",
            "GetNLBMetricsRequest.start_time",
            "GetNLBMetricsRequest.end_time",
            "GetModuleMetricsRequest.start_time",
            "GetModuleMetricsRequest.end_time",
            "GetMetricsRequest.start_time",
            "GetMetricsRequest.end_time",
            "ConfigUpdate.updated_at",
        ],
        OPTIONAL,
    ),
    (&["Timestamp.seconds", "Timestamp.nanos"], STRICT),
    // Lists.
    (
        &[
            "RegisterModuleRequest.initial_routes",
            "UpdateRoutingRequest.routes",
            "UpdateRoutesRequest.routes",
        ],
        STRICT,
    ),
    (&["Query.filters"], &[(&[Twice], Accepted("a condition may be given twice"))]),
    (
        &["ModuleMetrics.metrics"],
        &[(&[Twice], Accepted("of points of one series and second the last one is kept"))],
    ),
    (
        &[
            "GetNLBMetricsRequest.metric_names",
            "GetModuleMetricsRequest.metric_names",
            "GetMetricsRequest.metric_names",
            "StreamNLBMetricsRequest.metric_names",
            "StreamMetricsRequest.metric_names",
        ],
        &[(&[Twice], Accepted("a metric that is asked for twice is answered once"))],
    ),
    (&["RebalanceLoadRequest.target_instances"], &[(&[Twice], Accepted("they are a set"))]),
    // Maps.
    (
        &[
            "ModuleInstance.metadata",
            "RegisterModuleRequest.capabilities",
            "HealthCheckConfig.metadata",
            "ModuleStats.custom_stats",
            "Route.headers",
            "Route.metadata",
            "RouteRequestRequest.context",
            "CanHandleRequest.context",
            "MetricDataPoint.labels",
            "ConfigUpdate.metadata",
            "RateLimit.metadata",
        ],
        MAP,
    ),
    // Flags.
    (
        &[
            "UnregisterModuleRequest.graceful",
            "UpdateRoutingRequest.replace_all",
            "UpdateRoutingRequest.validate_only",
            "RouteRequestRequest.dry_run",
            "GetNLBMetricsRequest.aggregate",
            "StreamNLBMetricsRequest.include_modules",
            "CheckHealthRequest.deep_check",
            "CheckHealthRequest.check_modules",
            "GetNLBStatusRequest.include_modules",
            "UpdateNLBConfigRequest.validate_only",
            "UpdateNLBConfigRequest.restart_required",
            "RebalanceLoadRequest.force",
            "GetLoadDistributionRequest.include_historical",
            "ReloadRequest.graceful",
            "ShutdownRequest.graceful",
            "UpdateRoutesRequest.replace_all",
            "ScaleRequest.immediate",
            "PromoteVersionRequest.immediate",
            "HealthCheckRequest.deep_check",
            "GetStatsRequest.reset_counters",
            "UpdateConfigRequest.validate_only",
            "Query.sort_desc",
            "RateLimit.enabled",
            "ScalingConfig.auto_scaling_enabled",
            "RemoveModuleRequest.force",
        ],
        FLAG,
    ),
    // Enums.
    (
        &[
            "ModuleInstance.module_type",
            "ListModulesRequest.module_type_filter",
            "ListModulesRequest.status_filter",
            "GetRoutingTableRequest.protocol_filter",
            "GetLoadDistributionRequest.module_type_filter",
            "GetInstancesRequest.module_type",
            "GetInstancesRequest.status_filter",
            "ModuleMetrics.module_type",
            "Route.protocol",
            "TriggerScalingRequest.module_type",
        ],
        STRICT,
    ),
    (
        &[
            "ModuleInstance.health_status",
            "HealthCheckConfig.health_check_protocol",
            "HeartbeatRequest.status",
        ],
        &[(&[UnknownValue, Negative], Accepted("a value of a later contract counts as unspecified"))],
    ),
    (
        &[
            "RegisterModuleRequest.initial_routes.protocol",
            "UpdateRoutingRequest.routes.protocol",
            "UpdateRoutesRequest.routes.protocol",
        ],
        &[(&[UnknownValue, Negative], Accepted("such a route is refused by itself, and the others stand"))],
    ),
    (
        &["CanHandleRequest.route.route_id", "RouteRequestRequest.route.route_id"],
        &[(&[Empty], Accepted("a question about traffic needs no name"))],
    ),
    // Scaling by hand. The fleet's instances of this type are of two versions.
    (&["TriggerScalingRequest.instance_id"], &[(&[Empty], Refused(Code::InvalidArgument, "module_type"))]),
    (
        &["TriggerScalingRequest.scaling_action"],
        &[(&[Empty], Accepted("a config may be set without a step"))],
    ),
    (
        &["TriggerScalingRequest.target_instances"],
        &[(&[Highest], Refused(Code::InvalidArgument, "max_instances"))],
    ),
    (
        &["TriggerScalingRequest.config.min_instances"],
        &[(&[Highest], Accepted("without max_instances it has no upper bound"))],
    ),
    // Text.
    (&["ModuleInstance.address", "MetricDataPoint.name", "RateLimit.target", "Filter.field"], STRICT),
    (
        &[
            "ModuleInstance.version",
            "HealthCheckConfig.health_check_path",
            "Route.source_pattern",
            "Route.destination_pattern",
            "Route.path_pattern",
            "GetRoutingTableRequest.destination_filter",
            "GetRateLimitsRequest.target",
            "GetNLBConfigRequest.config_type",
            "GetConfigRequest.config_type",
            "RebalanceLoadRequest.strategy",
            "SetTrafficWeightRequest.version",
            "RollbackRequest.target_version",
            "PromoteVersionRequest.version",
            "Query.sort_by",
            "Filter.operator",
            "Filter.value",
            "ConfigUpdate.config_id",
            "ConfigUpdate.config_type",
            "UpdateConfigRequest.config.config_type",
            "UpdateConfigRequest.config.checksum",
        ],
        OPTIONAL,
    ),
    (&["ConfigUpdate.checksum"], STRICT),
    (
        &["ConfigUpdate.config_data", "UpdateConfigRequest.config.config_data"],
        &[(&[Empty, Nul], Refused(Code::InvalidArgument, "checksum"))],
    ),
    // Numbers.
    (
        &[
            "ModuleInstance.traffic_weight",
            "SetTrafficWeightRequest.weight",
            "Route.destination_port",
            "Route.source_port",
            "HealthCheckConfig.interval_seconds",
            "HealthCheckConfig.timeout_seconds",
            "HealthCheckConfig.unhealthy_threshold",
            "HealthCheckConfig.healthy_threshold",
            "HealthCheckConfig.health_check_port",
            "UnregisterModuleRequest.drain_timeout_seconds",
            "DrainModuleRequest.timeout_seconds",
            "ReloadRequest.timeout_seconds",
            "ShutdownRequest.timeout_seconds",
            "PromoteVersionRequest.promotion_rate",
            "ScalingConfig.min_instances",
            "ScalingConfig.scale_down_threshold",
            "ScalingConfig.cooldown_seconds",
            "ScalingConfig.target_cpu_percent",
            "ScalingConfig.target_memory_percent",
        ],
        STRICT,
    ),
    (
        &[
            "ModuleInstance.current_connections",
            "ModuleInstance.max_connections",
            "ModuleStats.total_requests",
            "ModuleStats.successful_requests",
            "ModuleStats.failed_requests",
            "ModuleStats.active_connections",
            "ModuleStats.total_connections",
            "ModuleStats.bytes_received",
            "ModuleStats.bytes_sent",
            "RateLimit.requests_per_second",
            "RateLimit.requests_per_minute",
            "RateLimit.requests_per_hour",
            "RateLimit.burst_size",
            "ScalingConfig.max_instances",
            "ScalingConfig.target_connections",
            "ScalingConfig.scale_up_threshold",
        ],
        COUNT,
    ),
    (
        &["StreamNLBMetricsRequest.interval_seconds", "StreamMetricsRequest.interval_seconds"],
        &[(&[Highest], Accepted("a subscriber may want only the first sample"))],
    ),
    (&["Route.priority"], &[(&[Negative, Lowest, Highest], Accepted("priorities have no bounds"))]),
    (
        &["Pagination.page", "Pagination.page_size"],
        &[(&[Highest], Accepted("pages beyond the last are empty, and longer ones are cut to 1,000"))],
    ),
    (&["Pagination.total_items", "Pagination.total_pages"], ANSWERS),
    (
        &[
            "ModuleStats.avg_latency_ms",
            "ModuleStats.p50_latency_ms",
            "ModuleStats.p95_latency_ms",
            "ModuleStats.p99_latency_ms",
            "ModuleStats.cpu_usage_percent",
            "ModuleStats.memory_usage_mb",
        ],
        STRICT,
    ),
    (&["MetricDataPoint.value"], &[(&[Negative], Accepted("gauges may be below zero"))]),
];

/// The row of a field: the row for this call, else the row for its message.
pub fn row(field: &Field) -> Option<Row> {
    let of = |name: &str| ROWS.iter().find(|(names, _)| names.contains(&name)).map(|(_, row)| *row);
    of(&field.place).or_else(|| of(&field.declared))
}

pub fn then(row: Row, bad: Bad) -> Option<&'static Then> {
    row.iter().find(|(kinds, _)| kinds.contains(&bad)).map(|(_, then)| then)
}

pub fn names() -> impl Iterator<Item = &'static str> {
    ROWS.iter().flat_map(|(names, _)| names.iter().copied())
}
