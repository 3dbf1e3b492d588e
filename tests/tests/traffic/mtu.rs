//! Links and paths that take shorter packets than the sender's own link: senders that do path MTU discovery
//! are told what fits, and packets of the others are fragmented.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nlb_testkit::lab::{DefaultRoute, Host, Lab, VIP4, VIP6};
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::process::MAX_WAIT;

use crate::bulk::wait_for_port;
use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};

/// The client's segments fill its link, so with an outer header they exceed the next MTU. Without an ICMP
/// error the upload would stall.
#[test]
fn path_mtu_discovery_works_through_the_outer_header() -> Result<()> {
    for (mode, longest) in [(Mode::DsrIpip, [1480, 1460]), (Mode::Gue, [1472, 1452])] {
        uploads(Lab::one_arm(1, 1)?, mode, longest)?;
    }
    Ok(())
}

/// The router's link to the module's host is narrower than all others. The router tells the NLB, which is the
/// sender of the outer header.
#[test]
fn path_mtu_behind_the_outer_header_is_learned() -> Result<()> {
    for (mode, longest) in [(Mode::DsrIpip, [1380, 1360]), (Mode::Gue, [1372, 1352])] {
        let (lab, _router) = behind_router(1400)?;
        uploads(lab, mode, longest)?;
    }
    Ok(())
}

#[test]
fn path_mtu_is_learned_with_outer_sources_that_vary() -> Result<()> {
    let (lab, router) = behind_router(1400)?;
    // The router sends its errors where the packets came from.
    for (family, prefix, nlb) in
        [("-4", "10.200.0.0/16", "10.77.1.1"), ("-6", "fd00:200::/64", "fd77:0:0:1::1")]
    {
        router.netns.ip(&[family, "route", "add", prefix, "via", nlb])?;
    }
    let sources = ["--ipip-sources", "10.200.0.0/16,fd00:200::/64"];
    uploads_with(lab, Mode::DsrIpip, [1380, 1360], &sources)
}

#[test]
fn mtu_of_a_route_counts() -> Result<()> {
    for (mode, longest) in [(Mode::Nat, [1400, 1390]), (Mode::DsrIpip, [1380, 1350])] {
        let lab = Lab::one_arm(1, 1)?;
        let module = &lab.modules[0];
        for (family, to, mtu) in
            [("-4", module.v4.to_string(), "1400"), ("-6", module.v6.to_string(), "1390")]
        {
            lab.nlb.netns.ip(&[family, "route", "add", &to, "dev", "eth0", "mtu", mtu])?;
        }
        uploads(lab, mode, longest)?;
    }
    Ok(())
}

/// A two-arm lab whose module is on a link of this MTU behind a router on the modules' segment.
fn behind_router(mtu: u32) -> Result<(Lab, Host)> {
    let mut lab = Lab::two_arm(1, 1, DefaultRoute::Gateway)?;
    let netns = Namespace::create(format!("{}-far", lab.name()))?;
    let far = Host { netns, v4: [10, 77, 9, 2].into(), v6: [0xfd77, 0, 0, 9, 0, 0, 0, 2].into() };
    let router = std::mem::replace(&mut lab.modules[0], far);
    let far = &lab.modules[0];
    far.netns.cable("eth0", &router.netns, "far")?;
    for (netns, link, last) in [(&far.netns, "eth0", 2), (&router.netns, "far", 1)] {
        netns.ip(&["link", "set", link, "mtu", &mtu.to_string()])?;
        netns.add_address(link, IpAddr::from([10, 77, 9, last]), 24)?;
        netns.add_address(link, IpAddr::from([0xfd77, 0, 0, 9, 0, 0, 0, last.into()]), 64)?;
    }
    router.netns.sysctl("net/ipv4/ip_forward", 1)?;
    router.netns.sysctl("net/ipv6/conf/all/forwarding", 1)?;
    for (family, net, via_router, way_out) in [
        ("-4", "10.77.9.0/24", router.v4.to_string(), "10.77.9.1"),
        ("-6", "fd77:0:0:9::/64", router.v6.to_string(), "fd77:0:0:9::1"),
    ] {
        lab.nlb.netns.ip(&[family, "route", "add", net, "via", &via_router])?;
        far.netns.ip(&[family, "route", "add", "default", "via", way_out])?;
    }
    Ok((lab, router))
}

fn uploads(lab: Lab, mode: Mode, longest: [u32; 2]) -> Result<()> {
    uploads_with(lab, mode, longest, &[])
}

/// Uploads to a VIP of each family, and checks the path MTU that the client has learned.
fn uploads_with(lab: Lab, mode: Mode, [longest4, longest6]: [u32; 2], serve: &[&str]) -> Result<()> {
    let mut fleet = Fleet::for_foreign_modules_with(lab, serve)?;
    fleet.add_foreign("foreign", 0, mode, (5201, 5201), &[])?;
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
        ensure!(received.is_some_and(|bytes| bytes > 1e5), "{mode:?} {vip}: {report}");
        let route = fleet.lab.clients[0].netns.ip(&[family, "route", "get", &vip])?;
        ensure!(route.contains(&format!("mtu {longest} ")), "{mode:?}: the client's path MTU: {route}");
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

/// The lengths of datagrams around the MTUs of these tests: one that fills a link of 1,500 bytes, one that
/// needs fragments by a byte, and those of several fragments.
const LENGTHS: [usize; 4] = [1472, 1473, 2600, 3300];

/// Requests in one piece, or in fragments that fill the client's link, are too long with an outer header.
#[test]
fn requests_that_may_be_fragmented_arrive_through_tunnels() -> Result<()> {
    for mode in [Mode::DsrIpip, Mode::Gue] {
        let fleet = Fleet::start(Lab::one_arm(1, 1)?, mode, &[100], &[])?;
        let client = &fleet.lab.clients[0];
        allow_fragments(client)?;
        for length in LENGTHS {
            answered_at_once(client, vips()[0], length).with_context(|| format!("{mode:?}"))?;
        }
    }
    Ok(())
}

/// A module's link has an MTU of 3,400 bytes, its client's of 1,500.
#[test]
fn answers_that_may_be_fragmented_arrive() -> Result<()> {
    let lab = Lab::two_arm(1, 1, DefaultRoute::Nlb)?;
    set_back_mtu(&lab, 3400)?;
    allow_fragments(&lab.modules[0])?;
    let fleet = Fleet::start(lab, Mode::Nat, &[100], &[])?;
    for length in LENGTHS {
        answered_at_once(&fleet.lab.clients[0], vips()[0], length)?;
    }
    Ok(())
}

/// A module's link has a smaller MTU than its client's.
#[test]
fn requests_that_may_be_fragmented_arrive_with_nat() -> Result<()> {
    let lab = Lab::two_arm(1, 1, DefaultRoute::Nlb)?;
    set_back_mtu(&lab, 1400)?;
    let fleet = Fleet::start(lab, Mode::Nat, &[100], &[])?;
    allow_fragments(&fleet.lab.clients[0])?;
    for length in LENGTHS {
        answered_at_once(&fleet.lab.clients[0], vips()[0], length)?;
    }
    Ok(())
}

/// A bridge with containers has a smaller MTU than the uplink, or a larger one.
const BRIDGES: [u32; 2] = [1400, 9000];

#[test]
fn path_mtu_discovery_works_with_containers() -> Result<()> {
    for mtu in BRIDGES {
        let fleet = Fleet::start(with_containers(mtu)?, Mode::Nat, &[100], &[])?;
        for client in around(&fleet) {
            exchanges(client).with_context(|| format!("bridge of {mtu}, client at {}", client.v4))?;
        }
    }
    Ok(())
}

#[test]
fn packets_that_may_be_fragmented_arrive_from_and_in_containers() -> Result<()> {
    for mtu in BRIDGES {
        let lab = with_containers(mtu)?;
        for host in lab.clients.iter().chain(&lab.modules).chain([&lab.nlb]) {
            allow_fragments(host)?;
        }
        let fleet = Fleet::start(lab, Mode::Nat, &[100], &[])?;
        for client in around(&fleet) {
            for length in LENGTHS.into_iter().chain([20_000]) {
                answered_at_once(client, vips()[0], length)
                    .with_context(|| format!("bridge of {mtu}, client at {}", client.v4))?;
            }
        }
    }
    Ok(())
}

/// A client on the link, one on the NLB's host, and one in a container.
fn around(fleet: &Fleet) -> [&Host; 3] {
    [&fleet.lab.clients[0], &fleet.lab.nlb, &fleet.lab.modules[1]]
}

/// Clients and modules do path MTU discovery: long lines by TCP, and datagrams, of which the first may be
/// lost.
fn exchanges(client: &Host) -> Result<()> {
    on(client, || async {
        for vip in vips() {
            let mut connection = Connection::open(vip).await?;
            for _ in 0..10 {
                connection.echo(&"long".repeat(20_000)).await.with_context(|| format!("TCP to {vip}"))?;
            }
        }
        Ok(())
    })?;
    for vip in vips() {
        for length in LENGTHS {
            answered(client, vip, length)?;
        }
    }
    Ok(())
}

/// Switches path MTU discovery off: this host's packets may be fragmented.
fn allow_fragments(host: &Host) -> Result<()> {
    host.netns.sysctl("net/ipv4/ip_no_pmtu_disc", 1)
}

fn set_back_mtu(lab: &Lab, mtu: u32) -> Result<()> {
    let mtu = &mtu.to_string();
    for (netns, link) in [(&lab.nlb.netns, "eth1"), (&lab.modules[0].netns, "eth0")] {
        netns.ip(&["link", "set", link, "mtu", mtu])?;
    }
    for port in ["back-nlb", "back-module0", "back"] {
        lab.switch().ip(&["link", "set", port, "mtu", mtu])?;
    }
    Ok(())
}

/// The modules are in containers on a bridge of this MTU.
fn with_containers(mtu: u32) -> Result<Lab> {
    let (lab, mtu) = (Lab::same_host(1, 2)?, &mtu.to_string());
    for (number, module) in lab.modules.iter().enumerate() {
        module.netns.ip(&["link", "set", "eth0", "mtu", mtu])?;
        lab.nlb.netns.ip(&["link", "set", &format!("veth{number}"), "mtu", mtu])?;
    }
    lab.nlb.netns.ip(&["link", "set", "br0", "mtu", mtu])?;
    Ok(lab)
}

/// Sends one datagram, which has to be answered.
fn answered_at_once(client: &Host, vip: SocketAddr, length: usize) -> Result<()> {
    let socket = client.netns.run(|| connected(vip))??;
    socket.set_read_timeout(Some(MAX_WAIT))?;
    socket.send(&question(length))?;
    let answer = receive(&socket).with_context(|| format!("{length} bytes to {vip}"))?;
    ensure!(answer.ends_with(&question(length)), "an answer of {} bytes to {length}", answer.len());
    Ok(())
}

/// Sends a datagram until it is answered.
fn answered(client: &Host, vip: SocketAddr, length: usize) -> Result<()> {
    let since = Instant::now();
    while since.elapsed() < MAX_WAIT {
        // A connected socket on the NLB's host keeps its route, with the old path MTU.
        let socket = client.netns.run(|| connected(vip))??;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        socket.send(&question(length))?;
        if receive(&socket).is_ok_and(|answer| answer.ends_with(&question(length))) {
            return Ok(());
        }
    }
    bail!("no answer to {length} bytes from {vip}")
}

fn question(length: usize) -> Vec<u8> {
    (0..length).map(|n| b'a' + (n % 23) as u8).collect()
}

fn connected(vip: SocketAddr) -> std::io::Result<UdpSocket> {
    let socket = UdpSocket::bind(if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" })?;
    socket.connect(vip)?;
    Ok(socket)
}

fn receive(socket: &UdpSocket) -> Result<Vec<u8>> {
    let mut answer = vec![0; 1 << 16];
    let length = socket.recv(&mut answer)?;
    answer.truncate(length);
    Ok(answer)
}
