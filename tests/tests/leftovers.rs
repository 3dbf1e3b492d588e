//! What a killed process leaves behind. This is a test program of its own, since any other lab would remove
//! it, too. Cargo runs test programs one after another.

use std::path::Path;
use std::process::{Command, id};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use nlb_testkit::lab::Lab;
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;

#[test]
fn next_lab_removes_leftovers_of_a_killed_process() -> Result<()> {
    let mut ended = Command::new("true").spawn()?;
    ended.wait()?;
    let leftover = format!("nlb-{}-0-client", ended.id());
    output(Command::new("ip").args(["netns", "add", &leftover]))?;
    let mut inside = Command::new("ip").args(["netns", "exec", &leftover, "sleep", "1000"]).spawn()?;
    let started = Instant::now();
    while !output(Command::new("ip").args(["netns", "pids", &leftover]))?.contains(&inside.id().to_string()) {
        ensure!(started.elapsed() < MAX_WAIT, "no process has entered {leftover}");
        thread::sleep(Duration::from_millis(10));
    }
    let lab = Lab::one_arm(0, 0)?;
    assert!(!Path::new("/run/netns").join(&leftover).exists());
    assert!(!inside.wait()?.success());
    assert_eq!(namespaces(lab.name())?, 2);
    assert!(lab.name().contains(&id().to_string()));
    Ok(())
}

fn namespaces(lab: &str) -> Result<usize> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    Ok(list.lines().filter(|line| line.starts_with(&format!("{lab}-"))).count())
}
