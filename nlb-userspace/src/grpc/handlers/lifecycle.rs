//! The status and the life cycle of instances, by ModuleService of the NLB: GetStatus, HealthCheck, Reload,
//! Shutdown.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use nlb_proto::{
    CheckHealthRequest, CheckHealthResponse, GetNlbStatusRequest, GetStatusRequest, GetStatusResponse,
    HealthCheckRequest, HealthCheckResponse, ModuleInstance, ModuleType, ReloadRequest, ReloadResponse,
    ShutdownRequest, ShutdownResponse,
};
use tokio::time::Instant;

use super::control::Control;
use super::registration::{details, drain_timeout};
use super::status::{found, merged, short, word};
use crate::controllers::drain;
use crate::grpc::client::fan_out::{all_done, peer};
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::grpc::convert::{enums, instance};

/// The NLB's instance_id in its own status.
const OWN_ID: &str = "nlb";

const RELOAD_SECONDS: u64 = 30;
const LONGEST_RELOAD_SECONDS: i32 = 3600;

impl Control {
    /// The status of an instance; with an empty id the NLB's own.
    pub async fn status(
        &self,
        request: GetStatusRequest,
        passed_on: bool,
    ) -> Result<GetStatusResponse, CallError> {
        if request.instance_id.is_empty() {
            return Ok(self.own_status());
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&id)?;
        let outcome = self.peers.pass_on_to(peer(record), request, passed_on).await;
        let counts = self.traffic.borrow().instance(&id);
        let ours = record.health();
        let known = Some(instance::render(record, counts));
        let mut all: BTreeMap<String, String> = details(record, counts);
        let text = outcome.to_string();
        let (status, message, last_updated) = match outcome {
            Outcome::Done(answer) => {
                let theirs = answer.status();
                all.insert("module".to_owned(), short(theirs));
                all.extend(answer.details.into_iter().map(|(key, value)| (format!("module.{key}"), value)));
                (merged(ours, theirs), answer.message, SystemTime::now())
            }
            _ => {
                all.insert("module".to_owned(), text.clone());
                let reported_at = SystemTime::now() - record.lease.age(Instant::now());
                (enums::health_to_wire(ours), format!("as of its last heartbeat; {text}"), reported_at)
            }
        };
        Ok(GetStatusResponse {
            instance: known,
            status: status.into(),
            message,
            last_updated: Some(last_updated.into()),
            details: all.into_iter().collect(),
        })
    }

    fn own_status(&self) -> GetStatusResponse {
        let status = self.nlb_status(GetNlbStatusRequest::default());
        let own = ModuleInstance {
            instance_id: OWN_ID.to_owned(),
            module_type: ModuleType::Nlb.into(),
            address: self.address.to_string(),
            health_status: status.status,
            started_at: status.started_at,
            current_connections: signed_32(status.active_connections),
            version: status.version,
            ..Default::default()
        };
        GetStatusResponse {
            instance: Some(own),
            status: status.status,
            message: self.own_health(CheckHealthRequest::default(), &Default::default()).message,
            last_updated: Some(SystemTime::now().into()),
            details: status.details,
        }
    }

    /// The health of an instance; with an empty id the NLB's own, and then a deep check asks every module.
    pub async fn health(
        &self,
        request: HealthCheckRequest,
        passed_on: bool,
    ) -> Result<HealthCheckResponse, CallError> {
        let deep = request.deep_check;
        if request.instance_id.is_empty() {
            let request = CheckHealthRequest { deep_check: deep, check_modules: deep };
            let CheckHealthResponse { status, message, checks, checked_at, .. } =
                self.check_health(request, passed_on).await;
            return Ok(HealthCheckResponse { status, message, checks, checked_at });
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&id)?;
        let ours = record.health();
        let mut status = enums::health_to_wire(ours);
        let mut message = format!("decided by its {}", record.signals().decided_by());
        let counts = self.traffic.borrow().instance(&id);
        let mut checks = details(record, counts);
        checks.retain(|key, _| {
            matches!(
                key.as_str(),
                "lease" | "seconds_since_heartbeat" | "draining" | "resets" | "health_check"
            ) || key.starts_with("health.")
        });
        if deep {
            let outcome = self.peers.pass_on_to(peer(record), request, passed_on).await;
            checks.insert("module".to_owned(), word(&outcome));
            status = found(ours, &outcome);
            match outcome {
                Outcome::Done(answer) => {
                    message = answer.message;
                    let its = answer.checks.into_iter().map(|(key, value)| (format!("module.{key}"), value));
                    checks.extend(its);
                }
                Outcome::Unimplemented => {}
                outcome => message = outcome.to_string(),
            }
        }
        Ok(HealthCheckResponse {
            status: status.into(),
            message,
            checks: checks.into_iter().collect(),
            checked_at: Some(SystemTime::now().into()),
        })
    }

    /// Reloads an instance; with an empty id every instance. An instance that the call does not get to is
    /// asked by the answer to its next heartbeat.
    pub async fn reload_modules(
        self,
        request: ReloadRequest,
        passed_on: bool,
    ) -> Result<ReloadResponse, CallError> {
        let seconds = match request.timeout_seconds {
            0 => RELOAD_SECONDS,
            seconds @ 1..=LONGEST_RELOAD_SECONDS => u64::from(seconds.unsigned_abs()),
            seconds => {
                let problem = format!("{seconds} is out of bounds; give 0 to {LONGEST_RELOAD_SECONDS}");
                return Err(FieldViolation::new("timeout_seconds", problem).into());
            }
        };
        let snapshot = self.registry.snapshot();
        let peers = match request.instance_id.as_str() {
            "" => snapshot.modules.values().map(|record| peer(record)).collect(),
            id => vec![peer(snapshot.record(&validate::id("instance_id", id)?)?)],
        };
        // The module may take all of its time, and then answers.
        let max_wait = Duration::from_secs(seconds) + ANSWER_TIMEOUT;
        let call = |peer: &crate::grpc::client::peers::Peer| ReloadRequest {
            instance_id: peer.instance_id.clone(),
            ..request.clone()
        };
        let outcomes = self.peers.pass_on(peers, call, max_wait, passed_on).await;
        for (instance_id, outcome) in &outcomes {
            if matches!(outcome, Outcome::Unreachable(_) | Outcome::Unimplemented) {
                self.registry.request_reload(instance_id);
            }
        }
        let done = all_done(outcomes)?;
        let message = match &done[..] {
            [] => "no module is registered: nothing was reloaded".to_owned(),
            [(id, answer)] => format!("{id}: {}", answer.message),
            all => format!("{} instances reloaded", all.len()),
        };
        Ok(ReloadResponse { success: true, message, error: None })
    }

    /// Shuts a module down, after a drain if the request is graceful. A module that then refuses gets its
    /// flows back. Without a drain the module gets no new flows once it agrees, and not only once its lease
    /// expires.
    pub async fn shut_down(
        self,
        request: ShutdownRequest,
        passed_on: bool,
    ) -> Result<ShutdownResponse, CallError> {
        if request.instance_id.is_empty() {
            return Err(FieldViolation::new(
                "instance_id",
                "is empty; name one: the fleet is not shut down as a whole",
            )
            .into());
        }
        let id = validate::id("instance_id", &request.instance_id)?;
        let timeout = drain_timeout("timeout_seconds", request.timeout_seconds)?;
        let timeout = timeout.unwrap_or(self.registry.settings().drain_timeout);
        let (module, drained_before, epoch) = {
            let snapshot = self.registry.snapshot();
            let record = snapshot.record(&id)?;
            (peer(record), record.drain.is_some(), record.epoch)
        };
        let drains = request.graceful && !passed_on;
        let mut drained = None;
        let mut shut_down = Ok(());
        if drains {
            let draining = self.registry.begin_maintenance(&id)?;
            shut_down = self.applied(draining.revision).await;
            if shut_down.is_ok() {
                let (traffic, deadline) = (self.traffic.clone(), Instant::now() + timeout);
                drained = Some(drain::wait(&self.registry, &id, draining.epoch, traffic, deadline).await);
            }
        }
        if shut_down.is_ok() {
            let outcome = self.peers.pass_on_to(module, request, passed_on).await;
            shut_down = all_done(vec![(id.clone(), outcome)]).map(drop);
        }
        if let Err(failure) = shut_down {
            // Unless the module has left, or has begun to leave by itself.
            if drains
                && !drained_before
                && let Ok(revision) = self.registry.resume(&id)
            {
                self.applied(revision).await?;
            }
            return Err(failure);
        }
        // Unless the module has left, or has registered again.
        let is_there = self.registry.snapshot().record(&id).is_ok_and(|record| record.epoch == epoch);
        if !drains
            && is_there
            && let Ok(stopping) = self.registry.begin_maintenance(&id)
        {
            self.applied(stopping.revision).await?;
        }
        let message = match drained {
            None => format!("{id} shuts down; it gets no new flows"),
            Some(drain::Drained { left: 0, kept, .. }) => {
                format!("{id} shuts down; its {kept} flows had closed")
            }
            Some(drain::Drained { left, kept, .. }) => {
                format!("{id} shuts down; {left} {kept} flows were left")
            }
        };
        Ok(ShutdownResponse { success: true, message, error: None })
    }
}
