//! Keeps the instance registered: registers, sends heartbeats, and registers again when the NLB has forgotten it.
//!
//! An NLB that does not answer is not one that has forgotten: traffic goes on meanwhile, so heartbeats are only
//! repeated, and its first answer tells whether the registration is still there. Waiting times grow with every
//! failure and differ from module to module, so that a fleet does not fall upon an NLB that comes back.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use nlb_proto::{HealthStatus, HeartbeatResponse, ReloadRequest};
use tokio::time::sleep;
use tracing::{info, warn};

use crate::nlb::Failure;
use crate::{Control, Error, State};

const INTERVAL: Duration = Duration::from_secs(10);
const SHORTEST_WAIT: Duration = Duration::from_millis(250);

pub(crate) struct Registration<'a> {
    pub state: &'a State,
    pub control: &'a dyn Control,
    /// Between heartbeats; unset leaves it to the NLB.
    pub interval: Option<Duration>,
}

impl Registration<'_> {
    /// Returns when the instance drains, or with what makes being registered impossible.
    pub(crate) async fn keep(&self) -> Result<(), Error> {
        let mut wait = BackOff::new();
        while !self.state.is_draining() {
            match self.register().await {
                Ok(()) => {
                    wait = BackOff::new();
                    self.send_heartbeats().await?;
                }
                Err(Failure::Refused(why)) => return Err(Error::Refused(why)),
                Err(Failure::Passing(why) | Failure::NotFound(why)) => {
                    let wait = wait.next();
                    warn!(%why, ?wait, "not registered; trying again");
                    self.pause(wait).await;
                }
            }
        }
        Ok(())
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

    /// Returns when the NLB does not know the registration any more, or the instance drains.
    async fn send_heartbeats(&self) -> Result<(), Error> {
        let mut interval = self.interval.unwrap_or(INTERVAL);
        let mut retry = BackOff::new();
        let mut wait = interval;
        loop {
            self.pause(wait).await;
            if self.state.is_draining() {
                return Ok(());
            }
            match self.state.nlb.heartbeat(self.state).await {
                Ok(answer) => {
                    retry = BackOff::new();
                    if let (None, Some(asked)) = (self.interval, asked_interval(&answer)) {
                        interval = asked;
                    }
                    wait = interval;
                    if answer.should_reload {
                        self.reload().await;
                    }
                }
                Err(Failure::NotFound(why)) => {
                    info!(%why, "the NLB does not know this registration; registering again");
                    self.pause(jitter(SHORTEST_WAIT)).await;
                    return Ok(());
                }
                Err(Failure::Passing(why)) => {
                    wait = retry.next().min(interval);
                    warn!(%why, ?wait, "heartbeat not delivered; trying again");
                }
                Err(Failure::Refused(why)) => return Err(Error::Superseded(why)),
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

/// Doubles with every failure, up to the default heartbeat interval.
struct BackOff(Duration);

impl BackOff {
    fn new() -> BackOff {
        BackOff(SHORTEST_WAIT)
    }

    fn next(&mut self) -> Duration {
        let wait = jitter(self.0);
        self.0 = (self.0 * 2).min(INTERVAL);
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
        let mut back_off = BackOff::new();
        let waits: Vec<_> = (0..50).map(|_| back_off.next()).collect();
        assert!(waits[0] >= SHORTEST_WAIT / 2 && waits[0] <= SHORTEST_WAIT);
        assert!(waits[10..].iter().all(|wait| *wait >= INTERVAL / 2 && *wait <= INTERVAL));
        assert!(
            waits[10..].iter().any(|wait| *wait != waits[10]),
            "every module would come back at the same moment"
        );
    }
}
