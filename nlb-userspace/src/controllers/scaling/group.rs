//! One group: its policy, whom to ask for more instances or fewer, and what became of that.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::autoscaler::Autoscaler;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;
use crate::registry::Record;

/// A group is sampled at least this often.
const SAMPLE_EVERY: Duration = Duration::from_secs(30);

/// One instance is to see to another number of instances.
#[derive(Clone, Debug, PartialEq)]
pub struct Order {
    pub group: GroupKey,
    pub instance_id: String,
    pub current: u32,
    pub wanted: u32,
    pub policy: Policy,
    /// Counts the group's orders.
    pub number: u64,
}

/// What became of an order.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    pub instance_id: String,
    pub current: u32,
    pub wanted: u32,
    /// The module's word, or why it was not done. `None` while it is asked.
    pub outcome: Option<Result<String, String>>,
}

#[derive(Debug, Default)]
pub struct Group {
    pub autoscaler: Autoscaler,
    /// Instances that have sent a heartbeat in this round.
    record_heartbeat: BTreeSet<String>,
    sampled_at: Option<Instant>,
    /// Who has not been told yet that it was asked, and for how many.
    notice: Option<(String, u32)>,
    orders: u64,
    last: Option<Attempt>,
}

impl Group {
    /// Whether this heartbeat is the first of a round. A round ends when somebody is heard for the second time, so that
    /// many instances do not make for more samples than one, and one that has fallen silent holds nothing up.
    pub fn begins_round(&mut self, instance_id: &str) -> bool {
        let first = self.record_heartbeat.is_empty() || self.record_heartbeat.contains(instance_id);
        if first {
            self.record_heartbeat.clear();
        }
        self.record_heartbeat.insert(instance_id.to_owned());
        first
    }

    pub fn is_due(&self, now: Instant) -> bool {
        self.sampled_at.is_none_or(|at| now.saturating_duration_since(at) >= SAMPLE_EVERY)
    }

    pub fn sampled(&mut self, now: Instant) {
        self.sampled_at = Some(now);
    }

    pub fn take_notice(&mut self, instance_id: &str) -> Option<u32> {
        self.notice.take_if(|(told, _)| told == instance_id).map(|(_, wanted)| wanted)
    }

    /// Asks one instance for another number. `None` if there is nobody to be asked.
    pub fn order(
        &mut self,
        key: &GroupKey,
        members: &[&Record],
        named: Option<&str>,
        wanted: u32,
        policy: Policy,
        now: Instant,
    ) -> Option<Order> {
        let instance_id = match named {
            Some(named) => named.to_owned(),
            None => self.choose(members)?.to_owned(),
        };
        let current = members.len().try_into().unwrap_or(u32::MAX);
        info!(
            module_type = ?key.module_type, version = key.version, instance = instance_id, current, wanted,
            "sending a Scale request"
        );
        self.autoscaler.cool(&policy, now);
        self.orders += 1;
        self.notice = Some((instance_id.clone(), wanted));
        self.last = Some(Attempt { instance_id: instance_id.clone(), current, wanted, outcome: None });
        Some(Order { group: key.clone(), instance_id, current, wanted, policy, number: self.orders })
    }

    /// Who said how the group scales is asked, else the first by id; who was asked last is asked again, because it knows
    /// what it has started, unless it failed: then the next.
    fn choose<'a>(&self, members: &[&'a Record]) -> Option<&'a str> {
        let id = |record: &&'a Record| record.registration.instance_id.as_str();
        let willing = members.iter().filter(|record| record.registration.scaling.is_some());
        let mut candidates: Vec<&str> = willing.map(id).collect();
        if candidates.is_empty() {
            candidates = members.iter().map(id).collect();
        }
        let first = candidates.first().copied();
        let Some(last) = &self.last else { return first };
        let before = last.instance_id.as_str();
        let again = match last.outcome {
            Some(Err(_)) => candidates.iter().find(|id| **id > before),
            _ => candidates.iter().find(|id| **id == before),
        };
        again.copied().or(first)
    }

    pub fn conclude(&mut self, order: &Order, outcome: Result<String, String>) {
        let instance = &order.instance_id;
        match &outcome {
            Ok(said) => info!(instance, wanted = order.wanted, said, "Scale request accepted"),
            Err(why) => warn!(instance, wanted = order.wanted, why, "Scale request failed"),
        }
        // A later order has an outcome of its own.
        if order.number == self.orders
            && let Some(last) = &mut self.last
        {
            last.outcome = Some(outcome);
        }
    }

    pub fn details(
        &self,
        members: &[&Record],
        policy: Option<&Policy>,
        now: Instant,
    ) -> BTreeMap<String, String> {
        let mut details = BTreeMap::from([
            ("scaling.instances".to_owned(), members.len().to_string()),
            ("scaling.orders".to_owned(), self.orders.to_string()),
        ]);
        let policy = policy.cloned().unwrap_or_default();
        let state = match self.autoscaler {
            Autoscaler::Cooling { until } if now < until => {
                format!("cooling for {} s", (until - now).as_secs_f64().ceil())
            }
            _ if !policy.automatic => "manual only".to_owned(),
            Autoscaler::Growing(samples) => format!("{samples} samples want more"),
            Autoscaler::Shrinking(samples) => format!("{samples} samples want fewer"),
            Autoscaler::Steady | Autoscaler::Cooling { .. } => "steady".to_owned(),
        };
        details.insert("scaling.state".to_owned(), state);
        details.insert("scaling.bounds".to_owned(), format!("{} to {}", policy.min, policy.max));
        if let Some(Attempt { instance_id, current, wanted, outcome }) = &self.last {
            let became = match outcome {
                None => "no answer yet".to_owned(),
                Some(Ok(said)) => format!("done: {said}"),
                Some(Err(why)) => format!("not done: {why}"),
            };
            details.insert(
                "scaling.last".to_owned(),
                format!("{instance_id} was asked for {wanted} instances in place of {current}; {became}"),
            );
        }
        details
    }
}
