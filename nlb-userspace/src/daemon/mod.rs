//! `nlb serve`: assembles the daemon, and runs it until a signal stops it.

pub mod fd_limit;
pub(crate) mod shutdown;
mod tasks;

use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, anyhow};
use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tracing::{info, warn};

use crate::config::{Config, Configuration};
use crate::controllers::resolve::{self, Resolver};
use crate::controllers::{active_version, route_learning};
use crate::controllers::{health_checks, lease_watcher, network_watcher, promotion_watcher, reset_watcher};
use crate::datapath::host_ports;
use crate::datapath::interfaces::XdpInterfaces;
use crate::datapath::netlink::Netlink;
use crate::grpc::{self, Control, Peers, Prober};
use crate::model::clock::Now;
use crate::model::reachability::Reach;
use crate::registry::Registry;
use crate::telemetry::alarms;
use crate::telemetry::metrics::{Recorder, Sources};
use crate::{datapath, store};
use tasks::Tasks;

const RESOLVE_INTERVAL: Duration = Duration::from_secs(30);

/// How long calls in progress may delay the daemon's end.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

pub async fn run(config: Config, configuration: Configuration) -> anyhow::Result<()> {
    fd_limit::raise_fd_limit(config.registry.max_modules)?;
    let _claimed = store::claim(&config.state_dir)?;
    let registry = Arc::new(restored(&config)?);
    let listener = TcpListener::bind(config.grpc).await;
    let listener =
        listener.with_context(|| format!("cannot listen at {}; choose another with --grpc", config.grpc))?;
    if !config.grpc.ip().is_loopback() {
        warn!(
            "any host that reaches {} can change how traffic is forwarded: the gRPC port has no authentication",
            config.grpc
        );
    }
    let running = datapath::start(&config, registry.desired()).await?;
    let datapath::Running {
        applied,
        traffic,
        hops,
        unreachable,
        questions,
        answers,
        mut details,
        tasks: of_datapath,
    } = running;
    let mut tasks = Tasks::default();
    for (name, task) in of_datapath {
        tasks.spawn(name, task);
    }
    details.push(("vips".to_owned(), vips(&config)));

    let (publish_stored, stored) = watch::channel(store::PersistStatus::default());
    let storing = store::keep(config.state_dir.clone(), registry.persisted(), publish_stored);
    tasks.spawn_endless("store", storing);
    let started_at = SystemTime::now();
    let sources = Sources {
        registry: registry.clone(),
        applied: applied.clone(),
        traffic: traffic.clone(),
        started_at,
    };
    let (recorder, metrics) = Recorder::new(sources, config.metrics_history_bytes);
    tasks.spawn_endless("metrics", recorder.run());
    let resolver = Resolver::system().with_reach(reach_of_addresses(&config)?);
    let (leases, names) = (
        lease_watcher::watch(registry.clone()),
        resolve::follow(registry.clone(), resolver.clone(), RESOLVE_INTERVAL),
    );
    let promotions = promotion_watcher::watch(registry.clone(), traffic.clone());
    let peers = Peers::default();
    let prober = Prober::new(peers.clone(), hops);
    let checks = health_checks::watch(registry.clone(), move |target| prober.clone().probe(target));
    let resets = reset_watcher::watch(registry.clone(), traffic.clone());
    tasks.spawn_endless("health checks", checks);
    tasks.spawn_endless("resets", resets);
    tasks.spawn_endless("network", network_watcher::watch(registry.clone(), unreachable));
    let alarms = alarms::watch(traffic.clone());
    tasks.spawn_endless("alarms", alarms);
    tasks.spawn_endless("leases", leases);
    tasks.spawn_endless("promotions", promotions);
    tasks.spawn_endless("names", names);
    let abilities = grpc::poll_can_handle(registry.clone(), peers.clone());
    tasks.spawn_endless("CanHandle", abilities);
    let active_versions =
        grpc::poll_active_versions(registry.clone(), peers.clone(), active_version::POLL_INTERVAL);
    tasks.spawn_endless("GetActiveVersion", active_versions);
    let ask_can_handle = grpc::ask_can_handle(registry.clone(), peers.clone());
    let learning = route_learning::watch(
        registry.clone(),
        traffic.clone(),
        route_learning::UpcallChannel { questions, answers },
        ask_can_handle,
    );
    tasks.spawn_endless("route learning", learning);
    let kept_ports = config.kept_ports();
    let control = Control {
        registry,
        applied,
        stored,
        traffic,
        metrics,
        resolver,
        host_ports: Arc::new(move || host_ports::read(&kept_ports)),
        peers,
        scaling: Default::default(),
        address: listener.local_addr()?,
        started_at,
        configuration: Arc::new(configuration),
        details,
    };
    info!("serving on {}, gRPC at {}", config.interfaces.join(", "), control.address);

    let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
    let mut server = tokio::spawn(grpc::serve(listener, control, async move { drop(stopped.await) }));
    tokio::select! {
        signal = shutdown::signal_received() => signal?,
        ended = &mut server => return ended?.context("the gRPC server failed"),
        error = tasks.first_to_end() => return Err(error),
    }
    info!("stopping");
    drop(stop);
    match tokio::time::timeout(SHUTDOWN_GRACE, server).await {
        Ok(ended) => ended?.context("the gRPC server failed"),
        // Calls that still wait for a drain end without an answer.
        Err(_) => Ok(()),
    }
}

/// The registry with what operators set, unless the settings ignore it.
fn restored(config: &Config) -> anyhow::Result<Registry> {
    let directory = &config.state_dir;
    if config.ignore_state
        && let Some(aside) = store::move_aside(directory)?
    {
        warn!("ignoring the persisted operator settings; the file is now {}", aside.display());
    }
    let persisted = store::read(directory)?;
    let (routes, limits) = (persisted.operator_routes.len(), persisted.rate_limits.len());
    let registry = Registry::restore(config.registry.clone(), persisted, Now::read());
    let registry = registry.map_err(|refusal| {
        store::unusable(directory, anyhow!("it does not fit the settings of this start: {refusal}"))
    })?;
    info!(routes, limits, directory = %directory.display(), "restored persisted state");
    Ok(registry)
}

/// How packets get to an address. If the kernel does not answer, it counts as reached by a link.
fn reach_of_addresses(
    config: &Config,
) -> anyhow::Result<impl Fn(IpAddr) -> BoxFuture<'static, Reach> + use<>> {
    let interfaces = XdpInterfaces::new(&config.interfaces);
    let netlink = Arc::new(Netlink::open()?.0);
    Ok(move |address| {
        let (interfaces, netlink) = (interfaces.clone(), netlink.clone());
        async move {
            interfaces.reach(&netlink, address).await.unwrap_or_else(|error| {
                warn!("cannot determine how packets get to {address}: {error:#}");
                Reach::Link
            })
        }
        .boxed()
    })
}

fn vips(config: &Config) -> String {
    match config.registry.vips.to_string() {
        vips if vips.is_empty() => "any".to_owned(),
        vips => vips,
    }
}
