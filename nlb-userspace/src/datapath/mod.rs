//! The kernel's side: attaches the programs to their interfaces, and starts the tasks that write and read
//! their maps.

pub(crate) mod accepted_macs;
mod capacities;
pub mod counters;
pub(crate) mod decap;
pub(crate) mod errors;
pub mod fragmentation;
pub(crate) mod host_ports;
pub mod inject;
pub(crate) mod interfaces;
pub(crate) mod link;
pub mod loader;
pub(crate) mod local_links;
mod local_port_range;
pub mod maps;
pub(crate) mod netlink;
pub(crate) mod next_hop;
pub(crate) mod path_mtu;
pub(crate) mod pending;
pub mod punted;
pub(crate) mod route_watcher;
pub(crate) mod tunnel_errors;
mod veth_peer;

use std::sync::Arc;

use anyhow::Context;
use futures_util::FutureExt;
use futures_util::future::BoxFuture;
use nlb_common::flow::WAYS;
use tokio::sync::{mpsc, watch};
use tracing::warn;

use crate::compile::MapImage;
use crate::config::Config;
use crate::model::Desired;
use crate::model::next_hop::Hops;
use crate::model::reachability::UnreachableAddresses;
use crate::model::traffic::Traffic;
use crate::model::upcall::{self, NegativeEntry, Question};
use crate::reconcile::{self, Applied};
use accepted_macs::AcceptedMacs;
use counters::Collector;
use interfaces::{Attachments, XdpInterfaces};
use loader::{Datapath, LoadConfig};
use maps::bpf::{self, BpfMaps, FibGeneration, FragmentPaths, HostTraffic, LocalLinks, Readings};
use maps::macs::MacTable;
use maps::upcalls::Upcalls;
use netlink::Netlink;

/// A task that is to be run, and its name.
pub type Task = (&'static str, BoxFuture<'static, anyhow::Result<()>>);

/// A running data path. Its tasks end when the sender of `desired` is dropped.
pub struct Running {
    pub applied: watch::Receiver<Arc<Applied>>,
    pub traffic: watch::Receiver<Arc<Traffic>>,
    /// The next hops of modules.
    pub hops: watch::Receiver<Arc<Hops>>,
    /// Modules' data addresses that no packet gets to.
    pub unreachable: watch::Receiver<Arc<UnreachableAddresses>>,
    /// Upcalls about destinations without a service.
    pub questions: mpsc::Receiver<Question>,
    /// Negative entries for those destinations.
    pub answers: mpsc::Sender<NegativeEntry>,
    /// How the data path was set up, as names and values for the status.
    pub details: Vec<(String, String)>,
    /// The tasks. None of them ends before the daemon does, except by an error.
    pub tasks: Vec<Task>,
}

/// Requests for next hops that may be queued at a time.
const OPEN_QUESTIONS: usize = 1024;

/// Loads the balancer, attaches it, and starts the tasks that keep its maps in line with `desired`.
pub async fn start(config: &Config, desired: watch::Receiver<Arc<Desired>>) -> anyhow::Result<Running> {
    let interfaces = XdpInterfaces::new(&config.interfaces);
    let (netlink, _) = Netlink::open()?;
    let (links, addresses) = (netlink.links().await?, netlink.addresses().await?);
    let any_veth = interfaces.any_veth(&links)?;
    let (own, foreign): (Vec<_>, Vec<_>) =
        config.snat_addresses.iter().partition(|addr| addresses.iter().any(|(_, net)| net.addr() == *addr));
    if foreign.is_empty() || !own.is_empty() {
        local_port_range::check(&config.snat_ports)?;
    }
    for source in foreign {
        warn!(
            "--snat-address {source} is no address of this host: backends need a route for it that leads here"
        );
    }
    loader::prepare_host()?;
    let load_config = LoadConfig {
        flows: config.flows,
        limits: config.limits,
        snat_ports: config.snat_ports.clone(),
        snat_addresses: config.snat_addresses.clone(),
        gue_port: config.gue_port,
        ipip_sources: config.ipip_sources,
        use_tx: !any_veth,
    };
    let mut datapath = Datapath::load(&load_config)?;
    datapath.load_tc_ingress()?;
    datapath.count_lost_redirects();
    let capacities = bpf::capacities(&mut datapath.bpf)?;
    let flows = bpf::flows(&mut datapath.bpf)?;
    let maps = BpfMaps::take(&mut datapath.bpf, flows.clone(), capacities.clone());
    let maps = maps.context("preparing the maps")?;
    let readings = Readings::take(&mut datapath.bpf, flows, capacities)?;
    let (punted, paths) = (bpf::punted(&mut datapath.bpf)?, FragmentPaths::take(&mut datapath.bpf)?);
    let upcalls = Upcalls::take(&mut datapath.bpf)?;
    let mut host = HostTraffic::take(&mut datapath.bpf)?;
    host.protect(config.kept_ports().into_iter())?;
    host.set_addresses(addresses.iter().map(|(_, net)| net.addr()).collect())?;
    let mut details =
        vec![("flow_table_entries".to_owned(), (load_config.flow_buckets() as usize * WAYS).to_string())];
    let macs = AcceptedMacs::new(MacTable::take(&mut datapath.bpf)?, config.accept_mac.clone());
    let (attachments, modes) = Attachments::new(
        interfaces.clone(),
        datapath.for_interfaces()?,
        macs,
        config.xdp_mode,
        &links,
        &addresses,
    )?;
    for (interface, mode) in modes {
        let mode = mode.map_or("none".to_owned(), |mode| format!("{mode:?}").to_lowercase());
        details.push((format!("xdp.{interface}"), mode));
    }
    let (tc_ingress, local) = (datapath.tc_ingress()?, LocalLinks::take(&mut datapath.bpf)?);
    let fib_generation = Arc::new(FibGeneration::take(&mut datapath.bpf)?);
    let datapath = Arc::new(datapath);

    let (hops_sent, hops) = watch::channel(Arc::new(Hops::new()));
    let (unreachable_sent, unreachable) = watch::channel(Arc::new(UnreachableAddresses::new()));
    let (applied_sent, applied) = watch::channel(Arc::new(Applied::default()));
    let (traffic_sent, traffic) = watch::channel(Arc::new(Traffic::default()));
    let (ask, asked) = mpsc::channel(OPEN_QUESTIONS);
    let mut tasks = Vec::<Task>::new();
    let mut add = |name, task| tasks.push((name, task));
    let (errors, tunnel_errors) = mpsc::channel(OPEN_QUESTIONS);
    let inputs = next_hop::Inputs {
        desired: desired.clone(),
        asked,
        tunnel_errors,
        outer_sources: config.ipip_sources,
    };
    let outputs = next_hop::Outputs { hops: hops_sent, unreachable: unreachable_sent };
    add("next hops", next_hop::run(inputs, outputs, interfaces.clone()).boxed());
    add("local links", local_links::run(interfaces, tc_ingress, local, fib_generation.clone()).boxed());
    add("host addresses", host_ports::run(host).boxed());
    add("route watcher", route_watcher::run(fib_generation).boxed());
    add("interfaces", attachments.keep().boxed());
    let empty = MapImage::empty(load_config.limits).with_snat_addresses(&load_config.snat_addresses);
    let reconciler = reconcile::run(desired, hops.clone(), applied_sent, empty, Box::new(maps));
    add("reconciler", reconciler.map(Ok).boxed());
    let (waiting, waiting_read) = mpsc::channel(pending::CAPACITY);
    add("punted packets", punted::run(punted, datapath.clone(), paths, waiting, errors).boxed());
    let pending = pending::run(waiting_read, datapath.clone(), ask, hops.clone(), applied.clone());
    add("pending packets", pending.boxed());
    let (questions_sent, questions) = mpsc::channel(upcall::QUEUE);
    let (answers, answers_read) = mpsc::channel(upcall::QUEUE);
    add("upcalls", upcalls.run(questions_sent, answers_read).boxed());
    let collector = Collector::new(readings, load_config.idle_times(datapath.clock()));
    let counters = counters::run(collector, datapath, applied.clone(), traffic_sent);
    add("counters", counters.map(Ok).boxed());
    Ok(Running { applied, traffic, hops, unreachable, questions, answers, details, tasks })
}
