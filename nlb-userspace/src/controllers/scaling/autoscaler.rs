//! When to act on a group's load: not on one sample, and not again before the last change could show.
//!
//! ```text
//!            more wanted                 3rd sample
//!   steady --------------> growing(n) ----------------+
//!     ^  ^   fewer wanted               3rd sample    v
//!     |  +---------------> shrinking(n) ----------> cooling
//!     |     neither: back to steady                   |
//!     +-----------------------------------------------+  cooldown over
//! ```

use tokio::time::Instant;

use crate::policy::scaling::load::Load;
use crate::policy::scaling::policy::Policy;

/// Samples in a row that have to agree.
const SAMPLES: u32 = 3;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum Autoscaler {
    #[default]
    Steady,
    /// This many samples in a row needed more instances.
    Growing(u32),
    Shrinking(u32),
    /// A Scale request was sent; samples until then do not show its effect.
    Cooling {
        until: Instant,
    },
}

impl Autoscaler {
    /// Evaluates a sample. Returns how many instances to request now, if any.
    pub(super) fn sample(&mut self, policy: &Policy, load: &Load, now: Instant) -> Option<u32> {
        if self.is_cooling(now) {
            return None;
        }
        let wanted = policy.wanted(load);
        *self = match (wanted.cmp(&load.instances), *self) {
            (std::cmp::Ordering::Equal, _) => Autoscaler::Steady,
            (std::cmp::Ordering::Greater, Autoscaler::Growing(samples)) => Autoscaler::Growing(samples + 1),
            (std::cmp::Ordering::Greater, _) => Autoscaler::Growing(1),
            (std::cmp::Ordering::Less, Autoscaler::Shrinking(samples)) => Autoscaler::Shrinking(samples + 1),
            (std::cmp::Ordering::Less, _) => Autoscaler::Shrinking(1),
        };
        match *self {
            Autoscaler::Growing(samples) | Autoscaler::Shrinking(samples) if samples >= SAMPLES => {
                Some(wanted)
            }
            _ => None,
        }
    }

    /// A Scale request was sent, by the autoscaler or an operator.
    pub(super) fn cool(&mut self, policy: &Policy, now: Instant) {
        *self = Autoscaler::Cooling { until: now + policy.cooldown };
    }

    pub(super) fn is_cooling(&self, now: Instant) -> bool {
        matches!(self, Autoscaler::Cooling { until } if now < *until)
    }
}
