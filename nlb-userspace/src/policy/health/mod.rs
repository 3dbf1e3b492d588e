//! The health of a module: the signals of several sources, combined into the health that decides on new
//! flows.
//!
//! Each source has its own signal and its own state, and no source changes another's: a heartbeat with
//! HEALTHY cannot undo a failed check, and a successful check cannot undo an operator's drain. The worst
//! signal counts. docs/health.md has the tables.

pub(crate) mod check;
pub(crate) mod outlier;
pub(crate) mod tally;

use std::fmt;

use crate::model::Health;

pub use check::{Check, Probe, Target};

/// A source of health signals.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Source {
    /// The health that the module reports, in its registration and heartbeats.
    Module,
    /// Whether the lease is valid.
    Lease,
    /// The health check that the module registered with.
    Check,
    /// Whether packets get to the module's data addresses, by the kernel's routes and neighbours.
    Network,
    /// Outlier detection: TCP resets of the module's backends, as the data path counts them.
    Resets,
    /// A drain: an operator's, or that of a module which unregisters.
    Operator,
}

/// The signal of a source that watches a module.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HealthSignal {
    pub health: Health,
    /// The reason, in words for operators.
    pub why: String,
}

/// The signals of all sources about one module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HealthSignals {
    pub module: Health,
    pub lease: Health,
    pub network: Health,
    /// `None` without a health check.
    pub check: Option<Health>,
    pub resets: Health,
    pub operator: Health,
}

impl HealthSignals {
    pub fn by_source(self) -> impl Iterator<Item = (Source, Health)> {
        let HealthSignals { module, lease, network, check, resets, operator } = self;
        [
            (Source::Operator, Some(operator)),
            (Source::Lease, Some(lease)),
            (Source::Network, Some(network)),
            (Source::Check, check),
            (Source::Resets, Some(resets)),
            (Source::Module, Some(module)),
        ]
        .into_iter()
        .filter_map(|(source, health)| Some((source, health?)))
    }

    /// The worst signal. A module whose check has never succeeded stays STARTING even if another source
    /// reports UNHEALTHY: a pool that fails open uses UNHEALTHY modules, and this one has never been seen to
    /// serve.
    pub fn health(self) -> Health {
        let worst = self.by_source().map(|(_, health)| health).max().unwrap_or(Health::Healthy);
        match (self.check, worst) {
            (Some(Health::Starting), Health::Unhealthy) => Health::Starting,
            (_, worst) => worst,
        }
    }

    /// The source of the signal that counts.
    pub fn decided_by(self) -> Source {
        let counts = self.health();
        let decisive = self.by_source().find(|(_, health)| *health == counts);
        decisive.map_or(Source::Module, |(source, _)| source)
    }

    /// Whether the module would take new flows if resets were ignored.
    pub fn serves_but_for_resets(self) -> bool {
        let others = HealthSignals { resets: Health::Healthy, ..self };
        others.health().takes_new_flows()
    }
}

impl HealthSignal {
    /// The signal of a check that has not succeeded yet.
    pub fn unchecked() -> Self {
        HealthSignal { health: Health::Starting, why: "not checked yet".to_owned() }
    }

    pub fn healthy() -> Self {
        HealthSignal { health: Health::Healthy, why: String::new() }
    }
}

impl Source {
    pub fn name(self) -> &'static str {
        match self {
            Source::Module => "module",
            Source::Lease => "lease",
            Source::Network => "network",
            Source::Check => "check",
            Source::Resets => "resets",
            Source::Operator => "operator",
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Health::*;

    const ALL: [Health; 5] = [Healthy, Degraded, Starting, Unhealthy, Stopping];

    const ALL_HEALTHY: HealthSignals = HealthSignals {
        module: Healthy,
        lease: Healthy,
        network: Healthy,
        check: Some(Healthy),
        resets: Healthy,
        operator: Healthy,
    };

    #[test]
    fn each_source_alone_decides_if_the_others_are_healthy() {
        assert_eq!(ALL_HEALTHY.health(), Healthy);
        for health in ALL {
            for signals in [
                HealthSignals { module: health, ..ALL_HEALTHY },
                HealthSignals { lease: health, ..ALL_HEALTHY },
                HealthSignals { network: health, ..ALL_HEALTHY },
                HealthSignals { check: Some(health), ..ALL_HEALTHY },
                HealthSignals { resets: health, ..ALL_HEALTHY },
                HealthSignals { operator: health, ..ALL_HEALTHY },
            ] {
                assert_eq!(signals.health(), health, "{signals:?}");
            }
        }
    }

    /// All combinations: 5 to the power of 4, times 6, and 2 for the network.
    #[test]
    fn the_worst_signal_counts_but_an_unchecked_module_is_never_unhealthy() {
        let checks = ALL.map(Some).into_iter().chain([None]);
        for (check, network) in checks.flat_map(|check| [(check, Healthy), (check, Unhealthy)]) {
            for (module, lease) in ALL.iter().flat_map(|a| ALL.map(|b| (*a, b))) {
                for (resets, operator) in ALL.iter().flat_map(|a| ALL.map(|b| (*a, b))) {
                    let signals = HealthSignals { module, lease, network, check, resets, operator };
                    let worst =
                        [Some(module), Some(lease), Some(network), check, Some(resets), Some(operator)];
                    let worst = worst.into_iter().flatten().max().unwrap();
                    let unchecked = check == Some(Starting) && worst == Unhealthy;
                    let counts = if unchecked { Starting } else { worst };
                    assert_eq!(signals.health(), counts, "{signals:?}");
                    let decisive = signals.decided_by();
                    assert!(signals.by_source().any(|signal| signal == (decisive, counts)), "{signals:?}");
                }
            }
        }
    }

    #[test]
    fn a_source_that_recovers_changes_no_other_signal() {
        let both = HealthSignals { check: Some(Unhealthy), lease: Unhealthy, ..ALL_HEALTHY };
        assert_eq!(HealthSignals { lease: Healthy, ..both }.health(), Unhealthy);
        assert_eq!(HealthSignals { check: Some(Healthy), ..both }.health(), Unhealthy);
        assert_eq!(HealthSignals { operator: Stopping, ..both }.decided_by(), Source::Operator);
    }

    #[test]
    fn resets_are_disregarded_where_asked() {
        assert!(HealthSignals { resets: Unhealthy, ..ALL_HEALTHY }.serves_but_for_resets());
        assert!(
            !HealthSignals { resets: Unhealthy, lease: Unhealthy, ..ALL_HEALTHY }.serves_but_for_resets()
        );
    }
}
