//! ICMP errors between clients and modules.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use nlb_testkit::lab::{Lab, VIP4, VIP6};
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;

use crate::bulk::wait_for_port;
use crate::fleet::{Fleet, Mode};

/// The client's segments fill its link, so with an outer header they exceed the next MTU. Without an ICMP
/// error the upload would stall.
#[test]
fn path_mtu_discovery_works_through_the_outer_header() -> Result<()> {
    for (mode, longest) in [(Mode::DsrIpip, [1480, 1460]), (Mode::Gue, [1472, 1452])] {
        uploads(mode, longest)?;
    }
    Ok(())
}

/// Uploads to a VIP of each family, and checks the path MTU that the client has learned.
fn uploads(mode: Mode, [longest4, longest6]: [u32; 2]) -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, mode, 5201, 5201)?;
    let mut command = fleet.lab.modules[0].netns.command("iperf3");
    command.args(["--server", "--port", "5201"]);
    let mut server = fleet.lab.start("iperf3", &mut command)?;
    wait_for_port(&fleet, &mut server, 5201)?;
    for (vip, family, longest) in [(VIP4.to_string(), "-4", longest4), (VIP6.to_string(), "-6", longest6)] {
        let mut client = fleet.lab.clients[0].netns.command("iperf3");
        client.args(["--client", &vip, "--port", "5201", "--bytes", "4M", "--json"]);
        let report: serde_json::Value = serde_json::from_str(&output(&mut client)?)?;
        // The server may still have data in its buffers when the client is done.
        let received = report["end"]["sum_received"]["bytes"].as_f64();
        ensure!(received.is_some_and(|bytes| bytes > 1e5), "{vip}: {report}");
        let route = fleet.lab.clients[0].netns.ip(&[family, "route", "get", &vip])?;
        ensure!(route.contains(&format!("mtu {longest}")), "the client's path MTU: {route}");
    }
    Ok(())
}

/// The quoted packet has a fragment header before the ports.
#[test]
fn fragmented_ipv6_datagram_adapts_to_the_path_mtu() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::DsrIpip, 53, 53)?;
    let server = fleet.lab.modules[0].netns.run(|| UdpSocket::bind((VIP6, 53)))??;
    server.set_read_timeout(Some(Duration::from_millis(200)))?;
    let client = fleet.lab.clients[0].netns.run(|| {
        let socket = UdpSocket::bind("[::]:0")?;
        socket.connect((VIP6, 53))?;
        std::io::Result::Ok(socket)
    })??;
    let since = Instant::now();
    while since.elapsed() < MAX_WAIT {
        // The first datagram is too long with the outer header. The next reports the error to the client.
        let _ = client.send(&[7; 3000]);
        if server.recv(&mut [0; 4000]).is_ok_and(|len| len == 3000) {
            return Ok(());
        }
    }
    bail!("no datagram has come through")
}

/// As on a direct connection, the client gets the error of a port without a listener.
#[test]
fn a_backends_port_unreachable_reaches_the_client() -> Result<()> {
    let fleet = Fleet::with_foreign_module(Lab::one_arm(1, 1)?, Mode::Nat, 53, 5353)?;
    for vip in [IpAddr::from(VIP4), VIP6.into()] {
        let socket = fleet.lab.clients[0].netns.run(|| {
            let any = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
            let socket = UdpSocket::bind(any)?;
            socket.connect(SocketAddr::new(vip, 53))?;
            std::io::Result::Ok(socket)
        })??;
        socket.set_read_timeout(Some(MAX_WAIT))?;
        socket.send(b"is anybody there?")?;
        let result = socket.recv(&mut [0; 64]).map_err(|error| error.kind());
        ensure!(result == Err(ErrorKind::ConnectionRefused), "{vip}: {result:?}");
    }
    Ok(())
}
