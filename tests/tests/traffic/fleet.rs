//! A daemon and echo modules in a lab.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nlb_proto::module_service_client::ModuleServiceClient;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_proto::{
    GetModuleInfoRequest, HealthStatus, ModuleInstance, ModuleType, Protocol, RegisterModuleRequest, Route,
};
use nlb_testkit::lab::{Lab, VIP4, VIP6};
use nlb_testkit::process::{MAX_WAIT, Process};
use nlb_testkit::programs::{self, built, grpc};
use serde_json::Value;
use tonic::transport::Channel;

use crate::clients::on;

/// Leases of 10 s. A busy machine does not let them expire, and tests can wait for their end. Until its first
/// heartbeat, a module's lease is 100 s.
pub const LEASE: [&str; 4] = ["--heartbeat-interval", "1s", "--missed-heartbeats", "10"];

/// The VIPs' port for echo modules.
pub const PORT: u16 = 80;

pub fn vips() -> [SocketAddr; 2] {
    [VIP4.into(), VIP6.into()].map(|vip: IpAddr| SocketAddr::new(vip, PORT))
}

/// How packets reach the modules of a fleet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    Nat,
    DsrL2,
    DsrIpip,
    Gue,
}

impl Mode {
    pub fn name(self) -> &'static str {
        match self {
            Mode::Nat => "nat",
            Mode::DsrL2 => "dsr-l2",
            Mode::DsrIpip => "dsr-ipip",
            Mode::Gue => "gue",
        }
    }
}

pub struct Fleet {
    // Processes end before their namespaces are removed.
    pub modules: Vec<Process>,
    _tunnels: Vec<Process>,
    pub nlb: Process,
    pub lab: Lab,
}

impl Fleet {
    /// Starts the daemon on the lab's interfaces, and echo modules "m0", "m1" ... with these weights on its
    /// module hosts. Every module gets traffic when this returns.
    pub fn start(lab: Lab, mode: Mode, weights: &[u32], args: &[&str]) -> Result<Fleet> {
        Self::start_with(lab, mode, weights, args, &[])
    }

    /// Starts a fleet with NAT and generic XDP.
    pub fn start_generic(lab: Lab, weights: &[u32]) -> Result<Fleet> {
        Self::start_with(lab, Mode::Nat, weights, &[], &["--xdp-mode", "generic"])
    }

    /// Starts a fleet with arguments for the modules and the daemon.
    pub fn start_with(lab: Lab, mode: Mode, weights: &[u32], args: &[&str], serve: &[&str]) -> Result<Fleet> {
        let own = serve.contains(&LEASE[2]);
        let lease = if own { &LEASE[..2] } else { &LEASE[..] };
        let nlb = programs::serve(&lab, interfaces(&lab), &[lease, serve].concat())?;
        let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
        fleet.enlist(mode, weights, args)?;
        Ok(fleet)
    }

    /// Starts a module of each weight, `m0` and so on, on the lab's hosts one after the other, and waits for
    /// all.
    pub fn enlist(&mut self, mode: Mode, weights: &[u32], args: &[&str]) -> Result<()> {
        for (n, weight) in weights.iter().enumerate() {
            self.prepare(n, mode)?;
            self.add(&format!("m{n}"), n, mode, *weight, args)?;
        }
        self.wait_for(weights.len())
    }

    /// Starts a daemon with one module on the lab's first module host, registered by a bare gRPC call for the
    /// VIPs' `port`. The test starts the listener at `listen_port`, which is the same port with DSR.
    pub fn with_foreign_module(lab: Lab, mode: Mode, port: u16, listen_port: u16) -> Result<Fleet> {
        let mut fleet = Fleet::for_foreign_modules(lab)?;
        fleet.add_foreign("foreign", 0, mode, (port, listen_port), &[])?;
        Ok(fleet)
    }

    /// Starts a daemon with leases that outlast the test, since foreign modules send no heartbeats.
    pub fn for_foreign_modules(lab: Lab) -> Result<Fleet> {
        Fleet::for_foreign_modules_with(lab, &[])
    }

    /// Starts such a daemon with more arguments.
    pub fn for_foreign_modules_with(lab: Lab, serve: &[&str]) -> Result<Fleet> {
        let nlb =
            programs::serve(&lab, interfaces(&lab), &[&["--heartbeat-interval", "60s"], serve].concat())?;
        Ok(Fleet::from_parts(lab, nlb, Vec::new()))
    }

    /// Registers a module on the lab's host `n` by a bare gRPC call, with these metadata too.
    pub fn add_foreign(
        &mut self,
        name: &str,
        n: usize,
        mode: Mode,
        (port, listen_port): (u16, u16),
        metadata: &[(&str, &str)],
    ) -> Result<()> {
        self.prepare(n, mode)?;
        register(&self.lab, n, name, mode, &[(port, listen_port)], metadata).map(drop)
    }

    /// A fleet from what is already running.
    pub fn from_parts(lab: Lab, nlb: Process, modules: Vec<Process>) -> Fleet {
        Fleet { modules, _tunnels: Vec::new(), nlb, lab }
    }

    /// Starts one more module, on the lab's host `n`, without waiting for it.
    pub fn add(&mut self, name: &str, n: usize, mode: Mode, weight: u32, args: &[&str]) -> Result<()> {
        let weight = weight.to_string();
        let listen = format!("[::]:{PORT}");
        let mut all = vec!["--weight", &weight];
        if mode != Mode::Nat {
            all.extend(["--mode", mode.name(), "--listen", &listen]);
        }
        all.extend(args);
        self.modules.push(programs::echo(&self.lab, &self.lab.modules[n], name, &all)?);
        Ok(())
    }

    /// Prepares the lab's module host `n` for packets of this mode.
    pub fn prepare(&mut self, n: usize, mode: Mode) -> Result<()> {
        if mode != Mode::Nat {
            self.add_vips(n)?;
        }
        if matches!(mode, Mode::DsrIpip | Mode::Gue) {
            self.decapsulate(n)?;
        }
        Ok(())
    }

    fn add_vips(&self, n: usize) -> Result<()> {
        vips().iter().try_for_each(|vip| self.lab.modules[n].add_vip_without_arp(vip.ip()))
    }

    fn decapsulate(&mut self, n: usize) -> Result<()> {
        let mut command = self.lab.modules[n].netns.command(built("nlb")?);
        // The NLB's addresses on both sides of a two-arm lab, and the prefixes of outer sources that vary.
        command.args([
            "decap",
            "--iface",
            "eth0",
            "--peer",
            "10.77.0.0/16,fd77::/16,10.200.0.0/16,fd00:200::/64",
        ]);
        let mut tunnel = self.lab.start(&format!("decap{n}"), &mut command)?;
        let log = tunnel.log().to_owned();
        tunnel.wait_until("it decapsulates", MAX_WAIT, || {
            std::fs::read_to_string(&log).is_ok_and(|log| log.contains("decapsulating"))
        })?;
        self._tunnels.push(tunnel);
        Ok(())
    }

    /// Waits until this many modules are healthy, and the data path has them.
    pub fn wait_for(&self, healthy: usize) -> Result<()> {
        self.wait_until(&format!("{healthy} modules are healthy"), |modules| {
            modules.values().filter(|module| module["health"] == "HEALTHY").count() == healthy
        })
    }

    /// Whether the desired state is applied.
    fn is_applied(&self) -> Result<bool> {
        let status: Value = serde_json::from_str(&self.nlb(&["status", "--output", "json"])?)?;
        Ok(status["details"]["desired_revision"] == status["details"]["applied_revision"])
    }

    pub fn wait_until(&self, what: &str, done: impl Fn(&BTreeMap<String, Value>) -> bool) -> Result<()> {
        // The first answer comes after the programs are loaded, which takes minutes on emulated machines.
        let mut modules = self.modules()?;
        let deadline = Instant::now() + MAX_WAIT;
        while !(done(&modules) && self.is_applied()?) {
            if Instant::now() > deadline {
                bail!("after {MAX_WAIT:?} still not: {what}: {modules:?}\nnlb:\n{}", self.nlb.output());
            }
            std::thread::sleep(Duration::from_millis(50));
            modules = self.modules()?;
        }
        Ok(())
    }

    /// The rows of `nlb modules` by instance id.
    pub fn modules(&self) -> Result<BTreeMap<String, Value>> {
        let rows: Vec<Value> = serde_json::from_str(&self.nlb(&["modules", "--output", "json"])?)?;
        let named = rows.into_iter().map(|row| Some((row["instance_id"].as_str()?.to_owned(), row)));
        named.collect::<Option<_>>().context("a module without an id")
    }

    /// Waits until the NLB has had a heartbeat of each of these modules since they registered.
    pub fn wait_for_heartbeats(&self, modules: &[&str]) -> Result<()> {
        let server = format!("http://{}", grpc(&self.lab));
        on(&self.lab.nlb, || async move {
            let mut nlb = NlbServiceClient::connect(server).await?;
            let deadline = Instant::now() + MAX_WAIT;
            for name in modules {
                let request = GetModuleInfoRequest { instance_id: (*name).to_owned() };
                loop {
                    let info = nlb.get_module_info(request.clone()).await?.into_inner();
                    let source = info.stats.and_then(|mut stats| stats.custom_stats.remove("source"));
                    if source.as_deref() == Some("last heartbeat") {
                        break;
                    }
                    ensure!(Instant::now() < deadline, "no heartbeat of {name}");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
            Ok(())
        })
    }

    /// Calls the NLB's ModuleService from its own host.
    pub fn front<T: Send, F>(&self, call: impl FnOnce(ModuleServiceClient<Channel>) -> F + Send) -> Result<T>
    where
        F: Future<Output = Result<T>>,
    {
        let server = format!("http://{}", grpc(&self.lab));
        on(&self.lab.nlb, || async move { call(ModuleServiceClient::connect(server).await?).await })
    }

    /// Runs the command `nlb` against the daemon.
    pub fn nlb(&self, args: &[&str]) -> Result<String> {
        programs::cli(&self.lab, args)
    }
}

/// The interfaces of the lab's NLB.
fn interfaces(lab: &Lab) -> &'static str {
    if lab.nlb.netns.ip(&["link", "show", "eth1"]).is_ok() { "eth0,eth1" } else { "eth0" }
}

/// Registers the lab's module host `n` by a bare gRPC call, for these ports of the VIPs and of the module.
/// Returns the registration's id.
pub fn register(
    lab: &Lab,
    n: usize,
    name: &str,
    mode: Mode,
    ports: &[(u16, u16)],
    metadata: &[(&str, &str)],
) -> Result<String> {
    let host = &lab.modules[n];
    let data_address = format!("{},{}", host.v4, host.v6);
    let metadata = [&[("data_address", &*data_address), ("forward_mode", mode.name())], metadata].concat();
    let routes = ports.iter().flat_map(|(port, listen_port)| {
        [Protocol::Tcp, Protocol::Udp].map(|protocol| Route {
            route_id: format!("{}-{port}", protocol.as_str_name()),
            protocol: protocol.into(),
            destination_port: (*port).into(),
            metadata: [("listen_port".to_owned(), listen_port.to_string())].into(),
            ..Route::default()
        })
    });
    let request = RegisterModuleRequest {
        instance: Some(ModuleInstance {
            instance_id: name.to_owned(),
            module_type: ModuleType::Alb.into(),
            address: format!("{}:50052", host.v4),
            health_status: HealthStatus::Healthy.into(),
            metadata: metadata.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect(),
            ..ModuleInstance::default()
        }),
        initial_routes: routes.collect(),
        ..RegisterModuleRequest::default()
    };
    let server = format!("http://{}", grpc(lab));
    let response = on(&lab.nlb, || async move {
        Ok(NlbServiceClient::connect(server).await?.register_module(request).await?.into_inner())
    })?;
    ensure!(response.success, "{response:?}");
    Ok(response.registration_id)
}
