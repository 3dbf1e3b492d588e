//! Upcalls about ports without a route: modules answer CanHandle, and the client's next packet reaches one.

use std::fs;
use std::io;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

use crate::clients::{Connection, on, request_udp};
use crate::fleet::{Fleet, Mode, vips};

/// A fleet of two modules that answer CanHandle with the priority in their files.
struct Site {
    fleet: Fleet,
}

impl Site {
    fn start(serve: &[&str]) -> Result<Site> {
        let fleet = Fleet::start_with(Lab::one_arm(1, 2)?, Mode::Nat, &[], &[], serve)?;
        let mut site = Site { fleet };
        site.set_priority(0, "5")?;
        site.set_priority(1, "7")?;
        for n in 0..2 {
            let (file, fleet) = (site.file(n), &mut site.fleet);
            let args = ["--priority", &file, "--metadata", "listen_port=8080"];
            fleet.add(&format!("m{n}"), n, Mode::Nat, 100, &args)?;
        }
        site.fleet.wait_for(2)?;
        Ok(site)
    }

    fn file(&self, module: usize) -> String {
        self.fleet.lab.files().join(format!("m{module}.priority")).to_string_lossy().into_owned()
    }

    fn set_priority(&self, module: usize, priority: &str) -> Result<()> {
        Ok(fs::write(self.file(module), priority)?)
    }

    /// The number of CanHandle calls of each module about this destination.
    fn upcalls(&self, destination: &str) -> Vec<usize> {
        let line = format!("sent a packet for learned:{destination}, which no route covers");
        let times =
            |output: String| output.lines().filter(|logged| logged.trim_end().ends_with(&line)).count();
        self.fleet.modules.iter().map(|module| times(module.output())).collect()
    }

    fn learned(&self) -> Result<usize> {
        let rows: Vec<serde_json::Value> =
            serde_json::from_str(&self.fleet.nlb(&["routes", "--output", "json"])?)?;
        let learned =
            |row: &&serde_json::Value| row["route_id"].as_str().is_some_and(|id| id.starts_with("learned:"));
        Ok(rows.iter().filter(learned).count())
    }
}

fn at(vip: SocketAddr, port: u16) -> SocketAddr {
    SocketAddr::new(vip.ip(), port)
}

/// Opens connections until this module answers one.
async fn moved_to(name: &str, to: SocketAddr) -> Result<()> {
    let since = Instant::now();
    while Connection::open(to).await?.request().await? != name {
        ensure!(since.elapsed() < MAX_WAIT, "after {MAX_WAIT:?} new flows do not go to {name}");
    }
    Ok(())
}

/// Connects until the connection is refused.
async fn refused(to: SocketAddr) -> Result<()> {
    let since = Instant::now();
    loop {
        let error = Connection::open(to).await.err();
        if let Some(error) = error.as_ref().and_then(|error| error.downcast_ref::<io::Error>())
            && error.kind() == io::ErrorKind::ConnectionRefused
        {
            return Ok(());
        }
        ensure!(since.elapsed() < MAX_WAIT, "after {MAX_WAIT:?} {to} is not refused: {error:?}");
    }
}

#[test]
fn retransmitted_syn_reaches_the_learned_route() -> Result<()> {
    let site = Site::start(&["--learn-routes"])?;
    on(&site.fleet.lab.clients[0], || async {
        for vip in vips() {
            let to = at(vip, 81);
            let mut tries = JoinSet::new();
            for _ in 0..20 {
                tries.spawn(async move { Connection::open(to).await?.request().await });
            }
            while let Some(answered) = tries.join_next().await {
                ensure!(answered?? == "m1", "the higher priority was not chosen");
            }
            let mut held = Connection::open(to).await?;
            ensure!(held.request().await? == "m1");
            ensure!(site.upcalls(&format!("{to}/tcp")) == [1, 1], "{:?}", site.upcalls(&format!("{to}/tcp")));

            site.set_priority(0, "9")?;
            moved_to("m0", to).await?;
            ensure!(held.request().await? == "m1", "open connections stay");
            site.set_priority(0, "5")?;
        }
        ensure!(site.learned()? >= 2, "{}", site.fleet.nlb(&["routes"])?);
        // Without a module that can handle it, a connection to another port is refused.
        fs::remove_file(site.file(0))?;
        fs::remove_file(site.file(1))?;
        for vip in vips() {
            let to = at(vip, 82);
            refused(to).await?;
            refused(to).await?;
            ensure!(site.upcalls(&format!("{to}/tcp")) == [1, 1], "{:?}", site.upcalls(&format!("{to}/tcp")));
            // A learned route ends when no module can handle it, and the port is closed again.
            refused(at(vip, 81)).await?;
        }
        let since = Instant::now();
        while site.learned()? > 0 {
            ensure!(since.elapsed() < MAX_WAIT, "{}", site.fleet.nlb(&["routes"])?);
        }
        Ok(())
    })
}

#[test]
fn datagrams_reach_the_learned_route() -> Result<()> {
    let site = Site::start(&["--learn-routes"])?;
    on(&site.fleet.lab.clients[0], || async {
        for vip in vips() {
            let to = at(vip, 5353);
            let socket = UdpSocket::bind(if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }).await?;
            socket.connect(to).await?;
            let since = Instant::now();
            let answered = loop {
                socket.send(b"who?").await?;
                let mut answer = [0; 64];
                let answer = tokio::time::timeout(Duration::from_millis(200), socket.recv(&mut answer));
                if answer.await.is_ok() {
                    break request_udp(&socket).await?;
                }
                ensure!(since.elapsed() < MAX_WAIT, "no answer from {to}");
            };
            ensure!(answered == "m1", "{answered}");
            ensure!(site.upcalls(&format!("{to}/udp")) == [1, 1]);
        }
        Ok(())
    })
}

#[test]
fn closed_ports_are_refused_while_the_daemon_is_stopped() -> Result<()> {
    let site = Site::start(&["--learn-routes"])?;
    on(&site.fleet.lab.clients[0], || async {
        site.fleet.nlb.signal(Signal::SIGSTOP)?;
        for vip in vips() {
            // The pending upcall expires.
            refused(at(vip, 81)).await?;
            Connection::open(vip).await?.request().await?;
        }
        site.fleet.nlb.signal(Signal::SIGCONT)?;
        for vip in vips() {
            let since = Instant::now();
            while Connection::open(at(vip, 81)).await.is_err() {
                ensure!(since.elapsed() < MAX_WAIT, "the question was not answered afterwards");
            }
        }
        Ok(())
    })
}

#[test]
fn modules_get_no_upcalls_without_learn_routes() -> Result<()> {
    let site = Site::start(&[])?;
    on(&site.fleet.lab.clients[0], || async {
        for vip in vips() {
            let to = at(vip, 81);
            let error =
                Connection::open(to).await.err().context("a connection to a port without a service")?;
            let error = error.downcast_ref::<io::Error>().map(io::Error::kind);
            ensure!(error == Some(io::ErrorKind::ConnectionRefused), "{error:?}");
            ensure!(site.upcalls(&format!("{to}/tcp")) == [0, 0]);
        }
        ensure!(site.learned()? == 0);
        Ok(())
    })
}
