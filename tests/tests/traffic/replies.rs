//! Replies cross the NLB, whether or not the module's default route leads to it.

use std::net::SocketAddr;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{DefaultRoute, Host, Lab, VIP4};
use nlb_testkit::netns::output;

use crate::clients::{Connection, L4, assert_shares, flows, on};
use crate::fleet::{Fleet, Mode, vips};

fn serves_all(fleet: &Fleet) -> Result<()> {
    for vip in vips() {
        for (first, l4) in [(20_000, L4::Tcp), (30_000, L4::Udp)] {
            assert_shares(&flows(&fleet.lab.clients[0], l4, vip, first, 200)?, &[("m0", 1), ("m1", 1)]);
        }
    }
    Ok(())
}

#[test]
fn replies_of_a_module_with_its_own_gateway_cross_the_nlb() -> Result<()> {
    let lab = Lab::two_arm(1, 2, DefaultRoute::Gateway)?;
    serves_all(&Fleet::start(lab, Mode::Nat, &[100, 100], &[])?)
}

#[test]
fn module_with_default_route_to_the_nlb_sees_client_addresses() -> Result<()> {
    let lab = Lab::two_arm(1, 2, DefaultRoute::Nlb)?;
    let fleet = Fleet::start(lab, Mode::Nat, &[100, 100], &["--metadata", "reply_path=nlb"])?;
    serves_all(&fleet)?;
    let client = &fleet.lab.clients[0];
    on(client, || async {
        let mut held = Connection::open(vips()[0]).await?;
        held.request().await?;
        // The connection shows in its module's socket table.
        let seen: String = fleet.lab.modules.iter().map(sockets).collect::<Result<_>>()?;
        let served = seen.lines().filter(|line| line.contains(":8080")).collect::<Vec<_>>().join("\n");
        ensure!(served.contains(&format!(":{}]:", client.v4)), "no module sees {}:\n{seen}", client.v4);
        ensure!(served.lines().count() == 1, "another client is connected:\n{served}");
        Ok(())
    })
}

/// The TCP connections of a host.
fn sockets(host: &Host) -> Result<String> {
    output(host.netns.command("ss").args(["-tnH"]))
}

#[test]
fn direct_server_return_works_across_segments() -> Result<()> {
    for mode in [Mode::DsrL2, Mode::DsrIpip, Mode::Gue] {
        let lab = Lab::two_arm(1, 2, DefaultRoute::Gateway)?;
        serves_all(&Fleet::start(lab, mode, &[100, 100], &[])?)?;
    }
    Ok(())
}

#[test]
fn a_module_reaches_its_own_vip() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 1)?, Mode::Nat, &[100], &[])?;
    for vip in vips() {
        flows(&fleet.lab.modules[0], L4::Tcp, vip, 20_000, 20)?;
        flows(&fleet.lab.modules[0], L4::Udp, vip, 30_000, 20)?;
    }
    Ok(())
}

#[test]
fn other_traffic_passes_beside_balanced_traffic() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(2, 2)?, Mode::Nat, &[100, 100], &[])?;
    let other = &fleet.lab.clients[1];
    std::thread::scope(|scope| -> Result<()> {
        let balanced = scope.spawn(|| serves_all(&fleet));
        let mut ports = (10_000..).step_by(20);
        // The daemon's gRPC, direct flows to a module, and pings of the NLB's host, a module and a VIP.
        while !balanced.is_finished() {
            fleet.nlb(&["status"])?;
            let direct = SocketAddr::new(fleet.lab.modules[0].v4.into(), 8080);
            let first = ports.next().context("out of ports")?;
            flows(other, L4::Tcp, direct, first, 20)?;
            flows(other, L4::Udp, direct, first, 20)?;
            for address in [fleet.lab.nlb.v4, fleet.lab.modules[1].v4, VIP4] {
                output(other.netns.command("ping").args([
                    "-c",
                    "3",
                    "-i",
                    "0.01",
                    "-W",
                    "60",
                    &address.to_string(),
                ]))?;
            }
        }
        balanced.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}
