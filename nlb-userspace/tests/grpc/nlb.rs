//! An NLB without a kernel: everything above the maps is real.

use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use nlb::compile::MapImage;
use nlb::config::Configuration;
use nlb::controllers::resolve::Resolver;
use nlb::controllers::{health_checks, reset_watcher, route_learning};
use nlb::datapath::maps::fake::FakeMaps;
use nlb::grpc::{self, Control, Peers, Prober};
use nlb::model::clock::Now;
use nlb::model::host::HostPorts;
use nlb::model::next_hop::{Hop, Hops};
use nlb::model::settings::Settings;
use nlb::model::traffic::{Counts, Traffic};
use nlb::model::upcall::{NegativeEntry, QUEUE, Question};
use nlb::model::{Backend, ForwardMode, L4, RouteKey};
use nlb::policy::health::{Probe, Target};
use nlb::reconcile;
use nlb::registry::Registry;
use nlb::store;
use nlb::telemetry::metrics::{Recorder, Sources};
use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::operator_service_client::OperatorServiceClient;
use tokio::net::TcpListener;
use tokio::sync::{Notify, mpsc, watch};
use tonic::transport::Channel;

use super::settings::StateDir;

/// Dropping it ends the server and its tasks.
pub struct Nlb {
    pub modules: NlbServiceClient<Channel>,
    pub front: ModuleServiceClient<Channel>,
    pub operator: OperatorServiceClient<Channel>,
    pub maps: FakeMaps,
    pub registry: Arc<Registry>,
    pub traffic: watch::Sender<Arc<Traffic>>,
    /// Whether health checks of data addresses pass: no server listens there in these tests.
    pub passes: watch::Sender<bool>,
    /// The targets of health checks.
    pub tried: Arc<Mutex<Vec<Target>>>,
    pub address: SocketAddr,
    /// Makes the server stop.
    pub stop: Arc<Notify>,
    peers: Peers,
    tasks: tokio::task::JoinSet<()>,
    _state_dir: Option<StateDir>,
}

/// Settings with a VIP of either family.
pub fn settings() -> Settings {
    let vips = ["192.0.2.1/32", "2001:db8::1/128"];
    let vips = vips.iter().map(|vip| vip.parse::<ipnet::IpNet>().unwrap()).collect();
    Settings { vips, ..super::settings::settings() }
}

impl Nlb {
    pub async fn start() -> Nlb {
        Nlb::with(settings()).await
    }

    pub async fn with(settings: Settings) -> Nlb {
        let state_dir = StateDir::new();
        let nlb = Nlb::configured(settings, Configuration::default(), state_dir.path()).await;
        Nlb { _state_dir: Some(state_dir), ..nlb }
    }

    /// With the persisted state of this directory.
    pub async fn configured(settings: Settings, configuration: Configuration, state_dir: &Path) -> Nlb {
        let limits = settings.limits;
        let persisted = store::read(state_dir).expect("a valid file");
        let registry = Registry::restore(settings, persisted, Now::read()).expect("the persisted state fits");
        let registry = Arc::new(registry);
        let maps = FakeMaps::default();
        let (publish_applied, applied) = watch::channel(Arc::default());
        let (traffic, read_traffic) = watch::channel(Arc::default());
        let (publish_hops, hops) = watch::channel(Arc::new(known_hops()));
        let peers = Peers::default();
        let prober = Prober::new(peers.clone(), hops.clone());
        let mut tasks = tokio::task::JoinSet::new();
        let (desired, store) = (registry.desired(), Box::new(maps.clone()));
        tasks.spawn(async move {
            let _open = publish_hops;
            reconcile::run(desired, hops, publish_applied, MapImage::empty(limits), store).await;
        });
        let (publish_stored, stored) = watch::channel(Default::default());
        let storing = store::keep(state_dir.to_owned(), registry.persisted(), publish_stored);
        tasks.spawn(async move { match storing.await {} });
        let leases = nlb::controllers::lease_watcher::watch(registry.clone());
        tasks.spawn(async move { match leases.await {} });

        let tried = Arc::<Mutex<Vec<Target>>>::default();
        let trying = tried.clone();
        let (passes, passing) = watch::channel(true);
        let checks = health_checks::watch(registry.clone(), move |target| {
            trying.lock().unwrap().push(target.clone());
            let (prober, passes) = (prober.clone(), *passing.borrow());
            async move {
                match target.probe {
                    Probe::Module { .. } => prober.probe(target).await,
                    _ if passes => Ok(()),
                    _ => Err("injected failure".to_owned()),
                }
            }
        });
        let resets = reset_watcher::watch(registry.clone(), read_traffic.clone());
        tasks.spawn(async move { match checks.await {} });
        tasks.spawn(async move { match resets.await {} });

        let sources = Sources {
            registry: registry.clone(),
            applied: applied.clone(),
            traffic: read_traffic.clone(),
            started_at: SystemTime::now(),
        };
        let (recorder, metrics) = Recorder::new(sources, 1 << 20);
        tasks.spawn(async move { match recorder.run().await {} });
        let peers = Peers::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port on loopback");
        let address = listener.local_addr().unwrap();
        let control = Control {
            registry: registry.clone(),
            applied,
            stored,
            traffic: read_traffic,
            metrics,
            resolver: Resolver::with(|name| async move {
                match name.as_str() {
                    "alb-001" => Ok(vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()]),
                    _ => Err(std::io::Error::other("no such host")),
                }
            }),
            host_ports: Arc::new(|| {
                Ok(HostPorts {
                    addresses: ["2001:db8::1".parse().unwrap()].into(),
                    listening: [("[::]:9100".parse().unwrap(), L4::Tcp)].into(),
                    protected: [22].into(),
                })
            }),
            peers: peers.clone(),
            scaling: Default::default(),
            address,
            started_at: SystemTime::now(),
            configuration: Arc::new(configuration),
            details: vec![("interfaces".into(), "none".into())],
        };
        let stop = Arc::new(Notify::new());
        let stopped = stop.clone();
        tasks.spawn(async move {
            grpc::serve(listener, control, async move { stopped.notified().await })
                .await
                .expect("the server runs");
        });
        let channel = Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap();
        Nlb {
            modules: NlbServiceClient::new(channel.clone()),
            front: ModuleServiceClient::new(channel.clone()),
            operator: OperatorServiceClient::new(channel),
            maps,
            registry,
            traffic,
            passes,
            tried,
            address,
            stop,
            peers,
            tasks,
            _state_dir: None,
        }
    }

    /// Starts polling CanHandle. Modules' addresses have to be on loopback.
    pub fn poll_can_handle(&mut self) {
        let asking = grpc::poll_can_handle(self.registry.clone(), self.peers.clone());
        self.tasks.spawn(async move { match asking.await {} });
    }

    /// Starts polling GetActiveVersion.
    pub fn poll_active_versions(&mut self) {
        let asking =
            grpc::poll_active_versions(self.registry.clone(), self.peers.clone(), Duration::from_millis(50));
        self.tasks.spawn(async move { match asking.await {} });
    }

    /// Starts asking modules about destinations without a route. Returns the kernel's end of the channel.
    pub fn answer_upcalls(&mut self) -> (mpsc::Sender<Question>, mpsc::Receiver<NegativeEntry>) {
        let (questions, asked) = mpsc::channel(QUEUE);
        let (answers, closed) = mpsc::channel(QUEUE);
        let line = route_learning::UpcallChannel { questions: asked, answers };
        let ask_can_handle = grpc::ask_can_handle(self.registry.clone(), self.peers.clone());
        let learning =
            route_learning::watch(self.registry.clone(), self.traffic.subscribe(), line, ask_can_handle);
        self.tasks.spawn(async move { match learning.await {} });
        (questions, closed)
    }

    /// Waits until the maps hold the desired state.
    pub async fn applied(&mut self) {
        let desired = self.registry.desired().borrow().revision.to_string();
        let reached = async {
            loop {
                let asked = nlb_proto::GetNlbStatusRequest::default();
                let status = self.modules.get_nlb_status(asked).await.unwrap().into_inner();
                if status.details["applied_revision"] == desired {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), reached).await.expect("the maps take it");
    }

    /// Publishes these numbers of TCP flows of an instance, one after the other; the last one stays.
    pub fn count_flows(&mut self, instance_id: &str, readings: &'static [u64]) {
        let (traffic, instance_id) = (self.traffic.clone(), instance_id.to_owned());
        self.tasks.spawn(async move {
            let last = readings.last().copied().unwrap_or_default();
            for tcp in readings.iter().copied().chain(std::iter::repeat(last)) {
                traffic.send_replace(with_flows(&instance_id, tcp));
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
    }
}

fn with_flows(instance_id: &str, tcp: u64) -> Arc<Traffic> {
    let backend = Backend {
        instance_id: instance_id.to_owned(),
        route: Some(RouteKey { id: "web".to_owned(), operators: false }),
        addr: "10.0.0.1".parse().unwrap(),
        port: 80,
        mode: ForwardMode::Nat,
        snat: Default::default(),
    };
    let counts = Counts { new_flows: 9, active_flows: tcp, active_tcp_flows: tcp, ..Counts::default() };
    Arc::new(Traffic { backends: [(backend.into(), counts)].into(), ..Traffic::default() })
}

/// The next hops: all modules are on our link.
fn known_hops() -> Hops {
    let hop = |address: &str, source: &str| {
        let (address, source): (IpAddr, IpAddr) = (address.parse().unwrap(), source.parse().unwrap());
        (address, Hop { hop: Default::default(), source, mtu: 1500, link_prefix: 24, local: false })
    };
    let v4 = (1..=9).map(|n| hop(&format!("10.0.0.{n}"), "10.0.0.100"));
    v4.chain([hop("fd00::1", "fd00::100")]).collect()
}
