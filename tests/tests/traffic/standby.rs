//! Routes of lower priority, while nobody of the higher one is healthy.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};

/// Waits until a connection to each VIP is answered by this module.
fn wait_for_answers_of(fleet: &Fleet, module: &str) -> Result<()> {
    on(&fleet.lab.clients[0], || async {
        for vip in vips() {
            let started = Instant::now();
            loop {
                let answer = match Connection::open(vip).await {
                    Ok(mut connection) => connection.request().await,
                    Err(error) => Err(error),
                };
                match answer {
                    Ok(name) if name == module => break,
                    other if started.elapsed() > MAX_WAIT => bail!("{vip}: {other:?}, not {module}"),
                    _ => tokio::time::sleep(Duration::from_millis(50)).await,
                }
            }
        }
        Ok(())
    })
}

#[test]
fn a_lower_priority_serves_while_nobody_of_the_higher_is_healthy() -> Result<()> {
    for fail_open in ["--fail-open=true", "--fail-open=false"] {
        let mut fleet =
            Fleet::start_with(Lab::one_arm(1, 2)?, Mode::Nat, &[], &[], &["--reject", fail_open])?;
        let check = ["--check", "tcp", "--check-interval", "1"];
        fleet.prepare(0, Mode::Nat)?;
        fleet.prepare(1, Mode::Nat)?;
        fleet.add("first", 0, Mode::Nat, 100, &[&check[..], &["--route-priority", "5"]].concat())?;
        fleet.add("standby", 1, Mode::Nat, 100, &check)?;
        fleet.wait_for(2)?;
        wait_for_answers_of(&fleet, "first")?;
        fleet.modules[0].signal(Signal::SIGKILL)?;
        wait_for_answers_of(&fleet, "standby")?;
        fleet.add("first", 0, Mode::Nat, 100, &[&check[..], &["--route-priority", "5"]].concat())?;
        wait_for_answers_of(&fleet, "first")?;
    }
    Ok(())
}
