//! A route for every port of the host's only address.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::Lab;
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::programs::{built, grpc, serve};

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, LEASE};
use crate::interfaces::wait_for_log;

#[test]
fn host_keeps_its_control_ports_and_its_connections() -> Result<()> {
    let lab = Lab::one_arm(1, 1)?;
    let own = lab.nlb.v4.to_string();
    let ssh = listen(&lab.nlb.netns, SocketAddr::from(([0, 0, 0, 0], 22)))?;
    let taken = listen(&lab.nlb.netns, SocketAddr::from(([0, 0, 0, 0], 9100)))?;
    let remote = listen(&lab.clients[0].netns, SocketAddr::from((lab.clients[0].v4, 7000)))?;
    let nlb = serve(&lab, "eth0", &[&LEASE[..], &["--vip", &own]].concat())?;
    let mut fleet = Fleet::from_parts(lab, nlb, Vec::new());
    let (nlb, client) = (&fleet.lab.nlb.netns, &fleet.lab.clients[0].netns);
    let mut before = dial(nlb, remote.local_addr()?)?;
    let (mut far, _) = remote.accept()?;

    fleet.modules.push(nlb_testkit::programs::echo(
        &fleet.lab,
        &fleet.lab.modules[0],
        "m0",
        &["--vip", &format!("{own}:0")],
    )?);
    fleet.wait_for(1)?;
    for port in [80, 9100, 443] {
        on(&fleet.lab.clients[0], || async {
            let answered =
                Connection::open(SocketAddr::new(fleet.lab.nlb.v4.into(), port)).await?.request().await?;
            ensure!(answered == "m0", "{answered}");
            Ok(())
        })
        .with_context(|| format!("port {port}\n{}", fleet.nlb.output()))?;
    }
    wait_for_log(&fleet, "the route takes the ports 9100/tcp", 1)?;

    // ssh, the gRPC port, and connections that the host opened before and after.
    dial(client, SocketAddr::new(fleet.lab.nlb.v4.into(), 22))?;
    ssh.accept()?;
    output(client.command(built("nlb")?).args(["--server", &grpc(&fleet.lab).to_string(), "status"]))?;
    exchange(&mut before, &mut far)?;
    let mut after = dial(nlb, remote.local_addr()?)?;
    let (mut far, _) = remote.accept()?;
    exchange(&mut after, &mut far)?;
    taken.set_nonblocking(true)?;
    ensure!(taken.accept().is_err(), "the route is said to take this port");
    fleet.wait_for_heartbeats(&["m0"])
}

fn listen(host: &Namespace, at: SocketAddr) -> Result<TcpListener> {
    Ok(host.run(|| TcpListener::bind(at))??)
}

fn dial(from: &Namespace, to: SocketAddr) -> Result<TcpStream> {
    Ok(from.run(|| TcpStream::connect_timeout(&to, Duration::from_secs(10)))??)
}

/// Checks that both ends of a connection hear each other.
fn exchange(one: &mut TcpStream, other: &mut TcpStream) -> Result<()> {
    for stream in [&*one, &*other] {
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
    }
    let mut heard = [0];
    one.write_all(b"a")?;
    other.read_exact(&mut heard)?;
    other.write_all(b"b")?;
    one.read_exact(&mut heard)?;
    ensure!(heard == *b"b");
    Ok(())
}
