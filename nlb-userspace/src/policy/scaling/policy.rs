//! The number of instances that a load needs, within bounds.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::load::Load;

/// The contract's ScalingConfig, with defaults for empty fields.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Policy {
    /// Scale without a call of an operator.
    pub automatic: bool,
    /// At least 1: a Scale request needs an instance to go to.
    pub min: u32,
    pub max: u32,
    pub targets: TargetLoad,
    /// In percent of CPU, of memory, and of the target of connections; without it, each measure's own target.
    pub scale_up: Option<u32>,
    /// In percent likewise; without it, half of the threshold for scaling up.
    pub scale_down: Option<u32>,
    pub cooldown: Duration,
}

/// The load that an instance should have. Measures without a target are ignored.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TargetLoad {
    pub cpu_percent: Option<u32>,
    pub memory_percent: Option<u32>,
    pub connections: Option<u32>,
}

impl Default for Policy {
    fn default() -> Self {
        Policy {
            automatic: false,
            min: 1,
            max: Self::DEFAULT_MAX,
            targets: TargetLoad { cpu_percent: Some(Self::DEFAULT_CPU_PERCENT), ..TargetLoad::default() },
            scale_up: None,
            scale_down: None,
            cooldown: Self::DEFAULT_COOLDOWN,
        }
    }
}

/// A measure of a group, and its thresholds; all in percent.
struct Measure {
    /// `None` if no instance reports it.
    value: Option<f64>,
    target: f64,
    up: f64,
    down: f64,
}

impl Policy {
    pub const DEFAULT_MAX: u32 = 10;
    pub const DEFAULT_CPU_PERCENT: u32 = 70;
    pub const DEFAULT_COOLDOWN: Duration = Duration::from_secs(60);

    /// Whether the policy can be applied; if not, why.
    pub fn check(&self) -> Result<(), String> {
        if self.min == 0 || self.min > self.max {
            return Err(format!("a group cannot have {} to {} instances", self.min, self.max));
        }
        let TargetLoad { cpu_percent, memory_percent, connections } = self.targets;
        if [cpu_percent, memory_percent, connections].contains(&Some(0)) {
            return Err("a target of a group's load is 0".to_owned());
        }
        match self.contradicts_itself() {
            true => Err("the thresholds would require more and fewer instances at once".to_owned()),
            false => Ok(()),
        }
    }

    /// Whether some measure would need more and fewer instances at once.
    pub fn contradicts_itself(&self) -> bool {
        self.measures(&Load::default()).iter().any(|measure| measure.down >= measure.up)
    }

    /// How many instances there should be: as many as there are, if the load is between the thresholds.
    ///
    /// A group grows if any measure is above its upper threshold, and shrinks if all are below the lower one.
    /// The number is the one that brings the highest measure to its target, so that growing and shrinking do
    /// not alternate.
    pub fn wanted(&self, load: &Load) -> u32 {
        let there = load.instances;
        if there == 0 || !(self.min..=self.max).contains(&there) {
            return if there == 0 { 0 } else { there.clamp(self.min, self.max) };
        }
        let measures = self.measures(load);
        let is = |measure: &Measure, beyond: fn(f64, &Measure) -> bool| {
            measure.value.is_some_and(|value| beyond(value, measure))
        };
        let busy = measures.iter().any(|measure| is(measure, |value, measure| value > measure.up));
        let idle = measures.iter().all(|measure| is(measure, |value, measure| value < measure.down));
        let highest = measures.iter().filter_map(|measure| Some(measure.value? / measure.target));
        let highest = highest.fold(0.0, f64::max);
        // Rounding errors must not add an instance.
        let fitting = (f64::from(there) * highest - 1e-9).ceil() as u32;
        match (busy, idle) {
            (true, _) => fitting.max(there.saturating_add(1)).min(self.max),
            (_, true) => fitting.min(there).max(self.min),
            _ => there,
        }
    }

    fn measures(&self, load: &Load) -> Vec<Measure> {
        let per_instance = load.connections as f64 / f64::from(load.instances.max(1));
        let measure = |target: u32, value: Option<f64>| {
            let up = f64::from(self.scale_up.unwrap_or(target));
            let down = self.scale_down.map_or(up / 2.0, f64::from);
            Measure { value, target: f64::from(target), up, down }
        };
        let TargetLoad { cpu_percent, memory_percent, connections } = self.targets;
        let connections = connections.map(|target| (100, Some(100.0 * per_instance / f64::from(target))));
        let cpu = cpu_percent.map(|target| (target, load.cpu_percent));
        let memory = memory_percent.map(|target| (target, load.memory_percent));
        let all = [cpu, memory, connections].into_iter().flatten();
        all.map(|(target, value)| measure(target, value)).collect()
    }
}
