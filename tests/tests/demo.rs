//! The demo: a whole run, an interrupted one, and one that is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use nlb_testkit::netns::output;
use nlb_testkit::programs::built;

const UP: Duration = Duration::from_secs(60);
/// A request's timeout: a slow machine may take longer to answer than a person would wait.
const PATIENT: &str = "60s";

#[test]
fn ends_by_itself_without_a_failed_request() -> Result<()> {
    let output = demo("5s", PATIENT)?.output()?;
    let printed = printed(&output);
    ensure!(output.status.success(), "{printed}");
    ensure!(printed.contains(" requests answered, 0 failed"), "{printed}");
    let words = printed.split_whitespace().collect::<Vec<_>>().join(" ");
    for module in ["echo-1 v1 100 healthy", "echo-2 v1 100 healthy", "echo-3 v2 50 healthy"] {
        ensure!(words.contains(module), "{module} is not shown:\n{printed}");
    }
    let hints = |line: &&str| line.starts_with("  ");
    for line in String::from_utf8_lossy(&output.stdout).lines().filter(|line| !hints(line)) {
        ensure!(line.chars().count() <= 80, "{} columns: {line}", line.chars().count());
    }
    Ok(())
}

#[test]
fn says_why_a_module_has_ended() -> Result<()> {
    // A request that the killed module has had ends by its timeout, and the demo only then.
    let mut demo = demo("10m", "3s")?.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    let mut lines = BufReader::new(demo.stdout.take().context("stdout is piped")?).lines();
    let killed = lines.by_ref().map_while(Result::ok).find_map(|line| {
        line.trim()
            .strip_prefix("kill -9 ")
            .or(line.trim().strip_prefix("sudo kill -9 "))?
            .parse::<i32>()
            .ok()
    });
    kill(Pid::from_raw(killed.context("the demo shows how to kill a module")?), Signal::SIGKILL)?;
    let shown: Vec<String> = lines
        .by_ref()
        .map_while(Result::ok)
        .skip_while(|line| !line.starts_with("echo-1 has ended"))
        .take(2)
        .collect();
    ensure!(shown[0] == "echo-1 has ended, signal: 9 (SIGKILL)", "{shown:?}");
    ensure!(shown[1].starts_with("  its last line: ") && shown[1].contains("registered"), "{shown:?}");
    kill(Pid::from_raw(demo.id() as i32), Signal::SIGINT)?;
    lines.for_each(drop);
    demo.wait()?;
    Ok(())
}

#[test]
fn ends_cleanly_when_interrupted() -> Result<()> {
    let mut demo = demo("10m", PATIENT)?.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let pid = demo.id();
    wait_for_traffic(&mut demo)?;
    kill(Pid::from_raw(pid as i32), Signal::SIGINT)?;
    let output = demo.wait_with_output()?;
    ensure!(output.status.success(), "{}", printed(&output));
    ensure!(leftovers(pid)?.is_empty() && !files(pid).exists(), "left behind: {:?}", leftovers(pid)?);
    Ok(())
}

#[test]
fn next_demo_removes_leftovers_of_a_killed_one() -> Result<()> {
    let mut killed = demo("10m", PATIENT)?.stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
    wait_for_traffic(&mut killed)?;
    let pids = inside(killed.id())?;
    ensure!(pids.len() == 4, "the NLB and three modules, but found {pids:?}");
    killed.kill()?;
    killed.wait()?;
    let started = Instant::now();
    while pids.iter().any(|pid| Path::new("/proc").join(pid).exists()) {
        ensure!(started.elapsed() < UP, "processes of the lab outlive it: {pids:?}");
        sleep(Duration::from_millis(20));
    }
    // Any demo that starts from here on removes what this one has left, also that of another test.
    let next = demo("2s", PATIENT)?.output()?;
    ensure!(next.status.success(), "{}", printed(&next));
    ensure!(
        leftovers(killed.id())?.is_empty() && !files(killed.id()).exists(),
        "{:?}",
        leftovers(killed.id())?
    );
    Ok(())
}

/// A demo on a gRPC port of its own, since several run at a time.
fn demo(duration: &str, timeout: &str) -> Result<Command> {
    let mut command = Command::new(built("nlb-demo")?);
    command.args(["--duration", duration, "--timeout", timeout, "--grpc", "127.0.0.1:0"]);
    Ok(command)
}

/// Waits until the demo reports answered requests. The caller can read what it prints later.
fn wait_for_traffic(demo: &mut Child) -> Result<()> {
    let mut lines = BufReader::with_capacity(1, demo.stdout.take().context("stdout is piped")?);
    let mut line = String::new();
    loop {
        line.clear();
        ensure!(lines.read_line(&mut line)? > 0, "the demo ended before a request was answered");
        if line.contains(" requests answered, ") && !line.contains(" 0 requests answered, ") {
            demo.stdout = Some(lines.into_inner());
            return Ok(());
        }
    }
}

/// The processes in the namespaces of a demo.
fn inside(pid: u32) -> Result<Vec<String>> {
    let mut pids = Vec::new();
    for namespace in leftovers(pid)? {
        // A namespace that is being created or removed has none.
        let list = output(Command::new("ip").args(["netns", "pids", &namespace])).unwrap_or_default();
        pids.extend(list.split_whitespace().map(String::from));
    }
    Ok(pids)
}

fn leftovers(pid: u32) -> Result<Vec<String>> {
    let list = output(Command::new("ip").args(["netns", "list"]))?;
    let names = list.lines().filter_map(|line| line.split_whitespace().next());
    Ok(names.filter(|name| name.starts_with(&format!("nlb-{pid}-"))).map(String::from).collect())
}

fn files(pid: u32) -> std::path::PathBuf {
    Path::new("/run/nlb-lab").join(format!("nlb-{pid}-0"))
}

fn printed(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}
