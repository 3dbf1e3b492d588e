//! Keeps the instance registered: registers, sends heartbeats, and registers again when the registration is void.
//!
//! Nothing that the NLB answers ends the module. When it does not answer, traffic goes on meanwhile, so heartbeats are
//! only repeated. When it takes no heartbeats of this registration (NOT_FOUND after a restart, PERMISSION_DENIED when
//! another registration has the id), the module registers again, with the former registration_id as proof. When it
//! refuses the module altogether, its configuration may change. Waiting times grow with every failure and differ from
//! module to module, so that a fleet does not fall upon an NLB that comes back.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use nlb_proto::{HealthStatus, HeartbeatResponse, ReloadRequest};
use tokio::time::sleep;
use tracing::{error, info, warn};

use crate::nlb::Failure;
use crate::{Control, State};

const INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(250);
/// Between attempts that the NLB refuses for what they say.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

pub(crate) struct Registration<'a> {
    pub state: &'a State,
    pub control: &'a dyn Control,
    /// Between heartbeats; unset leaves it to the NLB.
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
                    // A registration that was void at once is no success: two processes may be taking one id from each other.
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
                Err(Failure::Passing(why) | Failure::NotFound(why)) => {
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
        // A registration cannot say weight 0, which means unset there. Until it is said, nothing may come.
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

    /// Returns when the NLB does not take heartbeats of this registration any more, or the instance drains. Answers whether it
    /// has taken any.
    async fn send_heartbeats(&self) -> bool {
        let mut interval = self.interval.unwrap_or(INTERVAL);
        let mut retry = BackOff::up_to(INTERVAL);
        let mut wait = interval;
        let mut taken = false;
        loop {
            self.pause(wait).await;
            if self.state.is_draining() {
                return taken;
            }
            match self.state.nlb.heartbeat(self.state).await {
                Ok(answer) => {
                    taken = true;
                    retry = BackOff::up_to(INTERVAL);
                    if let (None, Some(asked)) = (self.interval, asked_interval(&answer)) {
                        interval = asked;
                    }
                    wait = interval;
                    if answer.should_reload {
                        self.reload().await;
                    }
                }
                Err(Failure::Passing(why)) => {
                    wait = retry.next().min(interval);
                    warn!(%why, ?wait, "heartbeat not delivered; trying again");
                }
                Err(Failure::NotFound(why)) => {
                    info!(%why, "the NLB does not know this registration; registering again");
                    return taken;
                }
                Err(Failure::Refused(why)) => {
                    let instance_id = self.state.instance_id();
                    warn!(
                        instance_id,
                        %why,
                        "the NLB takes no heartbeats of this registration; registering again (does another process use the id?)"
                    );
                    return taken;
                }
            }
        }
    }

    async fn reload(&self) {
        let request = ReloadRequest { graceful: true, ..ReloadRequest::default() };
        if let Err(status) = self.control.reload(self.state, request).await {
            warn!(%status, "the NLB asked to reload");
        }
    }

    /// Leaves the NLB. While flows run out, heartbeats go on: a lease that ends would cut them off.
    pub(crate) async fn leave(&self, drain: Option<Duration>) {
        if !self.state.nlb.is_registered() {
            return;
        }
        let unregistered = self.state.nlb.unregister(self.state, drain);
        let heartbeats = async {
            loop {
                sleep(self.interval.unwrap_or(INTERVAL)).await;
                // An NLB that ends the lease at once, or cannot be reached, changes nothing about leaving.
                let _ = self.state.nlb.heartbeat(self.state).await;
            }
        };
        tokio::select! {
            left = unregistered => match left {
                Ok(flows) => info!(flows, "unregistered; flows that closed in time"),
                Err(why) => warn!(%why, "not unregistered; the NLB will notice by the missing heartbeats"),
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

/// Doubles with every failure, up to a limit.
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

/// Half to all of the time, at random.
fn jitter(time: Duration) -> Duration {
    // Every RandomState has keys of its own.
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
            "every module would come back at the same moment"
        );
    }
}
