//! A health check as a module configures it when it registers: probe, interval and thresholds.

use std::fmt;
use std::net::SocketAddr;
use std::time::Duration;

use crate::model::endpoint::Endpoint;

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub probe: Probe,
    /// `None` means the port that the module's traffic goes to.
    pub port: Option<u16>,
    pub interval: Duration,
    /// At most the interval.
    pub timeout: Duration,
    /// Failures in a row that make a healthy module unhealthy.
    pub unhealthy_threshold: u32,
    /// Successes in a row that make an unhealthy module healthy.
    pub healthy_threshold: u32,
}

/// The kind of a probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Probe {
    /// A TCP connection is accepted.
    Connect,
    /// An HTTP GET is answered with this status; `None` means any of 200 to 399.
    Http { path: String, expected_status: Option<u16> },
    /// grpc.health.v1 answers SERVING for this service; an empty name means the whole server.
    Grpc { service: String },
    /// The module's ModuleService.HealthCheck answers HEALTHY or DEGRADED.
    Module { deep: bool },
}

/// The target of a probe.
#[derive(Clone, Debug)]
pub struct Target {
    pub instance_id: String,
    pub probe: Probe,
    pub timeout: Duration,
    /// The module's gRPC server, for [`Probe::Module`].
    pub control: Endpoint,
    /// The sockets that the module's traffic goes to. The probe has to succeed at all of them.
    pub data: Vec<SocketAddr>,
}

impl fmt::Display for Check {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.probe {
            Probe::Connect => f.write_str("TCP connect")?,
            Probe::Http { path, expected_status: None } => write!(f, "HTTP GET {path}")?,
            Probe::Http { path, expected_status: Some(status) } => write!(f, "HTTP GET {path} for {status}")?,
            Probe::Grpc { service } if service.is_empty() => f.write_str("gRPC health")?,
            Probe::Grpc { service } => write!(f, "gRPC health of {service}")?,
            Probe::Module { deep: false } => f.write_str("ModuleService.HealthCheck")?,
            Probe::Module { deep: true } => f.write_str("ModuleService.HealthCheck, deep")?,
        }
        if let Some(port) = self.port {
            write!(f, " on port {port}")?;
        }
        let Check { interval, timeout, unhealthy_threshold, healthy_threshold, .. } = self;
        write!(
            f,
            " every {interval:?} within {timeout:?}, down after {unhealthy_threshold}, up after {healthy_threshold}"
        )
    }
}
