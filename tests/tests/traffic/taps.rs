//! Taps: the host's side of virtual machines' cards, and of programs that carry Ethernet elsewhere.
//!
//! A virtual machine leaves checksums and segmentation to its host, and says so in the `vnet_hdr` of each
//! frame. XDP does not see that header, so such a tap is served through the stack. XDP serves a tap whose
//! frames have no `vnet_hdr`.

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

/// Takes a host off its segment and makes it a virtual machine of the NLB's host, behind this tap and in a
/// network of its own.
fn move_in(machine: &mut Host, nlb: &Host, tap: &str, network: u8, offloads: Offloads) -> Result<Nic> {
    machine.netns.ip(&["link", "delete", "eth0"])?;
    (machine.v4, machine.v6) = (v4(network, 10), v6(network, 10));
    let nic = start(machine, nlb, tap, network, offloads)?;
    nlb.netns.add_address(tap, v4(network, 1).into(), 24)?;
    nlb.netns.add_address(tap, v6(network, 1).into(), 64)?;
    Ok(nic)
}

/// Has a bridge between the host and a machine, as libvirt does.
fn put_on_a_bridge(nlb: &Host, tap: &str, network: u8) -> Result<()> {
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

/// The machine has its addresses and routes for as long as it has its card.
fn start(machine: &Host, nlb: &Host, tap: &str, network: u8, offloads: Offloads) -> Result<Nic> {
    let nic = Nic::plug((&nlb.netns, tap), (&machine.netns, "eth0"), offloads)?;
    machine.netns.add_address("eth0", machine.v4.into(), 24)?;
    machine.netns.add_address("eth0", machine.v6.into(), 64)?;
    machine.netns.add_default_route(v4(network, 1).into())?;
    machine.netns.add_default_route(v6(network, 1).into())?;
    Ok(nic)
}

/// A client and a module are virtual machines, the others are on the segment.
struct Site {
    fleet: Fleet,
    nics: [Nic; 2],
}

impl Site {
    fn start(offloads: Offloads, interfaces: &str, serve: &[&str]) -> Result<Site> {
        let mut lab = Lab::one_arm(2, 2)?;
        let nics = [
            move_in(&mut lab.clients[0], &lab.nlb, "tap0", 5, offloads)?,
            move_in(&mut lab.modules[0], &lab.nlb, "tap1", 6, offloads)?,
        ];
        put_on_a_bridge(&lab.nlb, "tap1", 6)?;
        let nlb = programs::serve(&lab, interfaces, &[&["--heartbeat-interval", "60s"], serve].concat())?;
        let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
        fleet.enlist(Mode::Nat, &[100, 100], &[])?;
        fleet.add_foreign("nginx", 0, Mode::Nat, (DOWNLOADS, 8081), &[])?;
        Ok(Site { fleet, nics })
    }

    /// Both clients have both modules' answers, and a lot of data arrives both ways.
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
                // To both modules, as Maglev has it.
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
        let said = "tap0 is served at TC ingress instead of XDP";
        wait_for_log(&site.fleet, said, 1)?;
        site.is_served(20_000).with_context(|| mode.to_owned())?;
    }
    Ok(())
}

#[test]
fn native_mode_refuses_a_tap_with_vnet_hdr() -> Result<()> {
    let mut lab = Lab::one_arm(1, 0)?;
    let _nic = move_in(&mut lab.clients[0], &lab.nlb, "tap0", 5, Offloads::All)?;
    let mut serve = lab.nlb.netns.command(built("nlb")?);
    serve.args(["serve", "--iface", "eth0,tap0", "--xdp-mode", "native", "--state-dir"]);
    let refused = output(serve.arg(lab.files().join("state"))).err().context("it serves")?.to_string();
    for part in ["--iface tap0: its frames have a vnet_hdr", "TC ingress serves it without --iface"] {
        ensure!(refused.contains(part), "{refused}");
    }
    Ok(())
}

/// A tap may exist long before its virtual machine does. Until then, nobody knows whether its frames will
/// have a header.
#[test]
fn xdp_serves_a_named_tap_while_its_frames_have_no_vnet_hdr() -> Result<()> {
    let mut lab = Lab::one_arm(1, 2)?;
    lab.nlb.netns.ip(&["tuntap", "add", "tap0", "mode", "tap"])?;
    let mut nic = move_in(&mut lab.clients[0], &lab.nlb, "tap0", 5, Offloads::None)?;
    let nlb = programs::serve(&lab, "eth0,tap0", &["--heartbeat-interval", "60s", "--xdp-mode", "native"])?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    fleet.enlist(Mode::Nat, &[100, 100], &[])?;
    let has_program = || -> Result<bool> {
        let shown = fleet.lab.nlb.netns.ip(&["-d", "link", "show", "tap0"])?;
        Ok(shown.contains("prog/xdp"))
    };
    let client = &fleet.lab.clients[0];
    ensure!(has_program()?, "XDP serves it");
    let mut attached = 1;
    serves(client, 20_000)?;
    for (first, offloads, said, by_xdp) in [
        (21_000, Offloads::All, "tap0 is served at TC ingress instead of XDP", false),
        (22_000, Offloads::None, "tap0 is back and served again", true),
    ] {
        // The tap outlives the machine, which finds it again.
        drop(nic);
        nic = start(client, &fleet.lab.nlb, "tap0", 5, offloads)?;
        wait_for_log(&fleet, said, 1)?;
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
            // What hosts leave to their cards, the far tap has the kernel do: it said that it cannot.
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
