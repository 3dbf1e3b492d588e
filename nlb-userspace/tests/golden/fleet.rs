//! The control plane of a scenario, and its calls as protobuf messages.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use nlb::compile::MapImage;
use nlb::controllers::resolve::Resolver;
use nlb::datapath::maps::fake::FakeMaps;
use nlb::grpc::Control;
use nlb::model::can_handle::Question;
use nlb::model::clock::Now;
use nlb::model::destination::L4Destination;
use nlb::model::next_hop::{Hop, Hops};
use nlb::model::settings::Settings;
use nlb::model::{Ability, RouteKey};
use nlb::reconcile;
use nlb::reconcile::change::Change;
use nlb::registry::Registry;
use nlb::telemetry::metrics::{Recorder, Sources};
use nlb_common::hash;
use nlb_proto::module_service_server::ModuleService as _;
use nlb_proto::nlb_service_server::NlbService as _;
use nlb_proto::operator_service_server::OperatorService as _;
use nlb_proto::*;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Request, Response, Status};

use super::settings::StateDir;

pub struct Fleet {
    control: Control,
    maps: FakeMaps,
    hops: watch::Sender<Arc<Hops>>,
    registration_ids: BTreeMap<String, String>,
    /// The number of changes that `changes` has returned already.
    returned: usize,
    _state_dir: StateDir,
    _tasks: JoinSet<()>,
}

impl Fleet {
    pub fn start(settings: Settings) -> Fleet {
        let limits = settings.limits;
        let registry = Arc::new(Registry::new(settings));
        let maps = FakeMaps::default();
        let (publish_applied, applied) = watch::channel(Arc::default());
        let (hops, read_hops) = watch::channel(Arc::default());
        let mut tasks = JoinSet::new();
        let store = Box::new(maps.clone());
        tasks.spawn(reconcile::run(
            registry.desired(),
            read_hops,
            publish_applied,
            MapImage::empty(limits),
            store,
        ));
        let leases = nlb::controllers::lease_watcher::watch(registry.clone());
        tasks.spawn(async move { match leases.await {} });
        let state_dir = StateDir::new();
        let (publish_stored, stored) = watch::channel(Default::default());
        let storing = nlb::store::keep(state_dir.path().to_owned(), registry.persisted(), publish_stored);
        tasks.spawn(async move { match storing.await {} });
        let traffic = watch::channel(Arc::default()).1;
        let sources = Sources {
            registry: registry.clone(),
            applied: applied.clone(),
            traffic: traffic.clone(),
            started_at: SystemTime::now(),
        };
        let control = Control {
            registry,
            applied,
            stored,
            // There are no counters: drains last until their deadline.
            traffic,
            metrics: Recorder::new(sources, 1 << 20).1,
            resolver: Resolver::with(|_| async { Err(std::io::Error::other("scenarios have no names")) }),
            host_ports: Arc::new(|| Ok(Default::default())),
            peers: Default::default(),
            scaling: Default::default(),
            address: ([127, 0, 0, 1], 50051).into(),
            started_at: SystemTime::now(),
            configuration: Default::default(),
            details: Vec::new(),
        };
        Fleet {
            control,
            maps,
            hops,
            registration_ids: BTreeMap::new(),
            returned: 0,
            _state_dir: state_dir,
            _tasks: tasks,
        }
    }

    pub async fn register(&mut self, instance: ModuleInstance, routes: Vec<Route>) -> String {
        let id = instance.instance_id.clone();
        let request =
            RegisterModuleRequest { instance: Some(instance), initial_routes: routes, ..Default::default() };
        let answer = self.control.register_module(Request::new(request)).await;
        if let Ok(answer) = &answer
            && answer.get_ref().success
        {
            self.registration_ids.insert(id, answer.get_ref().registration_id.clone());
        }
        line(answer, |answer| (answer.success, answer.message))
    }

    /// The module's CanHandle answer about its own route, or the operator's or learned one of that id; `None`
    /// if it cannot handle the route.
    pub async fn say_ability(&mut self, id: &str, route_id: &str, priority: Option<i32>) -> String {
        let ability = Ability { can_handle: priority.is_some(), priority: priority.unwrap_or_default() };
        let registry = &self.control.registry;
        let snapshot = registry.snapshot();
        let learned = RouteKey { id: route_id.to_owned(), operators: true };
        let operators = snapshot.operator_routes.contains_key(route_id) || snapshot.is_learned(&learned);
        let route = RouteKey { operators, ..learned };
        registry.set_abilities([(Question { instance_id: id.to_owned(), route }, ability)].into());
        // Time for the reconciler, which this call does not wait for.
        tokio::time::sleep(Duration::from_millis(1)).await;
        String::new()
    }

    /// A destination that no route covers, and the CanHandle answer of one module about it.
    pub async fn learn(&mut self, wanted: L4Destination, id: &str, priority: Option<i32>) -> String {
        let ability = Ability { can_handle: priority.is_some(), priority: priority.unwrap_or_default() };
        let learned = self.control.registry.learn(wanted, &[(id.to_owned(), ability)].into(), Now::read());
        match learned {
            Ok(_) => "ok: learned\n".to_owned(),
            Err(reason) => format!("refused: {reason}\n"),
        }
    }

    /// With a timeout: gracefully.
    pub async fn unregister(&mut self, id: &str, drain_timeout_seconds: Option<i32>) -> String {
        let request = UnregisterModuleRequest {
            instance_id: id.to_owned(),
            registration_id: self.registration_id(id),
            graceful: drain_timeout_seconds.is_some(),
            drain_timeout_seconds: drain_timeout_seconds.unwrap_or_default(),
        };
        line(self.control.unregister_module(Request::new(request)).await, |a| (a.success, a.message))
    }

    pub async fn heartbeat(&mut self, id: &str, status: HealthStatus) -> String {
        let request = HeartbeatRequest {
            instance_id: id.to_owned(),
            registration_id: self.registration_id(id),
            status: status.into(),
            ..Default::default()
        };
        let answer =
            nlb_proto::nlb_service_server::NlbService::heartbeat(&self.control, Request::new(request));
        line(answer.await, |answer| (answer.acknowledged, answer.message))
    }

    /// Sets a weight like a call that a module passes on: no module is called, for there are none at these
    /// addresses.
    /// Names the deployment in the call's metadata, unless it is empty.
    pub async fn weigh(&mut self, instance_id: &str, version: &str, weight: i32, deployment: &str) -> String {
        let mut request = Request::new(SetTrafficWeightRequest {
            instance_id: instance_id.to_owned(),
            version: version.to_owned(),
            weight,
        });
        request.metadata_mut().insert("nlb-passed-on", "1".parse().expect("ASCII"));
        if !deployment.is_empty() {
            request.metadata_mut().insert("deployment", deployment.parse().expect("ASCII"));
        }
        line(self.control.set_traffic_weight(request).await, |answer| (answer.success, answer.message))
    }

    /// Without a source: the operator's own routes.
    pub async fn update_routing(&mut self, source: &str, routes: Vec<Route>, replace_all: bool) -> String {
        let request = UpdateRoutingRequest {
            routes,
            replace_all,
            source_instance_id: source.to_owned(),
            registration_id: self.registration_id(source),
            validate_only: false,
        };
        let answer =
            nlb_proto::nlb_service_server::NlbService::update_routing(&self.control, Request::new(request));
        line(answer.await, |answer| {
            let errors = answer.validation_errors.iter().map(|error| format!("; {error}"));
            (answer.success, format!("{}{}", answer.message, errors.collect::<String>()))
        })
    }

    pub async fn limit(&mut self, limit: RateLimit) -> String {
        let request = SetRateLimitRequest { instance_id: String::new(), limit: Some(limit) };
        let answer = nlb_proto::module_service_server::ModuleService::set_rate_limit(
            &self.control,
            Request::new(request),
        )
        .await;
        line(answer, |a| (a.success, a.message))
    }

    pub async fn unlimit(&mut self, id: &str) -> String {
        let request = RemoveRateLimitRequest { instance_id: String::new(), limit_id: id.to_owned() };
        let answer = nlb_proto::module_service_server::ModuleService::remove_rate_limit(
            &self.control,
            Request::new(request),
        )
        .await;
        line(answer, |a| (a.success, a.message))
    }

    pub async fn drain(&mut self, id: &str, timeout_seconds: i32) -> String {
        let request = DrainModuleRequest { instance_id: id.to_owned(), timeout_seconds };
        line(self.control.drain_module(Request::new(request)).await, |a| (a.success, a.message))
    }

    pub async fn resume(&mut self, id: &str) -> String {
        let request = ResumeModuleRequest { instance_id: id.to_owned() };
        line(self.control.resume_module(Request::new(request)).await, |a| (a.success, a.message))
    }

    /// The kernel has resolved the next hop to an address, or forgotten it.
    pub fn hop(&mut self, address: IpAddr, source: Option<IpAddr>) {
        self.hops.send_modify(|hops| {
            let hops = Arc::make_mut(hops);
            match source {
                Some(source) => {
                    let hop =
                        Hop { hop: Default::default(), source, mtu: 1500, link_prefix: 24, local: false };
                    hops.insert(address, hop);
                }
                None => drop(hops.remove(&address)),
            }
        });
    }

    pub fn fail_after(&mut self, successes: usize, failures: usize) {
        self.maps.fail_after(successes, failures);
    }

    pub fn dump(&self) -> String {
        self.maps.dump()
    }

    /// The reconciler's error, if there is one.
    pub fn error(&self) -> String {
        let applied = self.control.applied.borrow();
        match &applied.error {
            None => format!("revision {}: applied\n", applied.revision),
            Some(error) => format!("revision {}: {error}\n", applied.revision),
        }
    }

    /// The changes of the maps since the last call.
    pub fn changes(&mut self) -> String {
        let applied = self.maps.applied();
        let new = applied[self.returned..].iter().map(|change| match change {
            Change::SetBackend(id, _) => format!("set backend {id}\n"),
            Change::ClearBackend(id) => format!("clear backend {id}\n"),
            Change::SetVip(id, _) => format!("set vip {id}\n"),
            Change::SetPool(id, _) => format!("set pool {id}\n"),
            Change::ClearPool(id) => format!("clear pool {id}\n"),
            Change::SetSource(service, _, pool) => format!("set source of service {service}: pool {pool}\n"),
            Change::ClearSource(service, _) => format!("clear source of service {service}\n"),
            Change::SetServer(key, backend) => {
                format!("set server of service {}: backend {backend}\n", key.service())
            }
            Change::ClearServer(key) => format!("clear server of service {}\n", key.service()),
            Change::SetService(id, _) => format!("set service {id}\n"),
            Change::ClearService(id) => format!("clear service {id}\n"),
            Change::ReplaceServiceIds(ids) => format!("replace service ids: {} in all\n", ids.len()),
            Change::ReplaceAddresses(addresses) => format!("replace addresses: {} in all\n", addresses.len()),
            Change::SetLimit(id, _) => format!("set limit {id}\n"),
            Change::RestartLimit(id) => format!("restart limit {id}\n"),
            Change::ClearLimit(id) => format!("clear limit {id}\n"),
            Change::SetCapacity(id, row) => format!("set capacity {id}: {}\n", row.limit),
            Change::RestartCapacity(id) => format!("restart capacity {id}\n"),
            Change::ClearCapacity(id) => format!("clear capacity {id}\n"),
            Change::SetLimitedSource(_, limits) => format!("set limited source: {limits:?}\n"),
            Change::ClearLimitedSource(_) => "clear limited source\n".to_owned(),
            Change::SetCommonLimits(limits) => format!("set common limits: {:?}\n", limits.all),
        });
        let new: String = new.collect();
        self.returned = applied.len();
        if new.is_empty() { "none\n".to_owned() } else { new }
    }

    /// The pools by content instead of by id: each backend's share, and a digest of the backends of all
    /// slots.
    pub fn owners(&self) -> String {
        let rows = self.maps.rows();
        let name = |id: u16| match rows.backends.get(&id) {
            Some(backend) => format!("{:?}:{:?}", backend.addr, backend.port),
            None => "nobody".to_owned(),
        };
        let mut lines: Vec<String> = Vec::new();
        for table in rows.pools.values() {
            let owners: Vec<String> = table.iter().map(|id| name(*id)).collect();
            let mut shares = BTreeMap::<&str, u32>::new();
            let mut digest = 0;
            for owner in &owners {
                *shares.entry(owner).or_default() += 1;
                digest = owner.bytes().fold(digest, |digest, byte| hash::word(digest ^ u64::from(byte)));
            }
            let shares: String =
                shares.iter().map(|(owner, slots)| format!(" {owner} has {slots}")).collect();
            lines.push(format!("table {digest:016x}:{shares}\n"));
        }
        lines.sort();
        lines.concat()
    }

    fn registration_id(&self, instance_id: &str) -> String {
        self.registration_ids.get(instance_id).cloned().unwrap_or_default()
    }
}

/// An answer as one line.
fn line<T>(answer: Result<Response<T>, Status>, read: impl FnOnce(T) -> (bool, String)) -> String {
    match answer.map(|answer| read(answer.into_inner())) {
        Ok((true, message)) => format!("ok: {message}\n"),
        Ok((false, message)) => format!("refused: {message}\n"),
        Err(status) => format!("{:?}: {}\n", status.code(), status.message()),
    }
}
