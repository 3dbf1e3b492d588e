//! The two balancers, set up for the same VIPs in equal labs, and changed in the same ways.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, ensure};
use nlb_proto::UnregisterModuleRequest;
use nlb_proto::nlb_service_client::NlbServiceClient;
use nlb_testkit::lab::{DefaultRoute, Lab};
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::process::Process;
use nlb_testkit::programs::{self, grpc};

use crate::clients::on;
use crate::fleet::{self, Mode, PORT, vips};

/// A port of the VIPs that no backend listens on.
pub const UNSERVED_PORT: u16 = 81;

/// The daemon's default.
const GUE_PORT: &str = "6080";

pub const BACKENDS: [&str; 2] = ["b0", "b1"];

pub struct Site {
    balancer: Balancer,
    mode: Mode,
    pub lab: Lab,
}

enum Balancer {
    /// The kernel of the NLB's host.
    Ipvs,
    Nlb {
        _daemon: Process,
        registrations: Mutex<BTreeMap<usize, String>>,
    },
}

impl Site {
    pub fn of_ipvs(mode: Mode) -> Result<Site> {
        let lab = lab(mode)?;
        output(Command::new("modprobe").arg("ip_vs"))?;
        // Without it, packets to a removed backend are dropped until their connection expires.
        lab.nlb.netns.sysctl("net/ipv4/vs/expire_nodest_conn", 1)?;
        let site = Site { balancer: Balancer::Ipvs, mode, lab };
        site.each_service(|service| site.ipvsadm("-A", service, &["-s", "rr"]))?;
        Ok(site)
    }

    pub fn of_nlb(mode: Mode) -> Result<Site> {
        let lab = lab(mode)?;
        // There are no heartbeats, so leases have to outlast the test. IPVS always rejects what it cannot
        // forward.
        let settings = ["--heartbeat-interval", "600s", "--evict-after", "1h", "--reject"];
        let daemon = programs::serve(&lab, "eth0,eth1", &settings)?;
        let balancer = Balancer::Nlb { _daemon: daemon, registrations: Mutex::default() };
        Ok(Site { balancer, mode, lab })
    }

    /// The addresses that a backend listens on.
    pub fn listen(&self, n: usize) -> [SocketAddr; 2] {
        let host = &self.lab.modules[n];
        match self.mode {
            Mode::Nat => [IpAddr::from(host.v4), host.v6.into()]
                .map(|own| SocketAddr::new(own, self.backend_port(PORT))),
            _ => vips(),
        }
    }

    pub fn add(&self, n: usize) -> Result<()> {
        match &self.balancer {
            Balancer::Ipvs => self.each_destination("-a", n, &["-w", "100"]),
            Balancer::Nlb { registrations, .. } => {
                let ports = [PORT, UNSERVED_PORT].map(|port| (port, self.backend_port(port)));
                // IPVS shows clients' addresses to its backends, whose default route leads back to it.
                let metadata: &[_] = if self.mode == Mode::Nat { &[("reply_path", "nlb")] } else { &[] };
                let id = fleet::register(&self.lab, n, BACKENDS[n], self.mode, &ports, metadata)?;
                registrations.lock().expect("no thread panics").insert(n, id);
                Ok(())
            }
        }
    }

    pub fn weigh(&self, n: usize, weight: u32) -> Result<()> {
        let weight = weight.to_string();
        match &self.balancer {
            Balancer::Ipvs => self.each_destination("-e", n, &["-w", &weight]),
            Balancer::Nlb { .. } => programs::cli(&self.lab, &["weight", BACKENDS[n], &weight]).map(drop),
        }
    }

    pub fn remove(&self, n: usize) -> Result<()> {
        match &self.balancer {
            Balancer::Ipvs => self.each_service(|service| {
                self.ipvsadm("-d", service, &["-r", &self.destination(n, service.1)])
            }),
            Balancer::Nlb { registrations, .. } => {
                let known = registrations.lock().expect("no thread panics").remove(&n);
                let request = UnregisterModuleRequest {
                    instance_id: BACKENDS[n].to_owned(),
                    registration_id: known.context("it is not there")?,
                    ..UnregisterModuleRequest::default()
                };
                let server = format!("http://{}", grpc(&self.lab));
                let response = on(&self.lab.nlb, || async move {
                    Ok(NlbServiceClient::connect(server)
                        .await?
                        .unregister_module(request)
                        .await?
                        .into_inner())
                })?;
                ensure!(response.success, "{response:?}");
                Ok(())
            }
        }
    }

    fn each_destination(&self, verb: &str, n: usize, options: &[&str]) -> Result<()> {
        let way: &[_] = match self.mode {
            Mode::Nat => &["--masquerading"],
            Mode::DsrL2 => &["--gatewaying"],
            Mode::DsrIpip => &["--ipip"],
            Mode::Gue => &["--ipip", "--tun-type", "gue", "--tun-port", GUE_PORT, "--tun-csum"],
        };
        self.each_service(|service| {
            self.ipvsadm(verb, service, &[&["-r", &self.destination(n, service.1)], way, options].concat())
        })
    }

    fn each_service(&self, act: impl Fn((&str, SocketAddr)) -> Result<()>) -> Result<()> {
        for vip in vips() {
            for port in [PORT, UNSERVED_PORT] {
                for protocol in ["-t", "-u"] {
                    act((protocol, SocketAddr::new(vip.ip(), port)))?;
                }
            }
        }
        Ok(())
    }

    fn ipvsadm(&self, verb: &str, (protocol, service): (&str, SocketAddr), options: &[&str]) -> Result<()> {
        let mut ipvsadm = self.lab.nlb.netns.command("ipvsadm");
        ipvsadm.args([verb, protocol, &service.to_string()]).args(options);
        output(&mut ipvsadm).map(drop)
    }

    fn destination(&self, n: usize, service: SocketAddr) -> String {
        let host = &self.lab.modules[n];
        let address = if service.is_ipv4() { IpAddr::from(host.v4) } else { host.v6.into() };
        SocketAddr::new(address, self.backend_port(service.port())).to_string()
    }

    /// The backends' port for a port of the VIPs.
    fn backend_port(&self, port: u16) -> u16 {
        if self.mode == Mode::Nat { port + 8000 } else { port }
    }
}

fn lab(mode: Mode) -> Result<Lab> {
    let replies = if mode == Mode::Nat { DefaultRoute::Nlb } else { DefaultRoute::Gateway };
    let lab = Lab::two_arm(1, BACKENDS.len(), replies)?;
    // By default, the kernel sends a client one ICMP error a second.
    for host in lab.modules.iter().chain([&lab.nlb]) {
        host.netns.sysctl("net/ipv4/icmp_ratelimit", 0)?;
        host.netns.sysctl("net/ipv6/icmp/ratelimit", 0)?;
    }
    if matches!(mode, Mode::DsrIpip | Mode::Gue) {
        output(Command::new("modprobe").args(["-a", "ipip", "ip6_tunnel", "fou", "fou6"]))?;
        lab.modules.iter().try_for_each(|module| decapsulate(&module.netns, mode))?;
    }
    if mode != Mode::Nat {
        for module in &lab.modules {
            vips().iter().try_for_each(|vip| module.add_vip_without_arp(vip.ip()))?;
        }
    }
    Ok(lab)
}

/// Decapsulates with the kernel's own tunnels.
fn decapsulate(host: &Namespace, mode: Mode) -> Result<()> {
    for tunnel in ["tunl0", "ip6tnl0"] {
        host.ip(&["link", "set", tunnel, "up"])?;
    }
    if mode == Mode::Gue {
        for family in ["-4", "-6"] {
            host.ip(&[family, "fou", "add", "port", GUE_PORT, "gue"])?;
        }
    }
    Ok(())
}
