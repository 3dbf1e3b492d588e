//! Enums between the wire and the model.

use nlb_proto::{self as proto, Named as _};

use crate::model::{ForwardMode, Health, ModuleType, Protocol, Snat};

macro_rules! same_names {
    ($to:ident, $from:ident, $model:ident, [$($name:ident = $wire:ident),+ $(,)?]) => {
        pub(crate) fn $to(value: $model) -> proto::$model {
            match value { $($model::$name => proto::$model::$wire),+ }
        }

        /// `None` for the unspecified value.
        pub(crate) fn $from(value: proto::$model) -> Option<$model> {
            match value { $(proto::$model::$wire => Some($model::$name),)+ proto::$model::Unspecified => None }
        }
    };
}

same_names!(
    module_type_to_wire,
    module_type_from_wire,
    ModuleType,
    [Alb = Alb, Dblb = Dblb, Ailb = Ailb, Rtmp = Rtmp, Nlb = Nlb]
);

same_names!(
    protocol_to_wire,
    protocol_from_wire,
    Protocol,
    [
        Tcp = Tcp,
        Udp = Udp,
        Http = Http,
        Https = Https,
        Http2 = Http2,
        Http3 = Http3,
        Grpc = Grpc,
        WebSocket = Websocket,
        Mysql = Mysql,
        Postgres = Postgres,
        Mongodb = Mongodb,
        Redis = Redis,
        Rtmp = Rtmp,
        Rtmps = Rtmps,
        Hls = Hls,
        Dash = Dash,
        Srt = Srt,
        WebRtc = Webrtc,
        Whip = Whip,
        Whep = Whep,
    ]
);

pub(crate) fn health_to_wire(health: Health) -> proto::HealthStatus {
    match health {
        Health::Healthy => proto::HealthStatus::Healthy,
        Health::Degraded => proto::HealthStatus::Degraded,
        Health::Starting => proto::HealthStatus::Starting,
        Health::Unhealthy => proto::HealthStatus::Unhealthy,
        Health::Stopping => proto::HealthStatus::Stopping,
    }
}

/// The name without the enum's prefix.
pub(crate) fn health_name(health: Health) -> &'static str {
    health_to_wire(health).short_name()
}

/// `None` for the unspecified value.
pub(crate) fn health_from_wire(status: proto::HealthStatus) -> Option<Health> {
    Some(match status {
        proto::HealthStatus::Unspecified => return None,
        proto::HealthStatus::Healthy => Health::Healthy,
        proto::HealthStatus::Degraded => Health::Degraded,
        proto::HealthStatus::Starting => Health::Starting,
        proto::HealthStatus::Unhealthy => Health::Unhealthy,
        proto::HealthStatus::Stopping | proto::HealthStatus::Stopped => Health::Stopping,
    })
}

/// The type by name, with or without the enum's prefix, in any case.
pub(crate) fn module_type_by_name(name: &str) -> Option<ModuleType> {
    proto::ModuleType::by_name(name).and_then(module_type_from_wire)
}

pub(crate) fn forward_mode_name(mode: ForwardMode) -> &'static str {
    match mode {
        ForwardMode::Nat => "nat",
        ForwardMode::DsrL2 => "dsr-l2",
        ForwardMode::DsrIpip => "dsr-ipip",
        ForwardMode::Gue => "gue",
    }
}

pub(crate) fn snat_name(snat: Snat) -> &'static str {
    match snat {
        Snat::Always => "always",
        Snat::OnLink => "on-link",
        Snat::Never => "never",
    }
}
