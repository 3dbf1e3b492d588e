//! The values of the whole catalogue at one second.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::SystemTime;

use super::catalogue::{self, Family};
use crate::model::traffic::Counts;
use crate::model::{Deployment, Health, L4, ModuleType};
use crate::telemetry::metrics::catalogue::Row;

/// The subject of a row of values: the labels of its series.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Subject {
    /// The NLB itself.
    Nlb,
    /// An exit of the XDP program.
    Exit {
        verdict: &'static str,
        reason: &'static str,
    },
    /// Failed redirects to an interface.
    LostRedirects {
        interface: String,
        error: String,
    },
    /// Flows of all modules together.
    All,
    Service {
        vip: IpAddr,
        port: u16,
        l4: L4,
    },
    Modules {
        module_type: ModuleType,
        health: Health,
    },
    Instance {
        instance_id: String,
    },
    /// The health signals of an instance.
    Health {
        instance_id: String,
    },
    /// The figures of an instance's heartbeat.
    Report {
        instance_id: String,
    },
    Backend {
        instance_id: String,
        route_id: String,
        addr: SocketAddr,
    },
    RateLimit {
        limit_id: String,
    },
    Version {
        deployment: Deployment,
        version: String,
    },
}

impl Subject {
    pub fn family(&self) -> Family {
        match self {
            Subject::Nlb => catalogue::NLB,
            Subject::Exit { .. } => catalogue::EXITS,
            Subject::LostRedirects { .. } => catalogue::LOST_REDIRECTS,
            Subject::All => catalogue::ALL,
            Subject::Service { .. } => catalogue::SERVICES,
            Subject::Modules { .. } => catalogue::MODULES,
            Subject::Instance { .. } => catalogue::INSTANCES,
            Subject::Health { .. } => catalogue::HEALTH,
            Subject::Report { .. } => catalogue::REPORTS,
            Subject::Backend { .. } => catalogue::BACKENDS,
            Subject::RateLimit { .. } => catalogue::RATE_LIMITS,
            Subject::Version { .. } => catalogue::VERSIONS,
        }
    }

    /// The labels that the metrics of its row have in common.
    pub fn labels(&self) -> Vec<(&'static str, String)> {
        match self {
            Subject::Nlb | Subject::All => Vec::new(),
            Subject::Exit { verdict, reason } => {
                vec![("verdict", verdict.to_string()), ("reason", reason.to_string())]
            }
            Subject::LostRedirects { interface, error } => {
                vec![("interface", interface.clone()), ("error", error.clone())]
            }
            Subject::Service { vip, port, l4 } => {
                vec![("vip", vip.to_string()), ("port", port.to_string()), ("protocol", l4.to_string())]
            }
            Subject::Modules { module_type, health } => {
                vec![("module_type", lower(module_type)), ("health", lower(health))]
            }
            Subject::Instance { instance_id }
            | Subject::Health { instance_id }
            | Subject::Report { instance_id } => vec![("instance_id", instance_id.clone())],
            Subject::Backend { instance_id, route_id, addr } => vec![
                ("instance_id", instance_id.clone()),
                ("route_id", route_id.clone()),
                ("backend", addr.to_string()),
            ],
            Subject::RateLimit { limit_id } => vec![("limit_id", limit_id.clone())],
            Subject::Version { deployment, version } => {
                vec![("deployment", deployment.to_string()), ("version", version.clone())]
            }
        }
    }

    /// The instance of the subject, if it has one.
    pub fn instance_id(&self) -> Option<&str> {
        match self {
            Subject::Instance { instance_id }
            | Subject::Health { instance_id }
            | Subject::Report { instance_id }
            | Subject::Backend { instance_id, .. } => Some(instance_id),
            _ => None,
        }
    }

    /// The bytes of its heap allocations.
    pub fn heap_bytes(&self) -> usize {
        match self {
            Subject::Version { deployment, version } => deployment.name().len() + version.capacity(),
            Subject::Instance { instance_id }
            | Subject::Health { instance_id }
            | Subject::Report { instance_id } => instance_id.capacity(),
            Subject::Backend { instance_id, route_id, .. } => instance_id.capacity() + route_id.capacity(),
            Subject::RateLimit { limit_id } => limit_id.capacity(),
            Subject::LostRedirects { interface, error } => interface.capacity() + error.capacity(),
            _ => 0,
        }
    }
}

/// Such as `alb` or `healthy`: the variants are named like the contract's values.
fn lower(variant: &impl std::fmt::Debug) -> String {
    format!("{variant:?}").to_lowercase()
}

#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub at: SystemTime,
    /// Whole seconds since the recorder started, by a clock that never jumps.
    pub second: u64,
    /// One value for each metric of the subject's family, in its order.
    pub rows: BTreeMap<Subject, Row>,
}

impl Sample {
    /// The counts of all modules, of an instance, a version or a backend; zeros if the series does not exist
    /// yet.
    pub fn counts(&self, subject: &Subject) -> Counts {
        self.rows.get(subject).map(|row| catalogue::counts_of(row)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn subjects_have_the_labels_of_their_family() {
        let instance_id = || "a".to_owned();
        for subject in [
            Subject::Nlb,
            Subject::Exit { verdict: "drop", reason: "loop" },
            Subject::LostRedirects { interface: "eth0".into(), error: "ENXIO".into() },
            Subject::All,
            Subject::Service { vip: "192.0.2.1".parse().unwrap(), port: 80, l4: L4::Tcp },
            Subject::Modules { module_type: ModuleType::Alb, health: Health::Healthy },
            Subject::Instance { instance_id: instance_id() },
            Subject::Health { instance_id: instance_id() },
            Subject::Report { instance_id: instance_id() },
            Subject::Backend {
                instance_id: instance_id(),
                route_id: "web".into(),
                addr: "[fd00::1]:80".parse().unwrap(),
            },
            Subject::RateLimit { limit_id: "few".into() },
            Subject::Version { deployment: ModuleType::Alb.into(), version: "v1".into() },
        ] {
            let labels: Vec<&str> = subject.labels().into_iter().map(|(label, _)| label).collect();
            for metric in subject.family() {
                let fixed = usize::from(metric.fixed.is_some());
                assert_eq!(labels, metric.labels[..metric.labels.len() - fixed], "{}", metric.name);
            }
        }
        let modules = Subject::Modules { module_type: ModuleType::Alb, health: Health::Healthy };
        assert_eq!(modules.labels(), [("module_type", "alb".to_owned()), ("health", "healthy".to_owned())]);
    }
}
