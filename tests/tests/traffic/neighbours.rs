//! No packet is lost to an unknown neighbour, or while modules register.

use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{DefaultRoute, Lab};
use nlb_testkit::process::MAX_WAIT;
use tokio::net::UdpSocket;

use crate::clients::{L4, flows, on, request_udp};
use crate::fleet::{Fleet, Mode, vips};

async fn one_datagram(to: SocketAddr) -> Result<String> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(to).await?;
    request_udp(&socket).await
}

#[test]
fn row_22_the_first_packet_to_an_unknown_neighbour_is_not_lost() -> Result<()> {
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let nlb = &fleet.lab.nlb.netns;
    on(&fleet.lab.clients[0], || async {
        for round in 0..10 {
            // Removes the entries of modules and clients. A lost datagram is not sent again.
            nlb.ip(&["neigh", "flush", "all"])?;
            for vip in vips() {
                one_datagram(vip).await.with_context(|| {
                    format!(
                        "round {round}, {vip}\n{}\n{}",
                        fleet.nlb(&["status", "--packets"]).unwrap_or_default(),
                        fleet.nlb.output()
                    )
                })?;
            }
        }
        Ok(())
    })?;
    let packets = fleet.nlb(&["status", "--packets", "--output", "json"])?;
    ensure!(packets.contains("park"), "no packet was punted: {packets}");
    Ok(())
}

#[test]
fn no_request_is_lost_while_modules_join() -> Result<()> {
    // Replies are recognised by their source address here.
    let lab = Lab::two_arm(1, 3, DefaultRoute::Nlb)?;
    let args = ["--metadata", "reply_path=nlb"];
    let mut fleet = Fleet::start(lab, Mode::Nat, &[100], &args)?;
    let (done, requests) = (AtomicBool::new(false), AtomicU32::new(0));
    let client = fleet.lab.clients.remove(0);
    std::thread::scope(|scope| -> Result<()> {
        let client_thread = scope.spawn(|| {
            on(&client, || async {
                while !done.load(Ordering::Relaxed) {
                    for vip in vips() {
                        one_datagram(vip).await.with_context(|| format!("after {requests:?} requests"))?;
                        requests.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Ok(())
            })
        });
        let joined = (|| {
            for n in 1..3 {
                // Requests are answered before each module joins.
                let (before, started) = (requests.load(Ordering::Relaxed), Instant::now());
                while requests.load(Ordering::Relaxed) < before + 10 && !client_thread.is_finished() {
                    ensure!(started.elapsed() < MAX_WAIT, "{requests:?} requests were answered");
                    sleep(Duration::from_millis(10));
                }
                fleet.add(&format!("m{n}"), n, Mode::Nat, 100, &args)?;
                fleet.wait_for(n + 1)?;
            }
            Ok(())
        })();
        done.store(true, Ordering::Relaxed);
        client_thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?;
        joined
    })
}

#[test]
fn generic_xdp_serves_from_all_modules() -> Result<()> {
    let fleet = Fleet::start_generic(Lab::one_arm(1, 2)?, &[100, 100])?;
    for vip in vips() {
        for (first, l4) in [(20_000, L4::Tcp), (30_000, L4::Udp)] {
            let counts = flows(&fleet.lab.clients[0], l4, vip, first, 200)?;
            ensure!(counts.len() == 2, "{counts:?}");
        }
    }
    Ok(())
}

/// The daemon confirms neighbours every 10 s; a request would end the state of a permanent one.
#[test]
fn permanent_neighbours_stay_as_they_are() -> Result<()> {
    const CONFIRMATIONS: Duration = Duration::from_secs(25);
    let fleet = Fleet::start(Lab::one_arm(1, 2)?, Mode::Nat, &[100, 100], &[])?;
    let (nlb, module, client) = (&fleet.lab.nlb.netns, &fleet.lab.modules[0], &fleet.lab.clients[0]);
    let hosts = [module, client].map(|host| (host, [host.v4.into(), host.v6.into()]));
    for (host, addresses) in hosts {
        let mac = host.netns.mac("eth0")?;
        for address in addresses.map(|address: IpAddr| address.to_string()) {
            nlb.ip(&["neigh", "replace", &address, "lladdr", &mac, "dev", "eth0", "nud", "permanent"])?;
        }
    }
    let start = Instant::now();
    while start.elapsed() < CONFIRMATIONS {
        on(client, || async {
            for vip in vips() {
                one_datagram(vip).await?;
            }
            Ok(())
        })?;
        for address in hosts.iter().flat_map(|(_, addresses)| addresses) {
            let shown = nlb.ip(&["neigh", "show", &address.to_string()])?;
            ensure!(shown.contains("PERMANENT"), "after {:?}: {shown}", start.elapsed());
        }
    }
    Ok(())
}
