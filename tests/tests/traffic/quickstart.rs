//! The Python module of proto/QUICKSTART.md, run unchanged but for addresses.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Lab, VIP4};
use nlb_testkit::netns::output;
use nlb_testkit::process::MAX_WAIT;
use nlb_testkit::programs::{grpc, terminate};

use crate::fleet::Fleet;

const GUIDE: &str = include_str!("../../../proto/QUICKSTART.md");

/// The guide's only program in this language.
fn program(language: &str) -> Result<&'static str> {
    let opening = format!("\n```{language}\n");
    let mut blocks = GUIDE.split(&opening).skip(1);
    let (program, _) =
        blocks.next().and_then(|rest| rest.split_once("\n```\n")).context("no such program")?;
    ensure!(blocks.next().is_none(), "more than one program");
    Ok(program)
}

/// Replaces the guide's addresses by the lab's.
fn with_addresses(program: &str, addresses: &[(&str, String)]) -> Result<String> {
    addresses.iter().try_fold(program.to_owned(), |program, (guides, ours)| {
        ensure!(program.contains(guides), "the program does not name {guides}");
        Ok(program.replace(guides, ours))
    })
}

#[test]
fn the_module_in_python_serves_and_drains() -> Result<()> {
    let lab = Lab::one_arm(1, 1)?;
    let nlb = nlb_testkit::programs::serve(&lab, "eth0", &[])?;
    let fleet = Fleet::from_parts(lab, nlb, Vec::new());
    let lab = &fleet.lab;
    let host = &lab.modules[0];
    let program = with_addresses(
        program("python")?,
        &[
            ("10.77.2.1:50051", grpc(lab).to_string()),
            ("10.77.2.2", host.v4.to_string()),
            ("192.0.2.1", VIP4.to_string()),
        ],
    )?;
    let file = lab.files().join("greeter.py");
    fs::write(&file, program)?;
    let generated = lab.files().join("python");
    let generate = Path::new(env!("CARGO_MANIFEST_DIR")).join("../proto/generate.sh");
    output(Command::new(generate).arg("python").arg(&generated))?;
    let mut python = host.netns.command("/usr/bin/python3");
    // A proxy of the environment does not reach this network.
    python.arg(&file).env("PYTHONPATH", &generated).env("no_grpc_proxy", "*");
    let mut module = lab.start("greeter", &mut python)?;
    fleet.wait_until("its health check passes", |modules| {
        modules.get("greeter-2").is_some_and(|module| module["health"] == "HEALTHY")
    })?;
    let mut curl = lab.clients[0].netns.command("curl");
    curl.args(["-sS", "--max-time", "120", &format!("telnet://{VIP4}:80")]);
    let greeting = output(curl.stdin(std::process::Stdio::null()))?;
    ensure!(greeting == "hello from Python\n", "{greeting:?}");
    terminate(&mut module, MAX_WAIT)?;
    fleet.wait_until("it has left", |modules| modules.is_empty())
}
