//! Modules that packets cannot get to: they are refused with the reason, or unhealthy for as long as that
//! lasts.

use std::net::IpAddr;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{DefaultRoute, Lab};

use crate::fleet::{Fleet, Mode, register};

/// A network behind a TUN device, as a VPN has one, and a network without a route.
const TUN: [&str; 2] = ["10.88.0.0/24", "fd88::/64"];

fn add_tun(lab: &Lab) -> Result<()> {
    let nlb = &lab.nlb.netns;
    nlb.ip(&["tuntap", "add", "mode", "tun", "name", "tun0"])?;
    nlb.ip(&["link", "set", "tun0", "up"])?;
    for net in TUN {
        nlb.ip(&["route", "add", net, "dev", "tun0"])?;
    }
    Ok(())
}

#[test]
fn modules_that_no_packet_gets_to_are_refused_with_the_reason() -> Result<()> {
    let fleet = Fleet::for_foreign_modules(Lab::one_arm(0, 1)?)?;
    add_tun(&fleet.lab)?;
    for (address, why) in [
        ("10.88.0.2", "the route leads to tun0, a link without MAC addresses"),
        ("fd88::2", "the route leads to tun0, a link without MAC addresses"),
        ("10.99.0.2", "the kernel has no route there"),
        ("10.99.0.2,fd99::2", "the kernel has no route there"),
    ] {
        let refused = register_at(&fleet, address).err().context(format!("{address} is accepted"))?;
        ensure!(format!("{refused:#}").contains(why), "{address}: {refused:#}");
    }
    // One family is enough.
    let v4 = fleet.lab.modules[0].v4;
    register_at(&fleet, &format!("{v4},fd99::2"))
}

fn register_at(fleet: &Fleet, data_address: &str) -> Result<()> {
    let metadata = [("data_address", data_address)];
    register(&fleet.lab, 0, "foreign", Mode::Nat, &[(80, 8080)], &metadata).map(drop)
}

#[test]
fn a_module_is_unhealthy_while_its_route_leads_nowhere() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(0, 1)?, Mode::Nat, &[100], &[])?;
    add_tun(&fleet.lab)?;
    let (nlb, module) = (&fleet.lab.nlb.netns, &fleet.lab.modules[0]);
    let addresses = [IpAddr::from(module.v4), module.v6.into()].map(|address| address.to_string());
    for (before, behind) in [(&[][..], &["dev", "tun0"][..]), (&["unreachable"], &["metric", "1"])] {
        for (verb, health) in [("add", "UNHEALTHY"), ("delete", "HEALTHY")] {
            for address in &addresses {
                nlb.ip(&[&["route", verb], before, &[address.as_str()], behind].concat())?;
            }
            fleet.wait_until(&format!("m0 is {health}"), |modules| modules["m0"]["health"] == health)?;
        }
    }
    let log = fleet.nlb.output();
    for why in ["a link without MAC addresses", "no route there"] {
        ensure!(log.contains(why), "{log}");
    }
    Ok(())
}

#[test]
fn a_module_is_unhealthy_while_its_host_does_not_answer() -> Result<()> {
    let lab = Lab::two_arm(0, 1, DefaultRoute::Nlb)?;
    let (v4, v6) = (lab.modules[0].v4, lab.modules[0].v6);
    let fleet = Fleet::for_foreign_modules(lab)?;
    register_at(&fleet, &format!("{v4},{v6}"))?;
    let link = |state| fleet.lab.switch().ip(&["link", "set", "back-module0", state]).map(drop);
    for (state, health) in [("down", "UNHEALTHY"), ("up", "HEALTHY")] {
        link(state)?;
        // The kernel has to forget the neighbours that it knows.
        fleet.lab.nlb.netns.ip(&["neighbour", "flush", "dev", "eth1"])?;
        fleet.wait_until(&format!("it is {health}"), |modules| modules["foreign"]["health"] == health)?;
    }
    Ok(())
}
