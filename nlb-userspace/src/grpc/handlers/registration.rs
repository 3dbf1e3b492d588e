//! The registration of modules, their heartbeats, and their listing.

use std::collections::BTreeMap;

use nlb_proto::{
    GetModuleInfoRequest, GetModuleInfoResponse, GetStatusRequest, HealthStatus, HeartbeatRequest,
    HeartbeatResponse, ListModulesRequest, ListModulesResponse, ModuleInstance, ModuleType,
    RegisterModuleRequest, RegisterModuleResponse, UnregisterModuleRequest, UnregisterModuleResponse,
};
use tokio::time::Instant;

use super::control::Control;
use crate::controllers::drain;
use crate::controllers::resolve::Unservable;
use crate::grpc::client::peers::{ANSWER_TIMEOUT, Outcome, Peer, Peers};
use crate::grpc::convert::error::CallError;
use crate::grpc::convert::numbers::signed_32;
use crate::grpc::convert::route::{self, Author};
use crate::grpc::convert::validate::{self, FieldViolation};
use crate::grpc::convert::{enums, health_check, heartbeat_report, instance, pagination, split};
use crate::model::DataAddresses;
use crate::model::clock::Now;
use crate::model::endpoint::Endpoint;
use crate::model::traffic::{Counts, Traffic};
use crate::policy::lease::LeaseState;
use crate::registry::{Admission, Claim, Record, Registered, Registration, RegistryError};

const LONGEST_DRAIN_SECONDS: i32 = 3600;

impl Control {
    /// Registers a module. `proof` is the registration_id of the earlier registration, if the call has it in
    /// its metadata.
    pub async fn register(
        &self,
        request: RegisterModuleRequest,
        proof: String,
    ) -> Result<RegisterModuleResponse, CallError> {
        let settings = self.registry.settings();
        let message = request.instance.ok_or_else(|| FieldViolation::new("instance", "is missing"))?;
        let parsed = instance::parse(message, settings.forward_mode);
        let (mut registration, mut claim) = parsed.map_err(|violation| violation.within("instance"))?;
        if claim == Claim::None && !proof.is_empty() {
            claim = Claim::RegistrationId(proof);
        }
        let parsed =
            route::parse_all("initial_routes", request.initial_routes, Author::Module, &settings.vips)?;
        registration.module.routes = parsed.routes;
        registration.capabilities = validate::text_map("capabilities", request.capabilities)?;
        let check = request.health_config.map(health_check::parse).transpose();
        registration.check = check.map_err(|violation| violation.within("health_config"))?;
        registration.module.data = self.resolve(&registration).await?;

        let instance_id = registration.instance_id.clone();
        let unenforced = route::unenforced(&registration.module.routes);
        let taken = self.taken_from_host(&registration.module.routes);
        let checked =
            registration.check.as_ref().map(|check| format!("no new flows until it passes {check}"));
        let now = Now::read();
        let address = registration.address.clone();
        let registered = self.register_or_probe(registration, claim, now).await?;
        let displaced = self.displace_others(&instance_id, &address).await;
        self.applied(displaced.unwrap_or(registered.revision)).await?;

        let text = match registered.admission {
            Admission::New => "registered",
            Admission::Superseding => "registered, superseding the earlier registration",
            Admission::Renewed => "registered again; the registration of this process continues",
            Admission::Outdated => {
                return Ok(accepted(
                    &registered,
                    "nothing was changed: a later call of this process came before".to_owned(),
                ));
            }
        };
        let text =
            [Some(text.to_owned()), parsed.refused, unenforced, checked, taken, self.unserved(&instance_id)];
        let text = text.into_iter().flatten();
        Ok(accepted(&registered, text.collect::<Vec<_>>().join("; ")))
    }

    /// Resolves the module's data addresses. Those in use stay if the names still resolve to them.
    async fn resolve(&self, registration: &Registration) -> Result<DataAddresses, CallError> {
        let snapshot = self.registry.snapshot();
        let in_use = snapshot.record(&registration.instance_id).map(|old| old.registration.module.data);
        let data = self.resolver.resolve(&registration.data_hosts, in_use.unwrap_or_default()).await?;
        match self.resolver.obstacle(data, registration.module.mode).await {
            None => Ok(data),
            Some(Unservable::NotDirectly(address, locality)) => {
                let problem = format!("{address} is {locality}; use nat");
                Err(FieldViolation::new("instance.metadata.forward_mode", problem).into())
            }
            Some(Unservable::Unreachable(address, why)) => Err(CallError::Unreachable { address, why }),
        }
    }

    /// The module's routes that get no traffic, and why.
    fn unserved(&self, instance_id: &str) -> Option<String> {
        let applied = self.applied.borrow();
        let own = applied
            .image
            .unserved
            .iter()
            .filter_map(|line| line.strip_prefix(instance_id)?.strip_prefix('/'));
        let own: Vec<&str> = own.collect();
        (!own.is_empty()).then(|| format!("without traffic: {}", own.join(", ")))
    }

    /// A new process that claims the id of a valid registration gets it if that instance does not answer at
    /// its address: nobody does, or another instance that got the address.
    async fn register_or_probe(
        &self,
        newcomer: Registration,
        claim: Claim,
        now: Now,
    ) -> Result<Registered, CallError> {
        match self.registry.register(newcomer.clone(), &claim, now) {
            Err(RegistryError::Taken { instance_id, address, epoch })
                if !self.resolver.answers(&address).await
                    || who_answers(&address).await.is_some_and(|id| id != instance_id) =>
            {
                Ok(self.registry.register(newcomer, &Claim::Silent { epoch }, now)?)
            }
            registered => Ok(registered?),
        }
    }

    /// Ends new flows to instances that are registered at the address of a newcomer, if the newcomer answers
    /// there. They have lost the address, and get new flows again when they register another.
    async fn displace_others(&self, newcomer: &str, address: &Endpoint) -> Option<u64> {
        let snapshot = self.registry.snapshot();
        let others = snapshot.modules.iter().filter(|(id, record)| {
            *id != newcomer
                && record.registration.address == *address
                && record.lease_state == LeaseState::Valid
        });
        let others: Vec<(&String, u64)> = others.map(|(id, record)| (id, record.epoch)).collect();
        if others.is_empty() || who_answers(address).await.as_deref() != Some(newcomer) {
            return None;
        }
        let now = Now::read();
        others.into_iter().filter_map(|(id, epoch)| self.registry.displace(id, epoch, now)).max()
    }

    pub async fn unregister(
        &self,
        request: UnregisterModuleRequest,
    ) -> Result<UnregisterModuleResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
        let timeout = drain_timeout("drain_timeout_seconds", request.drain_timeout_seconds)?;
        if !request.graceful {
            let revision = self.registry.unregister(&id, &request.registration_id)?;
            self.applied(revision).await?;
            return Ok(UnregisterModuleResponse {
                success: true,
                message: "unregistered at once; its flows are cut off".to_owned(),
                ..Default::default()
            });
        }
        let deadline = Instant::now() + timeout.unwrap_or(self.registry.settings().drain_timeout);
        let draining = self.registry.begin_leaving(&id, &request.registration_id)?;
        let control = self.clone();
        // A separate task: the drain continues if the caller disconnects.
        let leaving = tokio::spawn(async move {
            // If the maps do not hold the drain, there is nothing to wait for, and the module leaves all the
            // same.
            let drains = control.applied(draining.revision).await;
            let drained = match &drains {
                Ok(()) => {
                    let traffic = control.traffic.clone();
                    drain::wait(&control.registry, &id, draining.epoch, traffic, deadline).await
                }
                Err(_) => drain::Drained::nothing(),
            };
            let removed = control.registry.remove(&id, draining.epoch);
            match removed {
                Some(revision) => control.applied(revision).await.and(drains).map(|()| (drained, true)),
                None => drains.map(|()| (drained, false)),
            }
        });
        let (drained, removed) = leaving.await.expect("the drain does not panic")?;
        let message = match drained {
            _ if !removed => {
                "ended: the id was registered again, or unregistered, while it drained".to_owned()
            }
            drain::Drained { left: 0, kept, .. } => format!("unregistered; every {kept} flow had closed"),
            drain::Drained { left, kept, .. } => {
                format!("unregistered at the deadline; {left} {kept} flows are cut off")
            }
        };
        Ok(UnregisterModuleResponse {
            success: true,
            message,
            active_connections_drained: signed_32(drained.closed),
            error: None,
        })
    }

    pub async fn heartbeat(&self, request: HeartbeatRequest) -> Result<HeartbeatResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
        let status = validate::known_or_unspecified::<HealthStatus>(request.status);
        let report = request.current_stats.map(|stats| heartbeat_report::parse(&id, stats)).transpose();
        let report = report.map_err(|violation| violation.within("current_stats"))?;
        validate::time("timestamp", request.timestamp)?;

        let now = Now::read();
        let health = enums::health_from_wire(status);
        let revision = self.registry.heartbeat(&id, &request.registration_id, health, report, now)?;
        // The lease is renewed even if the maps do not hold the change.
        let applied = match revision {
            Some(revision) => self.applied(revision).await,
            None => Ok(()),
        };
        let snapshot = self.registry.snapshot();
        let drains = snapshot.record(&id).is_ok_and(|record| record.drain.is_some());
        let outcome = self.scaling.record_heartbeat(&id, &snapshot, &self.traffic.borrow(), now.at);
        if let Some(order) = outcome.order {
            self.scale(order);
        }
        let message = match applied {
            Err(failure) => failure.to_string(),
            Ok(()) if drains => "draining: no new flows".to_owned(),
            Ok(()) => "lease renewed".to_owned(),
        };
        let interval = self.registry.settings().lease.interval.as_secs_f64().to_string();
        let instances = outcome.asked_for.map(|number| ("scale_to".to_owned(), number.to_string()));
        let instructions = [("heartbeat_interval_seconds".to_owned(), interval)].into_iter().chain(instances);
        Ok(HeartbeatResponse {
            acknowledged: true,
            message,
            server_time: Some(now.wall.into()),
            should_reload: self.registry.take_reload(&id),
            should_scale: outcome.asked_for.is_some(),
            instructions: instructions.collect(),
        })
    }

    pub fn list_modules(&self, request: ListModulesRequest) -> Result<ListModulesResponse, CallError> {
        let module_type = validate::known::<ModuleType>("module_type_filter", request.module_type_filter)?;
        let status = validate::known::<HealthStatus>("status_filter", request.status_filter)?;
        let modules = self.instances_like(module_type, status);
        let (modules, pagination) = pagination::run(request.query, modules)?;
        Ok(ListModulesResponse {
            modules,
            total_modules: pagination.total_items,
            pagination: Some(pagination),
        })
    }

    pub fn module_info(&self, request: GetModuleInfoRequest) -> Result<GetModuleInfoResponse, CallError> {
        let id = validate::id("instance_id", &request.instance_id)?;
        let snapshot = self.registry.snapshot();
        let record = snapshot.record(&id)?;
        let counts = self.traffic.borrow().instance(&id);
        Ok(GetModuleInfoResponse {
            instance: Some(instance::render(record, counts)),
            routes: record.registration.module.routes.iter().map(|(id, r)| route::render(id, r)).collect(),
            stats: Some(self.known_stats_of(record)),
            deployment_config: split::render(&snapshot, &record.registration.module.deployment),
            details: details(record, counts)
                .into_iter()
                .chain(self.scaling.details(record, &snapshot, Instant::now()))
                .collect(),
        })
    }

    /// Registered instances of this type and status; the unspecified value matches all.
    pub fn instances_like(&self, module_type: ModuleType, status: HealthStatus) -> Vec<ModuleInstance> {
        let mut instances = self.instances();
        instances.retain(|instance| {
            (module_type == ModuleType::Unspecified || instance.module_type() == module_type)
                && (status == HealthStatus::Unspecified || instance.health_status() == status)
        });
        instances
    }

    pub fn instances(&self) -> Vec<ModuleInstance> {
        let counts = by_instance(&self.traffic.borrow());
        let snapshot = self.registry.snapshot();
        let instances = snapshot.modules.iter();
        instances
            .map(|(id, record)| instance::render(record, counts.get(id).copied().unwrap_or_default()))
            .collect()
    }
}

pub(crate) fn by_instance(traffic: &Traffic) -> BTreeMap<String, Counts> {
    let mut by_instance = BTreeMap::<String, Counts>::new();
    for (backend, counts) in &traffic.backends {
        let sum = by_instance.entry(backend.instance_id.clone()).or_default();
        *sum = [*sum, *counts].into_iter().sum();
    }
    by_instance
}

fn accepted(registered: &Registered, message: String) -> RegisterModuleResponse {
    RegisterModuleResponse {
        success: true,
        message,
        registration_id: registered.registration_id.reveal().to_owned(),
        registered_at: Some(registered.registered_at.into()),
        error: None,
    }
}

/// The id of the instance that serves GetStatus at an address; `None` if nobody does, or gives no id. The
/// call has a connection of its own: one that was kept may lead to a process that is gone.
async fn who_answers(address: &Endpoint) -> Option<String> {
    let peer = Peer { instance_id: String::new(), address: address.clone() };
    match Peers::default().ask(&peer, GetStatusRequest::default(), ANSWER_TIMEOUT).await {
        Outcome::Done(answer) => Some(answer.instance?.instance_id).filter(|id| !id.is_empty()),
        _ => None,
    }
}

/// `None` for 0, which selects the configured timeout.
pub(crate) fn drain_timeout(
    field: &str,
    seconds: i32,
) -> Result<Option<std::time::Duration>, FieldViolation> {
    match seconds {
        0 => Ok(None),
        1..=LONGEST_DRAIN_SECONDS => Ok(Some(std::time::Duration::from_secs(seconds.unsigned_abs().into()))),
        _ => Err(FieldViolation::new(
            field,
            format!("{seconds} is out of bounds; give 0 to {LONGEST_DRAIN_SECONDS}"),
        )),
    }
}

pub(crate) fn details(record: &Record, counts: Counts) -> BTreeMap<String, String> {
    let registration = &record.registration;
    let Registration { module, capabilities, .. } = registration;
    let addresses = [module.data.v4.map(|a| a.to_string()), module.data.v6.map(|a| a.to_string())];
    let lease = match record.lease_state {
        LeaseState::Valid => "current",
        LeaseState::Expired | LeaseState::Evicted => "lapsed",
    };
    let silence = record.lease.age(Instant::now()).as_secs();
    let mut details = BTreeMap::from([
        ("deployment".to_owned(), module.deployment.to_string()),
        ("data_address".to_owned(), addresses.into_iter().flatten().collect::<Vec<_>>().join(",")),
        ("forward_mode".to_owned(), enums::forward_mode_name(module.mode).to_owned()),
        ("snat".to_owned(), enums::snat_name(module.snat).to_owned()),
        ("lease".to_owned(), lease.to_owned()),
        ("seconds_since_heartbeat".to_owned(), silence.to_string()),
        ("draining".to_owned(), record.drain.is_some().to_string()),
        ("new_flows".to_owned(), counts.new_flows.to_string()),
        ("active_flows".to_owned(), counts.active_flows.to_string()),
        ("packets".to_owned(), counts.packets.to_string()),
        ("bytes".to_owned(), counts.bytes.to_string()),
        ("reply_packets".to_owned(), counts.reply_packets.to_string()),
        ("reply_bytes".to_owned(), counts.reply_bytes.to_string()),
        ("resets".to_owned(), counts.resets.to_string()),
    ]);
    details.extend(registration.check.as_ref().map(|check| ("health_check".to_owned(), check.to_string())));
    details.extend(record.signals().by_source().map(|(source, health)| {
        let text = match record.signal(source).map(|signal| signal.why.as_str()) {
            None | Some("") => enums::health_name(health).to_owned(),
            Some(why) => format!("{}: {why}", enums::health_name(health)),
        };
        (format!("health.{source}"), text)
    }));
    details.extend(capabilities.iter().map(|(key, value)| (format!("capability.{key}"), value.clone())));
    details
}
