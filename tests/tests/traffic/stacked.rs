//! Interfaces on top of others, bonds and VLAN devices, which not every kernel has.

use std::collections::BTreeSet;
use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Host, Lab, VIP4, VIP6};
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::process::{MAX_WAIT, Process};
use nlb_testkit::programs::{self, ECHO_PORT, built};
use tokio::sync::mpsc::unbounded_channel;

use crate::clients::on;
use crate::fleet::{Mode, PORT, register, vips};
use crate::peer::backend::{BULK, Backend};
use crate::peer::client::{Connection, downloads, exchange, socket, two_requests};

/// Waits until the kernel's report about the NLB's bond contains these lines.
fn wait_for_bond(lab: &Lab, lines: &str) -> Result<()> {
    let started = Instant::now();
    loop {
        let report = lab.nlb.netns.run(|| fs::read_to_string("/proc/thread-self/net/bonding/eth0"))??;
        if report.contains(lines) {
            return Ok(());
        }
        ensure!(started.elapsed() < MAX_WAIT, "not in the bond's report: {lines}\n{report}");
        sleep(Duration::from_millis(50));
    }
}

/// The daemon's error about an interface that it refuses.
pub fn refusal(lab: &Lab, interface: &str) -> Result<String> {
    let mut serve = lab.nlb.netns.command(built("nlb")?);
    serve.args(["serve", "--iface", interface, "--state-dir"]).arg(lab.files().join("refused"));
    let refused = output(&mut serve).err().with_context(|| format!("{interface} was not refused"))?;
    Ok(refused.to_string())
}

/// Replaces the NLB's `eth0` by a bond of two cables, whose far ends are the segment's ports `far0` and
/// `far1`.
fn bond(lab: &Lab) -> Result<()> {
    let nlb = &lab.nlb.netns;
    let mac = lab.unplug("eth0")?;
    let settings = ["address", &mac, "type", "bond", "mode", "active-backup", "miimon", "50"];
    nlb.ip(&[&["link", "add", "eth0"], &settings[..]].concat())?;
    for (near, far) in [("near0", "far0"), ("near1", "far1")] {
        lab.cable(near, far)?;
        nlb.ip(&["link", "set", near, "down"])?;
        nlb.ip(&["link", "set", near, "master", "eth0"])?;
    }
    nlb.ip(&["link", "set", "eth0", "up"])?;
    lab.add_addresses()
}

const NAMES: [&str; 3] = ["m0", "m1", "m2"];

/// The daemon on `eth0` in native mode, and a module on each module host.
struct Site {
    _backends: Vec<Backend>,
    nlb: Process,
    lab: Lab,
}

impl Site {
    /// Registers modules without the SDK, whose calls may time out on an emulated machine.
    fn start(lab: Lab) -> Result<Site> {
        let settings = ["--heartbeat-interval", "600s", "--evict-after", "1h", "--xdp-mode", "native"];
        let nlb = programs::serve(&lab, "eth0", &settings)?;
        let (visits, _) = unbounded_channel();
        let mut backends = Vec::new();
        for (n, (host, name)) in lab.modules.iter().zip(NAMES).enumerate() {
            let listen = [host.v4.into(), host.v6.into()].map(|own| SocketAddr::new(own, ECHO_PORT));
            backends.push(Backend::start(host, name, listen, &visits)?);
            register(&lab, n, name, Mode::Nat, &[(PORT, ECHO_PORT)], &[])?;
        }
        Ok(Site { _backends: backends, nlb, lab })
    }

    /// The backends that answer a client by TCP and UDP from so many ports. Checks that a large download
    /// arrives whole.
    fn answer(&self, client: &Host, first: u16, count: u16) -> Result<BTreeSet<String>> {
        let answered = on(client, || async {
            let mut answered = BTreeSet::new();
            for vip in vips() {
                let own: IpAddr = if vip.is_ipv4() { client.v4.into() } else { client.v6.into() };
                for port in first..first + count {
                    let from = SocketAddr::new(own, port);
                    let answers =
                        two_requests(from, vip).await.with_context(|| format!("TCP from {from} to {vip}"))?;
                    let (name, again) = answers.split_once(", ").context("one answer")?;
                    ensure!(name == again, "answered by {answers}");
                    answered.insert(name.to_owned());
                    let socket = socket(from, vip).await?;
                    let answer = exchange(&socket, 600).await;
                    let answer = answer.with_context(|| format!("UDP from {from} to {vip}"))?;
                    let name = answer.strip_suffix(" got 600 bytes as sent").context("it is altered")?;
                    answered.insert(name.to_owned());
                }
                let came = downloads(SocketAddr::new(own, first + count), vip).await?;
                ensure!(came == format!("{BULK} bytes as sent"), "{came}");
            }
            Ok(answered)
        });
        answered.with_context(|| self.state())
    }

    fn state(&self) -> String {
        let counters = programs::cli(&self.lab, &["status", "--packets"]).unwrap_or_default();
        format!("{counters}\n{}", self.nlb.output())
    }
}

#[test]
#[ignore = "needs a kernel with bonds; `cargo xtask verify --kernel 6.12` boots one"]
fn bond_continues_without_one_of_its_ports() -> Result<()> {
    let lab = Lab::one_arm(1, 2)?;
    bond(&lab)?;
    let error = refusal(&lab, "near0")?;
    ensure!(
        error.contains("--iface near0 is a port of the bond eth0") && error.contains("name eth0"),
        "{error}"
    );
    let site = Site::start(lab)?;
    let (client, switch) = (&site.lab.clients[0], site.lab.switch());
    ensure!(site.answer(client, 20_000, 20)?.len() == 2, "both modules answer");
    for (first, lost, other) in [(21_000, "far0", "far1"), (22_000, "far1", "far0")] {
        switch.ip(&["link", "set", other, "up"])?;
        let port = other.replace("far", "near");
        wait_for_bond(&site.lab, &format!("Slave Interface: {port}\nMII Status: up\n"))?;
        on(client, || async {
            let mut held = Vec::new();
            for vip in vips() {
                let own: IpAddr = if vip.is_ipv4() { client.v4.into() } else { client.v6.into() };
                let mut connection = Connection::open(SocketAddr::new(own, first - 1), vip).await?;
                held.push((connection.request("who").await?, connection));
            }
            switch.ip(&["link", "set", lost, "down"])?;
            wait_for_bond(&site.lab, &format!("Currently Active Slave: {port}\n"))?;
            for (module, connection) in &mut held {
                ensure!(connection.request("who").await? == *module, "another module answers");
            }
            Ok(())
        })
        .with_context(|| format!("without {lost}\n{}", site.state()))?;
        ensure!(site.answer(client, first, 20)?.len() == 2, "both modules answer");
    }
    Ok(())
}

/// Gives a host a VLAN device with addresses in that VLAN's networks.
fn vlan(netns: &Namespace, id: u8, host: u8) -> Result<(IpAddr, IpAddr)> {
    let (name, id_text) = (format!("eth0.{id}"), id.to_string());
    netns.ip(&["link", "add", "link", "eth0", "name", &name, "type", "vlan", "id", &id_text])?;
    netns.ip(&["link", "set", &name, "up"])?;
    let v4 = IpAddr::from([10, 77, id, host]);
    let v6 = IpAddr::from([0xfd77, 0, 0, id.into(), 0, 0, 0, host.into()]);
    netns.add_address(&name, v4, 24)?;
    netns.add_address(&name, v6, 64)?;
    Ok((v4, v6))
}

/// Moves a host into a VLAN, and sets its addresses there.
fn moved(host: &mut Host, id: u8, number: u8) -> Result<()> {
    let (IpAddr::V4(v4), IpAddr::V6(v6)) = vlan(&host.netns, id, number)? else {
        unreachable!("in this order")
    };
    (host.v4, host.v6) = (v4, v6);
    Ok(())
}

/// The number of frames that the NLB sent by an interface.
fn sent(lab: &Lab, interface: &str) -> Result<u64> {
    let shown = lab.nlb.netns.ip(&["-s", "-j", "link", "show", interface])?;
    let links: serde_json::Value = serde_json::from_str(&shown)?;
    links[0]["stats64"]["tx"]["packets"].as_u64().context("the link has no count")
}

#[test]
#[ignore = "needs a kernel with VLANs; `cargo xtask verify --kernel 6.12` boots one"]
fn clients_and_modules_behind_vlan_devices_are_reached_through_the_stack() -> Result<()> {
    let mut lab = Lab::one_arm(2, 3)?;
    for id in [10, 20] {
        vlan(&lab.nlb.netns, id, 1)?;
    }
    let error = refusal(&lab, "eth0.10")?;
    ensure!(error.contains("--iface eth0.10 is a VLAN device") && error.contains("name eth0,"), "{error}");
    moved(&mut lab.clients[0], 10, 10)?;
    for (vip, via) in [(VIP4.to_string(), "10.77.10.1"), (VIP6.to_string(), "fd77:0:0:a::1")] {
        lab.clients[0].netns.ip(&["route", "add", &vip, "via", via, "dev", "eth0.10"])?;
    }
    moved(&mut lab.modules[0], 10, 20)?;
    moved(&mut lab.modules[1], 20, 21)?;
    // The third module stays outside the VLANs.
    let site = Site::start(lab)?;
    let [in_vlan, outside] = &site.lab.clients[..] else { unreachable!("two") };
    let before = [sent(&site.lab, "eth0.10")?, sent(&site.lab, "eth0.20")?];
    for (first, client) in [(20_000, in_vlan), (21_000, outside)] {
        let answered = site.answer(client, first, 40)?;
        ensure!(answered.iter().eq(&NAMES), "all modules answer: {answered:?}");
    }
    for (interface, before) in ["eth0.10", "eth0.20"].iter().zip(before) {
        let sent = sent(&site.lab, interface)? - before;
        ensure!(sent > 500, "{sent} frames by {interface}");
    }
    Ok(())
}
