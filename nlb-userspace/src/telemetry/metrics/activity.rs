//! When backends were last used, by their counters: exact to the second in which they were read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use crate::model::Backend;
use crate::model::traffic::{Counts, Traffic};

#[derive(Clone, Debug, Default)]
pub struct Activity(BTreeMap<Arc<Backend>, Seen>);

#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    counted: u64,
    grown_at: Option<SystemTime>,
}

impl Activity {
    /// A new backend counts from 0, so a new backend with counts was used.
    pub fn look(&mut self, traffic: &Traffic, now: SystemTime) {
        self.0.retain(|backend, _| traffic.backends.contains_key(backend));
        for (backend, counts) in &traffic.backends {
            let counted = packets(counts);
            match self.0.get_mut(backend) {
                Some(seen) if seen.counted == counted => {}
                Some(seen) => *seen = Seen { counted, grown_at: Some(now) },
                None => {
                    let grown_at = (counted > 0).then_some(now);
                    self.0.insert(backend.clone(), Seen { counted, grown_at });
                }
            }
        }
    }

    /// `None` if the backend was not used, as far as is known.
    pub fn last_used(&self, backend: &Backend) -> Option<SystemTime> {
        self.0.get(backend)?.grown_at
    }
}

/// A count that grows with every packet.
fn packets(counts: &Counts) -> u64 {
    counts.new_flows + counts.packets + counts.reply_packets
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::model::{ForwardMode, Snat};

    #[test]
    fn a_backend_is_used_when_its_counters_grow() {
        let backend = Backend {
            instance_id: "a".to_owned(),
            route: None,
            addr: "10.0.0.1".parse().unwrap(),
            port: 80,
            mode: ForwardMode::Nat,
            snat: Snat::Always,
        };
        let mut activity = Activity::default();
        let mut look = |second, counts: Option<Counts>| {
            let now = SystemTime::UNIX_EPOCH + Duration::from_secs(second);
            let backends = counts.map(|counts| (backend.clone().into(), counts)).into_iter().collect();
            activity.look(&Traffic { backends, ..Traffic::default() }, now);
            let last = activity.last_used(&backend)?;
            Some(last.duration_since(SystemTime::UNIX_EPOCH).unwrap().as_secs())
        };
        let of = |packets, reply_packets| Some(Counts { packets, reply_packets, ..Counts::default() });
        assert_eq!(look(1, of(0, 0)), None, "not used yet");
        assert_eq!(look(2, of(1, 0)), Some(2));
        assert_eq!(look(3, of(1, 0)), Some(2));
        assert_eq!(look(4, of(1, 1)), Some(4), "replies are use, too");
        assert_eq!(look(5, None), None, "the backend is gone");
        assert_eq!(look(6, of(1, 0)), Some(6), "a new backend has counted since");
    }
}
