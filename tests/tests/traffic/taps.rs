//! Taps: the host's side of virtual machines' cards, and of programs that tunnel Ethernet.
//!
//! A virtual machine leaves checksums and segmentation to its host. The `vnet_hdr` of each frame describes
//! them, which XDP does not see, so such a tap is served at TC ingress. XDP serves a tap without `vnet_hdr`.

use std::net::{Ipv4Addr, Ipv6Addr};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::netns::output;
use nlb_testkit::programs::{self, built};

use crate::bulk::{DOWNLOADS, download, download_beside, offload, serve_downloads};
use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::interfaces::{serves, wait_for_log};
use crate::nic::{Nic, Offloads};

/// Moves a host from its segment to this tap of the NLB's host, in a network of its own.
fn make_virtual_machine(
    machine: &mut Host,
    nlb: &Host,
    tap: &str,
    network: u8,
    offloads: Offloads,
) -> Result<Nic> {
    machine.netns.ip(&["link", "delete", "eth0"])?;
    (machine.v4, machine.v6) = (v4(network, 10), v6(network, 10));
    let nic = start(machine, nlb, tap, network, offloads)?;
    nlb.netns.add_address(tap, v4(network, 1).into(), 24)?;
    nlb.netns.add_address(tap, v6(network, 1).into(), 64)?;
    Ok(nic)
}

/// Puts a bridge between the host and a machine, as libvirt does.
fn add_bridge(nlb: &Host, tap: &str, network: u8) -> Result<()> {
    nlb.netns.ip(&["address", "flush", "dev", tap])?;
    nlb.netns.ip(&["link", "add", "br0", "type", "bridge"])?;
    nlb.netns.ip(&["link", "set", tap, "master", "br0"])?;
    nlb.netns.ip(&["link", "set", "br0", "up"])?;
    nlb.netns.add_address("br0", v4(network, 1).into(), 24)?;
    nlb.netns.add_address("br0", v6(network, 1).into(), 64)
}

fn v4(network: u8, host: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, network, host)
}

fn v6(network: u8, host: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd77, 0, 0, network.into(), 0, 0, 0, host.into())
}

/// Plugs a machine's card, and adds its addresses and routes.
fn start(machine: &Host, nlb: &Host, tap: &str, network: u8, offloads: Offloads) -> Result<Nic> {
    let nic = Nic::plug((&nlb.netns, tap), (&machine.netns, "eth0"), offloads)?;
    machine.netns.add_address("eth0", machine.v4.into(), 24)?;
    machine.netns.add_address("eth0", machine.v6.into(), 64)?;
    machine.netns.add_default_route(v4(network, 1).into())?;
    machine.netns.add_default_route(v6(network, 1).into())?;
    Ok(nic)
}

/// A fleet with a client and a module as virtual machines, and others on the segment.
struct Site {
    fleet: Fleet,
    nics: [Nic; 2],
}

impl Site {
    fn start(offloads: Offloads, interfaces: &str, serve: &[&str]) -> Result<Site> {
        let mut lab = Lab::one_arm(2, 2)?;
        let nics = [
            make_virtual_machine(&mut lab.clients[0], &lab.nlb, "tap0", 5, offloads)?,
            make_virtual_machine(&mut lab.modules[0], &lab.nlb, "tap1", 6, offloads)?,
        ];
        add_bridge(&lab.nlb, "tap1", 6)?;
        let nlb = programs::serve(&lab, interfaces, &[&["--heartbeat-interval", "60s"], serve].concat())?;
        let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
        fleet.enlist(Mode::Nat, &[100, 100], &[])?;
        fleet.add_foreign("nginx", 0, Mode::Nat, (DOWNLOADS, 8081), &[])?;
        Ok(Site { fleet, nics })
    }

    /// Checks that both modules answer both clients, and that large transfers arrive both ways.
    fn is_served(&self, first: u16) -> Result<()> {
        let _nginx = serve_downloads(&self.fleet, 8081, 20 << 20)?;
        for client in &self.fleet.lab.clients {
            self.serves(client, first).with_context(|| {
                let counters = self.fleet.nlb(&["status", "--packets"]).unwrap_or_default();
                format!("{}\n{counters}\n{}", client.v4, self.fleet.nlb.output())
            })?;
        }
        Ok(())
    }

    fn serves(&self, client: &Host, first: u16) -> Result<()> {
        serves(client, first)?;
        download(&self.fleet, client)?;
        on(client, || async {
            for vip in vips() {
                // Ten connections reach both modules.
                for _ in 0..10 {
                    Connection::open(vip).await?.echo(&"long".repeat(50_000)).await?;
                }
            }
            Ok(())
        })
    }
}

#[test]
fn virtual_machines_are_served_with_and_without_offloads() -> Result<()> {
    for offloads in [Offloads::All, Offloads::None] {
        let site = Site::start(offloads, "eth0", &[])?;
        site.is_served(20_000).with_context(|| format!("{offloads:?}"))?;
        for nic in &site.nics {
            let [frames, unfinished, unsegmented] = nic.sent();
            ensure!(frames > 500, "{frames} frames");
            let left = unfinished > 500 && unsegmented > 10;
            ensure!(left == (offloads == Offloads::All), "of {frames}, {unfinished} and {unsegmented}");
        }
    }
    Ok(())
}

#[test]
fn named_tap_with_vnet_hdr_is_served_at_tc_ingress_and_logged() -> Result<()> {
    for mode in ["auto", "generic"] {
        let site = Site::start(Offloads::All, "eth0,tap0", &["--xdp-mode", mode])?;
        let status = site.fleet.nlb(&["status"])?;
        let is_none = |line: &str| line.starts_with("xdp.tap0") && line.ends_with("none");
        ensure!(status.lines().any(is_none), "{status}");
        let line = "tap0 is served at TC ingress instead of XDP";
        wait_for_log(&site.fleet, line, 1)?;
        site.is_served(20_000).with_context(|| mode.to_owned())?;
    }
    Ok(())
}

#[test]
fn native_mode_refuses_a_tap_with_vnet_hdr() -> Result<()> {
    let mut lab = Lab::one_arm(1, 0)?;
    let _nic = make_virtual_machine(&mut lab.clients[0], &lab.nlb, "tap0", 5, Offloads::All)?;
    let mut serve = lab.nlb.netns.command(built("nlb")?);
    serve.args(["serve", "--iface", "eth0,tap0", "--xdp-mode", "native", "--state-dir"]);
    let refused =
        output(serve.arg(lab.files().join("state"))).err().context("the daemon has started")?.to_string();
    for part in ["--iface tap0: its frames have a vnet_hdr", "TC ingress serves it without --iface"] {
        ensure!(refused.contains(part), "{refused}");
    }
    Ok(())
}

/// A tap may exist before its virtual machine, which sets whether its frames have a header.
#[test]
fn xdp_serves_a_named_tap_while_its_frames_have_no_vnet_hdr() -> Result<()> {
    let mut lab = Lab::one_arm(1, 2)?;
    lab.nlb.netns.ip(&["tuntap", "add", "tap0", "mode", "tap"])?;
    let mut nic = make_virtual_machine(&mut lab.clients[0], &lab.nlb, "tap0", 5, Offloads::None)?;
    let nlb = programs::serve(&lab, "eth0,tap0", &["--heartbeat-interval", "60s", "--xdp-mode", "native"])?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    fleet.enlist(Mode::Nat, &[100, 100], &[])?;
    let has_program = || -> Result<bool> {
        let shown = fleet.lab.nlb.netns.ip(&["-d", "link", "show", "tap0"])?;
        Ok(shown.contains("prog/xdp"))
    };
    let client = &fleet.lab.clients[0];
    ensure!(has_program()?, "XDP does not serve the tap");
    let mut attached = 1;
    serves(client, 20_000)?;
    for (first, offloads, line, by_xdp) in [
        (21_000, Offloads::All, "tap0 is served at TC ingress instead of XDP", false),
        (22_000, Offloads::None, "tap0 is back and served again", true),
    ] {
        // The tap outlives the machine, which is attached to it again.
        drop(nic);
        nic = start(client, &fleet.lab.nlb, "tap0", 5, offloads)?;
        wait_for_log(&fleet, line, 1)?;
        attached += 1;
        wait_for_log(&fleet, "attached nlb_tc to tap0 (tc ingress)", attached)?;
        ensure!(has_program()? == by_xdp, "{offloads:?}");
        serves(client, first).with_context(|| format!("{offloads:?}\n{}", fleet.nlb.output()))?;
    }
    Ok(())
}

#[test]
fn xdp_serves_a_tap_without_vnet_hdr() -> Result<()> {
    for xdp in ["native", "generic"] {
        for mode in [Mode::Nat, Mode::DsrL2, Mode::DsrIpip] {
            let lab = Lab::one_arm(1, 2)?;
            let mac = lab.unplug("eth0")?;
            let nlb = &lab.nlb.netns;
            let _nic = Nic::plug((lab.switch(), "far0"), (nlb, "eth0"), Offloads::None)?;
            nlb.ip(&["link", "set", "eth0", "address", &mac])?;
            lab.connect("far0")?;
            lab.add_addresses()?;
            // The far tap has no offloads, so the kernel does what the hosts leave to their cards.
            for host in lab.clients.iter().chain(&lab.modules) {
                offload(host, "eth0", &["tx", "on", "tso", "on", "gso", "on"])?;
            }
            let fleet = Fleet::start_with(lab, mode, &[100, 100], &[], &["--xdp-mode", xdp])?;
            let what = || format!("{xdp}, {mode:?}\n{}", fleet.nlb.output());
            serves(&fleet.lab.clients[0], 20_000).with_context(what)?;
            download_beside(&fleet, mode).with_context(|| format!("{xdp}, {mode:?}"))?;
        }
    }
    Ok(())
}
