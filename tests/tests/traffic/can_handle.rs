//! Answers to CanHandle: new flows follow them, and open connections stay.

use std::fs;
use std::time::Instant;

use anyhow::{Result, ensure};
use nlb_testkit::lab::Lab;
use nlb_testkit::process::MAX_WAIT;

use crate::clients::{Connection, on};
use crate::fleet::{Fleet, Mode, vips};
use crate::life::{assert_answered, hold, spread};

/// Opens connections until this module answers all of a round. The others are closed.
async fn moved_to(name: &str) -> Result<()> {
    let flipped = Instant::now();
    loop {
        let fresh = hold(20).await?;
        if spread(&fresh).keys().eq([name]) {
            return Ok(());
        }
        ensure!(flipped.elapsed() < MAX_WAIT, "after {MAX_WAIT:?} new flows go to {:?}", spread(&fresh));
    }
}

#[test]
fn priority_change_moves_new_flows_and_keeps_open_ones() -> Result<()> {
    let lab = Lab::one_arm(1, 2)?;
    let files = ["m0", "m1"].map(|name| lab.files().join(format!("{name}.priority")));
    let set_priority = |module: usize, priority: &str| fs::write(&files[module], priority);
    // The order of the first CanHandle calls makes no difference.
    set_priority(0, "0")?;
    set_priority(1, "0")?;
    let mut fleet = Fleet::start(lab, Mode::Nat, &[], &[])?;
    for (n, file) in files.iter().enumerate() {
        let file = file.to_string_lossy();
        fleet.add(&format!("m{n}"), n, Mode::Nat, 100, &["--priority", &file])?;
    }
    fleet.wait_for(2)?;
    on(&fleet.lab.clients[0], || async {
        let mut held = hold(20).await?;
        ensure!(spread(&held).len() == 2, "not both modules have connections: {:?}", spread(&held));
        set_priority(0, "2")?;
        moved_to("m0").await?;
        assert_answered(&mut held).await?;
        set_priority(1, "3")?;
        moved_to("m1").await?;
        held.extend(hold(10).await?);
        set_priority(1, "no")?;
        moved_to("m0").await?;
        assert_answered(&mut held).await?;
        // No module can handle the route: new connections are refused, open ones continue.
        fs::remove_file(&files[0])?;
        let flipped = Instant::now();
        while Connection::open(vips()[0]).await.is_ok() {
            ensure!(flipped.elapsed() < MAX_WAIT, "new flows are still taken");
        }
        assert_answered(&mut held).await?;
        set_priority(0, "0")?;
        let flipped = Instant::now();
        while Connection::open(vips()[0]).await.is_err() {
            ensure!(flipped.elapsed() < MAX_WAIT, "new flows are not taken again");
        }
        assert_answered(&mut held).await
    })
}
