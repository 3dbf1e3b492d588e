//! Measures the control plane of a daemon in a lab, over gRPC from the daemon's own host.

use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb::daemon::fd_limit;
use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::*;
use nlb_testkit::lab::{Lab, VIP4};
use nlb_testkit::process::Process;
use nlb_testkit::programs::{self, grpc};
use tokio::runtime::{Builder, Runtime};
use tokio::task::JoinSet;
use tonic::service::Routes;
use tonic::transport::{Channel, Server};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;

use crate::figures::{self, median_and_tail, milliseconds, print};

#[derive(clap::Args)]
pub struct Args {
    /// The number of registrations to time
    #[arg(long, default_value_t = 200)]
    registrations: u16,
    /// The number of modules that send heartbeats
    #[arg(long, default_value_t = 10_000)]
    modules: u32,
    /// The number of routes in one call
    #[arg(long, default_value_t = 100_000)]
    routes: u32,
    /// The number of services whose tables are rebuilt, each with 100 backends
    #[arg(long, default_value_t = 1_000)]
    services: u16,
}

/// Tables that are larger than the defaults, for so many modules and routes.
const SIZES: [&str; 14] = [
    "--heartbeat-interval",
    "10s",
    "--max-modules",
    "20000",
    "--max-routes",
    "300000",
    "--max-backends",
    "65000",
    "--max-services",
    "65000",
    "--max-pools",
    "3000",
    "--max-vips",
    "3000",
];

/// The port at which the module host answers datagrams.
const ECHO: u16 = 9000;

/// The port of the modules' gRPC server.
const CONTROL: u16 = 50052;

pub fn run(args: &Args) -> Result<()> {
    println!("{:<58} figure", "case");
    registrations(args.registrations)?;
    heartbeats(args.modules)?;
    many_routes(args.routes)?;
    rebuilds(args.services)
}

/// A lab with a daemon and without registrations.
struct Bench {
    nlb: Process,
    lab: Lab,
}

impl Bench {
    fn start() -> Result<Bench> {
        let lab = Lab::one_arm(1, 1)?;
        let nlb = programs::serve(&lab, "eth0", &SIZES)?;
        Ok(Bench { nlb, lab })
    }

    /// Runs `work` with clients of the daemon, on the daemon's host. Threads stay in the network namespace of
    /// the thread that starts them.
    fn ask<T: Send>(&self, work: impl AsyncFnOnce(Clients) -> Result<T> + Send) -> Result<T> {
        let server = format!("http://{}", grpc(&self.lab));
        self.lab.nlb.netns.run(|| {
            let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
            runtime.block_on(async {
                let channel = Channel::from_shared(server)?.connect().await?;
                let mut modules = NlbServiceClient::new(channel.clone());
                // The daemon listens before it has loaded its programs, and answers after that.
                modules.get_nlb_status(GetNlbStatusRequest::default()).await?;
                let health = HealthClient::new(channel.clone());
                work(Clients { modules, front: ModuleServiceClient::new(channel), health }).await
            })
        })?
    }

    fn registration(&self, id: &str, routes: Vec<Route>) -> RegisterModuleRequest {
        let host = &self.lab.modules[0];
        let instance = ModuleInstance {
            instance_id: id.to_owned(),
            module_type: ModuleType::Alb.into(),
            address: format!("{}:{CONTROL}", host.v4),
            version: "v1".to_owned(),
            ..ModuleInstance::default()
        };
        RegisterModuleRequest { instance: Some(instance), initial_routes: routes, ..Default::default() }
    }
}

#[derive(Clone)]
struct Clients {
    modules: NlbServiceClient<Channel>,
    front: ModuleServiceClient<Channel>,
    health: HealthClient<Channel>,
}

impl Clients {
    async fn register(&mut self, request: RegisterModuleRequest) -> Result<String> {
        let answer = self.modules.register_module(request).await?.into_inner();
        ensure!(answer.success, "{}", answer.message);
        Ok(answer.registration_id)
    }
}

fn route(id: String, protocol: Protocol, port: u16) -> Route {
    Route {
        route_id: id,
        protocol: protocol.into(),
        destination_pattern: VIP4.to_string(),
        destination_port: port.into(),
        ..Route::default()
    }
}

/// The time from the call to its answer, and to the first reply of the module to a client that sends
/// continuously.
fn registrations(count: u16) -> Result<()> {
    let bench = Bench::start()?;
    let echo = bench.lab.modules[0].netns.run(|| UdpSocket::bind(("0.0.0.0", ECHO)))??;
    let client = bench.lab.clients[0].netns.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    client.set_nonblocking(true)?;
    echo.set_read_timeout(Some(Duration::from_millis(100)))?;
    let done = AtomicBool::new(false);
    let (mut answered, mut steered) = (Vec::new(), Vec::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let mut datagram = [0; 64];
            while !done.load(Ordering::Relaxed) {
                if let Ok((len, from)) = echo.recv_from(&mut datagram) {
                    // A client that has ended has received its reply.
                    let _ = echo.send_to(&datagram[..len], from);
                }
            }
        });
        let outcome = bench.ask(async |mut clients| {
            for i in 0..count {
                let port = 20_000 + i;
                let metadata = [("listen_port".to_owned(), ECHO.to_string())].into();
                let route = Route { metadata, ..route("bench".to_owned(), Protocol::Udp, port) };
                let request = bench.registration(&format!("bench-{i}"), vec![route]);
                let start = Instant::now();
                let asked = tokio::spawn({
                    let mut clients = clients.clone();
                    async move { clients.register(request).await.map(|id| (id, start.elapsed())) }
                });
                let first = first_answer(&client, (VIP4, port).into(), start).await?;
                let (_, took) = asked.await??;
                answered.push(took);
                steered.push(first);
            }
            let status = clients.modules.get_nlb_status(GetNlbStatusRequest::default()).await?.into_inner();
            ensure!(status.registered_modules == i32::from(count), "{status:?}");
            unary_calls(&mut clients).await
        });
        done.store(true, Ordering::Relaxed);
        outcome
    })?;
    print("RegisterModule, to its answer", median_and_tail(&mut answered));
    print("RegisterModule, to the first steered packet's answer", median_and_tail(&mut steered));
    Ok(())
}

async fn first_answer(client: &UdpSocket, to: SocketAddr, start: Instant) -> Result<Duration> {
    let mut answer = [0; 64];
    while start.elapsed() < Duration::from_secs(10) {
        // While there is no service, the kernel answers by ICMP, which is an error of the socket.
        let _ = client.send_to(&to.port().to_be_bytes(), to);
        tokio::time::sleep(Duration::from_micros(200)).await;
        while let Ok((len, from)) = client.recv_from(&mut answer) {
            if from == to && answer[..len] == to.port().to_be_bytes() {
                return Ok(start.elapsed());
            }
        }
    }
    anyhow::bail!("{to} did not answer within 10 s of its registration")
}

async fn unary_calls(clients: &mut Clients) -> Result<()> {
    let mut took = Vec::new();
    for _ in 0..2000 {
        let start = Instant::now();
        clients.modules.get_nlb_status(GetNlbStatusRequest::default()).await?;
        took.push(start.elapsed());
    }
    print("GetNLBStatus, one after the other", median_and_tail(&mut took));
    Ok(())
}

/// The modules' gRPC server: it answers every call that it does not know with UNIMPLEMENTED.
fn answer_calls(bench: &Bench, modules: u32) -> Result<Runtime> {
    fd_limit::raise_fd_limit(modules as usize)?;
    bench.lab.modules[0].netns.run(|| {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let server = Server::builder().add_routes(Routes::default());
        runtime.spawn(server.serve((Ipv4Addr::UNSPECIFIED, CONTROL).into()));
        Ok(runtime)
    })?
}

/// Measures what a fleet that only sends heartbeats costs the daemon, and what it costs packets.
fn heartbeats(modules: u32) -> Result<()> {
    const SECONDS: u64 = 10;
    let mut bench = Bench::start()?;
    let _answering = answer_calls(&bench, modules)?;
    let pid = bench.nlb.pid();
    let (ids, took) = bench.ask(async |clients| {
        let start = Instant::now();
        let mut registering = JoinSet::new();
        let mut ids = Vec::new();
        for i in 0..modules {
            let id = format!("fleet-{i:05}");
            let request = bench.registration(&id, vec![route("web".to_owned(), Protocol::Tcp, 80)]);
            let mut clients = clients.clone();
            registering.spawn(async move { anyhow::Ok((id, clients.register(request).await?)) });
            if registering.len() >= 200 {
                ids.push(registering.join_next().await.context("one of them")???);
            }
        }
        while let Some(registered) = registering.join_next().await {
            ids.push(registered??);
        }
        Ok((ids, start.elapsed()))
    })?;
    print(&format!("{modules} modules registered, 200 at a time"), milliseconds(took));

    // One heartbeat from each, during which the daemon connects to all of them. The pause after that is too
    // short for a missed heartbeat.
    let rate = 1000;
    let length = Duration::from_secs(SECONDS);
    let ids = Arc::new(ids);
    bench.ask(async |clients| at_rate(rate, length, |i| heartbeat(clients.clone(), ids.clone(), i)).await)?;
    let quiet = packets_per_second(&bench, Duration::from_secs(3))?;
    let used = figures::cpu_time(pid)?;
    let pause = Duration::from_secs(4);
    std::thread::sleep(pause);
    let silent = share(figures::cpu_time(pid)? - used, pause);
    print("CPU of the daemon with that fleet, silent", percent(silent));

    let traffic = AtomicU64::new(0);
    let mut took = std::thread::scope(|scope| {
        let loaded = scope.spawn(|| packets_per_second(&bench, Duration::from_secs(3)));
        let used = figures::cpu_time(pid)?;
        let took = bench.ask(async |clients| {
            at_rate(rate, length, |i| heartbeat(clients.clone(), ids.clone(), i)).await
        })?;
        let busy = share(figures::cpu_time(pid)? - used, length);
        print(&format!("CPU of the daemon at {rate} heartbeats/s"), percent(busy));
        print("CPU of the heartbeats alone", percent(busy - silent));
        traffic.store(loaded.join().expect("the traffic does not panic")?, Ordering::Relaxed);
        anyhow::Ok(took)
    })?;
    print(&format!("Heartbeat at {rate}/s"), median_and_tail(&mut took));
    let used = figures::cpu_time(pid)?;
    bench.ask(async |clients| at_rate(rate, length, |_| check(clients.health.clone())).await)?;
    let checked = share(figures::cpu_time(pid)? - used, length);
    print("CPU of as many health checks, the minimum cost of a call", percent(checked - silent));
    let ratio = traffic.into_inner() as f64 / quiet as f64;
    print("datagrams/s through the data path, with heartbeats/without", format!("{ratio:.2}"));
    ensure!(bench.nlb.ended()?.is_none(), "the daemon ended: {}", bench.nlb.output());
    Ok(())
}

fn share(used: Duration, of: Duration) -> f64 {
    used.as_secs_f64() / of.as_secs_f64()
}

fn percent(share: f64) -> String {
    format!("{:.1} % of a core", 100.0 * share)
}

/// Starts calls at a constant rate, however long each takes.
async fn at_rate<F>(rate: u32, length: Duration, call: impl Fn(usize) -> F) -> Result<Vec<Duration>>
where
    F: Future<Output = Result<()>> + Send + 'static,
{
    let mut ticks = tokio::time::interval(Duration::from_secs(1) / rate);
    let mut calls = JoinSet::new();
    let start = Instant::now();
    let mut next = 0;
    while start.elapsed() < length {
        ticks.tick().await;
        let call = call(next);
        calls.spawn(async move {
            let start = Instant::now();
            call.await.map(|()| start.elapsed())
        });
        next += 1;
    }
    let mut took = Vec::new();
    while let Some(call) = calls.join_next().await {
        took.push(call??);
    }
    Ok(took)
}

async fn heartbeat(mut clients: Clients, ids: Arc<Vec<(String, String)>>, i: usize) -> Result<()> {
    let (instance_id, registration_id) = ids[i % ids.len()].clone();
    let request = HeartbeatRequest {
        instance_id,
        registration_id,
        status: HealthStatus::Healthy.into(),
        ..HeartbeatRequest::default()
    };
    let answer = clients.modules.heartbeat(request).await?.into_inner();
    ensure!(answer.acknowledged, "{}", answer.message);
    Ok(())
}

/// Calls `grpc.health.v1`, which a library answers after one look-up.
async fn check(mut health: HealthClient<Channel>) -> Result<()> {
    health.check(HealthCheckRequest::default()).await?;
    Ok(())
}

/// The rate at which small datagrams of one thread arrive through the NLB. The receiver is not the module
/// under load.
fn packets_per_second(bench: &Bench, length: Duration) -> Result<u64> {
    let sink = bench.lab.modules[0].netns.run(|| UdpSocket::bind(("0.0.0.0", ECHO)))??;
    let client = bench.lab.clients[0].netns.run(|| UdpSocket::bind(("0.0.0.0", 0)))??;
    bench.ask(async |mut clients| {
        let metadata = [("listen_port".to_owned(), ECHO.to_string())].into();
        let route = Route { metadata, ..route("sink".to_owned(), Protocol::Udp, ECHO) };
        clients.register(bench.registration("sink", vec![route])).await.map(drop)
    })?;
    sink.set_read_timeout(Some(Duration::from_millis(200)))?;
    let start = Instant::now();
    let mut arrived = 0;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while start.elapsed() < length {
                let _ = client.send_to(&[0; 32], (VIP4, ECHO));
            }
        });
        let mut datagram = [0; 64];
        while start.elapsed() < length {
            arrived += u64::from(sink.recv(&mut datagram).is_ok());
        }
    });
    Ok(arrived / length.as_secs())
}

/// Measures one call with many routes: a thousand client prefixes on each of several ports.
fn many_routes(count: u32) -> Result<()> {
    let bench = Bench::start()?;
    let pid = bench.nlb.pid();
    let (before, _) = figures::memory(pid)?;
    let routes: Vec<Route> = (0..count)
        .map(|i| {
            let (port, client) = (1 + i / 1000, i % 1000);
            Route {
                source_pattern: format!("10.{}.{}.0/24", 100 + client / 250, client % 250),
                metadata: [("target_instances".to_owned(), "bench".to_owned())].into(),
                ..route(format!("route-{i:06}"), Protocol::Tcp, port as u16)
            }
        })
        .collect();
    let took = bench.ask(async |mut clients| {
        clients.register(bench.registration("bench", Vec::new())).await?;
        let request = UpdateRoutingRequest { routes, replace_all: true, ..UpdateRoutingRequest::default() };
        let start = Instant::now();
        let answer = clients.modules.update_routing(request).await?.into_inner();
        ensure!(answer.success, "{}", answer.message);
        let whole = start.elapsed();
        let one = Route {
            source_pattern: "10.200.0.0/24".to_owned(),
            metadata: [("target_instances".to_owned(), "bench".to_owned())].into(),
            ..route("one-more".to_owned(), Protocol::Tcp, 1)
        };
        let request = UpdateRoutingRequest { routes: vec![one], ..UpdateRoutingRequest::default() };
        let start = Instant::now();
        let answer = clients.modules.update_routing(request).await?.into_inner();
        ensure!(answer.success, "{}", answer.message);
        Ok((whole, start.elapsed()))
    })?;
    print(&format!("UpdateRouting of {count} routes"), milliseconds(took.0));
    print("UpdateRouting of one more", milliseconds(took.1));
    let (after, most) = figures::memory(pid)?;
    print("memory of the daemon: before, with them, at most", format!("{before}, {after}, {most} MiB"));
    Ok(())
}

/// Measures a change of one backend's weight in all services of 100 backends each, and the removal of one
/// backend from one of them.
fn rebuilds(services: u16) -> Result<()> {
    let bench = Bench::start()?;
    let (all, one) = bench.ask(async |mut clients| {
        // All services use one port of each module, as behind a proxy. A backend for every pair of module and
        // service would exceed the limit.
        let one_port = [("listen_port".to_owned(), "8080".to_owned())];
        let routes: Vec<Route> = (0..services)
            .map(|i| Route {
                metadata: one_port.clone().into(),
                ..route(format!("route-{i:04}"), Protocol::Tcp, 1000 + i)
            })
            .collect();
        for i in 0..100 {
            clients.register(bench.registration(&format!("bench-{i:03}"), routes.clone())).await?;
        }
        let request =
            SetTrafficWeightRequest { instance_id: "bench-007".to_owned(), weight: 50, ..Default::default() };
        let start = Instant::now();
        let answer = clients.front.set_traffic_weight(request).await?.into_inner();
        ensure!(answer.success, "{}", answer.message);
        let all = start.elapsed();
        let operators = Route {
            priority: 1,
            metadata: [("target_instances".to_owned(), "bench-001,bench-002".to_owned())].into(),
            ..route("special".to_owned(), Protocol::Tcp, 1000)
        };
        let request = UpdateRoutingRequest { routes: vec![operators], ..UpdateRoutingRequest::default() };
        let start = Instant::now();
        let answer = clients.modules.update_routing(request).await?.into_inner();
        ensure!(answer.success, "{}", answer.message);
        Ok((all, start.elapsed()))
    })?;
    print(&format!("a weight that {services} services of 100 backends depend on"), milliseconds(all));
    print("a route that one of them depends on", milliseconds(one));
    Ok(())
}
