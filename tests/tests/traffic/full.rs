//! `max_connections` with real sockets.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;
use tokio::net::UdpSocket;

use crate::clients::{Connection, on, request_udp};
use crate::fleet::{Fleet, Mode, vips};

const LIMIT: usize = 5;
const ATTEMPTS: usize = 22;

/// Connects, and asks who answers. `None` if the connection is refused.
async fn connect(to: SocketAddr) -> Result<Option<(Connection, String)>> {
    match Connection::open(to).await {
        Ok(mut connection) => {
            let name = connection.request().await?;
            Ok(Some((connection, name)))
        }
        Err(error) if is_refused(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

fn is_refused(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::ConnectionRefused)
}

#[test]
fn an_instance_holds_as_many_connections_as_it_asked_for() -> Result<()> {
    let [v4, v6] = vips();
    for (mode, vip) in [(Mode::Nat, v4), (Mode::Nat, v6), (Mode::DsrL2, v4)] {
        let fleet = Fleet::start_with(
            Lab::one_arm(1, 1)?,
            mode,
            &[100],
            &["--max-connections", &LIMIT.to_string()],
            &["--reject", "--idle-closing", "2s"],
        )?;
        on(&fleet.lab.clients[0], || async {
            let mut held = Vec::new();
            for _ in 0..ATTEMPTS {
                held.extend(connect(vip).await?);
            }
            ensure!(held.len() == LIMIT, "{}: {} connections to {vip}", mode.name(), held.len());
            for (connection, _) in &mut held {
                connection.request().await?;
            }
            // By a FIN, and by a reset.
            drop(held.pop());
            held.push(connect_when_there_is_room(vip).await?);
            held.swap_remove(0).0.reset()?;
            held.push(connect_when_there_is_room(vip).await?);
            ensure!(connect(vip).await?.is_none(), "{}: {vip} is full again", mode.name());
            Ok(())
        })?;
        ensure!(fleet.modules()?["m0"]["health"] == "HEALTHY", "a full instance is not sick");
    }
    Ok(())
}

/// A closed connection counts until its module has closed it, too, and one with direct server return until
/// its idle time is over.
async fn connect_when_there_is_room(to: SocketAddr) -> Result<(Connection, String)> {
    let started = Instant::now();
    loop {
        if let Some(connected) = connect(to).await? {
            return Ok(connected);
        }
        ensure!(started.elapsed() < MAX_WAIT, "no room after a connection was closed");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn flows_of_a_full_instance_go_to_another_and_then_to_the_next_priority() -> Result<()> {
    let mut fleet = Fleet::start_with(Lab::one_arm(1, 3)?, Mode::Nat, &[], &[], &["--reject"])?;
    for (n, limit) in ["3", "4"].into_iter().enumerate() {
        fleet.prepare(n, Mode::Nat)?;
        fleet.add(
            &format!("m{n}"),
            n,
            Mode::Nat,
            100,
            &["--max-connections", limit, "--route-priority", "5"],
        )?;
    }
    fleet.prepare(2, Mode::Nat)?;
    fleet.add("standby", 2, Mode::Nat, 100, &["--max-connections", "2"])?;
    fleet.wait_for(3)?;
    on(&fleet.lab.clients[0], || async {
        let vip = vips()[0];
        let mut held = Vec::new();
        for _ in 0..ATTEMPTS {
            held.extend(connect(vip).await?);
        }
        let of = |module: &str| held.iter().filter(|(_, name)| name == module).count();
        let found = (of("m0"), of("m1"), of("standby"));
        ensure!(found == (3, 4, 2), "{found:?}");
        let any = |(_, name): &(Connection, String)| name == "standby";
        ensure!(held[7..].iter().all(any), "the standby got the last ones");

        // Datagrams find the same instances full: a flow counts, whatever its protocol is.
        let socket = UdpSocket::bind((fleet.lab.clients[0].v4, 0)).await?;
        socket.connect(vip).await?;
        let refused = request_udp(&socket).await.expect_err("all instances are full");
        ensure!(is_refused(&refused), "{refused:#}");
        Ok(())
    })
}
