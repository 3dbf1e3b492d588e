//! Keeps the instance registered: registers, sends heartbeats, and registers again when the registration is
//! void.
//!
//! No answer of the NLB ends the module. If the NLB does not answer, traffic continues meanwhile, so
//! heartbeats are only repeated. If it accepts no heartbeats of this registration (NOT_FOUND after a restart,
//! PERMISSION_DENIED if another registration has the id), the module registers again, with the former
//! registration_id as its credential. If it refuses the module itself, the module tries again, because the
//! NLB's configuration may change. Delays grow with every failure and differ from module to module, so that a
//! fleet does not register all at once when an NLB is back.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use nlb_proto::{HealthStatus, HeartbeatResponse, ReloadRequest};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::nlb::Failure;
use crate::{Control, State};

const INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
/// The longest delay between attempts that the NLB refuses for their content.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

pub(crate) struct Registration<'a> {
    pub state: &'a State,
    pub control: &'a dyn Control,
    /// The heartbeat interval; unset means the one that the NLB asks for.
    pub interval: Option<Duration>,
}

impl Registration<'_> {
    /// Returns when the instance drains.
    pub(crate) async fn keep(&self) {
        let mut again = BackOff::up_to(INTERVAL);
        let mut refused = BackOff::up_to(LONGEST_WAIT);
        while !self.state.is_draining() {
            let wait = match self.register().await {
                Ok(()) => {
                    refused = BackOff::up_to(LONGEST_WAIT);
                    // A registration without an accepted heartbeat does not reset the delay: two processes
                    // may be superseding each other.
                    if self.send_heartbeats().await {
                        again = BackOff::up_to(INTERVAL);
                    }
                    again.next()
                }
                Err(Failure::Refused(why)) => {
                    let wait = refused.next();
                    error!(instance_id = self.state.instance_id(), %why, ?wait, "the NLB refuses this module; trying again");
                    wait
                }
                Err(Failure::Temporary(why) | Failure::NotFound(why)) => {
                    let wait = again.next();
                    warn!(instance_id = self.state.instance_id(), %why, ?wait, "not registered; trying again");
                    wait
                }
            };
            self.pause(wait).await;
        }
    }

    async fn register(&self) -> Result<(), Failure> {
        let weight = self.state.weight();
        // 0 means unset in a registration, so a weight of 0 needs a second call. Until then no flows may
        // come.
        if weight == 0 {
            self.state.set_health(HealthStatus::Starting);
        }
        self.state.nlb.register(self.state).await?;
        if weight == 0 {
            self.state.nlb.set_weight(self.state, weight).await?;
            self.state.set_health(HealthStatus::Healthy);
            self.state.nlb.heartbeat(self.state).await?;
        }
        info!(instance_id = self.state.instance_id(), "registered");
        Ok(())
    }

    /// Returns when the NLB no longer accepts heartbeats of this registration, or the instance drains. The
    /// result is whether any was accepted.
    async fn send_heartbeats(&self) -> bool {
        let mut interval = self.interval.unwrap_or(INTERVAL);
        let mut retry = BackOff::up_to(INTERVAL);
        let mut wait = interval;
        let mut accepted = false;
        loop {
            self.pause(wait).await;
            if self.state.is_draining() {
                return accepted;
            }
            match self.state.nlb.heartbeat(self.state).await {
                Ok(answer) => {
                    accepted = true;
                    retry = BackOff::up_to(INTERVAL);
                    if let (None, Some(asked)) = (self.interval, asked_interval(&answer)) {
                        interval = asked;
                    }
                    wait = interval;
                    if answer.should_reload {
                        self.reload().await;
                    }
                }
                Err(Failure::Temporary(why)) => {
                    wait = retry.next().min(interval);
                    warn!(%why, ?wait, "heartbeat not delivered; trying again");
                }
                Err(Failure::NotFound(why)) => {
                    info!(%why, "the NLB does not have this registration; registering again");
                    return accepted;
                }
                Err(Failure::Refused(why)) => {
                    let instance_id = self.state.instance_id();
                    warn!(
                        instance_id,
                        %why,
                        "the NLB accepts no heartbeats of this registration; registering again (another process may use the id)"
                    );
                    return accepted;
                }
            }
        }
    }

    async fn reload(&self) {
        let request = ReloadRequest { graceful: true, ..ReloadRequest::default() };
        match self.control.reload(self.state, request).await {
            Ok(answer) if answer.success => info!(answer.message, "reloaded, as the NLB requested"),
            Ok(answer) => warn!(why = answer.message, "the reload that the NLB requested failed"),
            Err(status) => warn!(%status, "the reload that the NLB requested failed"),
        }
    }

    /// Unregisters. While flows end, heartbeats continue: an evicted lease would cut the flows off.
    pub(crate) async fn leave(&self, drain: Option<Duration>) {
        if !self.state.nlb.is_registered() {
            return;
        }
        let unregistered = self.state.nlb.unregister(self.state, drain);
        let heartbeats = async {
            loop {
                sleep(self.interval.unwrap_or(INTERVAL)).await;
                // A failed heartbeat changes nothing: the NLB may have ended the lease already, or be
                // unreachable.
                let _ = self.state.nlb.heartbeat(self.state).await;
            }
        };
        tokio::select! {
            left = unregistered => match left {
                Ok(flows) => info!(flows, "unregistered; flows that closed in time"),
                Err(why) => warn!(%why, "not unregistered; the lease will expire without heartbeats"),
            },
            () = heartbeats => {}
        }
    }

    async fn pause(&self, time: Duration) {
        tokio::select! {
            () = sleep(time) => {}
            () = self.state.draining() => {}
        }
    }
}

fn asked_interval(answer: &HeartbeatResponse) -> Option<Duration> {
    let seconds: f64 = answer.instructions.get("heartbeat_interval_seconds")?.parse().ok()?;
    Duration::try_from_secs_f64(seconds).ok().filter(|interval| !interval.is_zero())
}

/// A delay that doubles with every failure, up to a limit.
struct BackOff {
    next: Duration,
    limit: Duration,
}

impl BackOff {
    fn up_to(limit: Duration) -> BackOff {
        BackOff { next: SHORTEST_WAIT, limit }
    }

    fn next(&mut self) -> Duration {
        let wait = jitter(self.next);
        self.next = (self.next * 2).min(self.limit);
        wait
    }
}

/// Half of the time to all of it, at random.
fn jitter(time: Duration) -> Duration {
    // Every RandomState has its own keys.
    let random = RandomState::new().hash_one(()) as f64 / u64::MAX as f64;
    time.mul_f64(0.5 + random / 2.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_the_interval_and_differ() {
        let mut back_off = BackOff::up_to(INTERVAL);
        let waits: Vec<_> = (0..50).map(|_| back_off.next()).collect();
        assert!(waits[0] >= SHORTEST_WAIT / 2 && waits[0] <= SHORTEST_WAIT);
        assert!(waits[10..].iter().all(|wait| *wait >= INTERVAL / 2 && *wait <= INTERVAL));
        assert!(
            waits[10..].iter().any(|wait| *wait != waits[10]),
            "all modules would register at the same time"
        );
    }
}
