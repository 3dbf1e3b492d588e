//! One group: its policy, the instance that Scale requests go to, and their outcomes.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use tokio::time::Instant;
use tracing::{info, warn};

use super::autoscaler::Autoscaler;
use crate::policy::scaling::GroupKey;
use crate::policy::scaling::policy::Policy;
use crate::registry::{Record, State};

/// A group is sampled at least this often.
const SAMPLE_EVERY: Duration = Duration::from_secs(30);

/// A Scale request to one instance.
#[derive(Clone, Debug, PartialEq)]
pub struct ScaleOrder {
    pub group: GroupKey,
    pub instance_id: String,
    pub current: u32,
    pub wanted: u32,
    pub policy: Policy,
    /// The number of the request within its group.
    pub number: u64,
}

/// The outcome of a Scale request, in words.
#[derive(Clone, Debug, PartialEq)]
pub enum ScaleOutcome {
    /// The module's answer.
    Accepted(String),
    /// Why the request was not carried out.
    Failed(String),
    /// Why there is no answer: the module may carry the request out all the same.
    Unknown(String),
}

/// A Scale request that was sent.
#[derive(Clone, Debug, PartialEq)]
struct Attempt {
    instance_id: String,
    current: u32,
    wanted: u32,
    /// `None` while it is in flight.
    outcome: Option<ScaleOutcome>,
    /// What was pending before.
    former: Option<Pending>,
}

/// A number of instances that was requested of an instance, and that the group has not had since.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pending {
    pub instance_id: String,
    /// How many there were at the request.
    from: u32,
    pub wanted: u32,
}

#[derive(Debug, Default)]
pub(super) struct Group {
    pub autoscaler: Autoscaler,
    /// Instances that have sent a heartbeat in this round.
    in_round: BTreeSet<String>,
    sampled_at: Option<Instant>,
    /// The instance whose next heartbeat is answered with the requested number.
    notice: Option<(String, u32)>,
    orders: u64,
    last: Option<Attempt>,
    pending: Option<Pending>,
}

impl fmt::Display for Pending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} instances requested of {}", self.wanted, self.instance_id)
    }
}

impl Group {
    /// Whether this heartbeat is the first of a round. A round ends with the second heartbeat of any
    /// instance, so that many instances do not make more samples than one, and an instance without heartbeats
    /// delays nothing.
    pub(super) fn begins_round(&mut self, instance_id: &str) -> bool {
        let first = self.in_round.is_empty() || self.in_round.contains(instance_id);
        if first {
            self.in_round.clear();
        }
        self.in_round.insert(instance_id.to_owned());
        first
    }

    pub(super) fn is_due(&self, now: Instant) -> bool {
        self.sampled_at.is_none_or(|at| now.saturating_duration_since(at) >= SAMPLE_EVERY)
    }

    pub(super) fn sampled(&mut self, now: Instant) {
        self.sampled_at = Some(now);
    }

    pub(super) fn take_scale_notice(&mut self, instance_id: &str) -> Option<u32> {
        self.notice.take_if(|(notified, _)| notified == instance_id).map(|(_, wanted)| wanted)
    }

    /// The request that is still pending in a group of this many instances. It ends when the group has the
    /// requested number, or when the instance that was asked has left.
    pub(super) fn pending(&mut self, current: u32, state: &State) -> Option<&Pending> {
        self.pending.take_if(|Pending { instance_id, from, wanted }| {
            let is_reached = if *from < *wanted { current >= *wanted } else { current <= *wanted };
            is_reached || !state.modules.contains_key(instance_id)
        });
        self.pending.as_ref()
    }

    pub(super) fn has_pending(&self) -> bool {
        self.pending.is_some()
    }

    /// Creates a Scale request to one instance. `None` if there is no instance to send it to.
    pub(super) fn order(
        &mut self,
        key: &GroupKey,
        members: &[&Record],
        named: Option<&str>,
        wanted: u32,
        policy: Policy,
        now: Instant,
    ) -> Option<ScaleOrder> {
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
        let former =
            self.pending.replace(Pending { instance_id: instance_id.clone(), from: current, wanted });
        self.last =
            Some(Attempt { instance_id: instance_id.clone(), current, wanted, outcome: None, former });
        Some(ScaleOrder { group: key.clone(), instance_id, current, wanted, policy, number: self.orders })
    }

    /// The instance to send a request to: one that registered with a scaling policy, else the first by id.
    /// The last one is chosen again, because it started the others; if its request failed, the next one is.
    fn choose<'a>(&self, members: &[&'a Record]) -> Option<&'a str> {
        let id = |record: &&'a Record| record.registration.instance_id.as_str();
        let with_policy = members.iter().filter(|record| record.registration.scaling.is_some());
        let mut candidates: Vec<&str> = with_policy.map(id).collect();
        if candidates.is_empty() {
            candidates = members.iter().map(id).collect();
        }
        let first = candidates.first().copied();
        let Some(last) = &self.last else { return first };
        let before = last.instance_id.as_str();
        let again = match last.outcome {
            Some(ScaleOutcome::Failed(_)) => candidates.iter().find(|id| **id > before),
            _ => candidates.iter().find(|id| **id == before),
        };
        again.copied().or(first)
    }

    pub(super) fn conclude(&mut self, order: &ScaleOrder, outcome: ScaleOutcome) {
        let instance = &order.instance_id;
        match &outcome {
            ScaleOutcome::Accepted(answer) => {
                info!(instance, wanted = order.wanted, answer, "Scale request accepted");
            }
            ScaleOutcome::Failed(why) | ScaleOutcome::Unknown(why) => {
                warn!(instance, wanted = order.wanted, why, "Scale request failed");
            }
        }
        // A later request has an outcome of its own.
        if order.number == self.orders
            && let Some(last) = &mut self.last
        {
            if matches!(outcome, ScaleOutcome::Failed(_)) {
                self.pending = last.former.take();
            }
            last.outcome = Some(outcome);
        }
    }

    pub(super) fn details(
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
            Autoscaler::Growing(samples) => format!("{samples} samples for more instances"),
            Autoscaler::Shrinking(samples) => format!("{samples} samples for fewer instances"),
            Autoscaler::Steady | Autoscaler::Cooling { .. } => "steady".to_owned(),
        };
        details.insert("scaling.state".to_owned(), state);
        details.insert("scaling.bounds".to_owned(), format!("{} to {}", policy.min, policy.max));
        if let Some(Attempt { instance_id, current, wanted, outcome, .. }) = &self.last {
            let became = match outcome {
                None => "no answer yet".to_owned(),
                Some(ScaleOutcome::Accepted(message)) => format!("done: {message}"),
                Some(ScaleOutcome::Failed(why) | ScaleOutcome::Unknown(why)) => format!("not done: {why}"),
            };
            details.insert(
                "scaling.last".to_owned(),
                format!("{instance_id} was asked for {wanted} instances in place of {current}; {became}"),
            );
        }
        details
    }
}
