//! Runs other programs: prints their command lines, shows their output or the time they take, and uses root
//! where that is needed.

use std::fs::{self, File};
use std::io::{IsTerminal, Write, stderr};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bpf_toolchain::find_program;
use crate::workspace;

/// Runs a command and shows its output.
pub fn run(command: &mut Command) -> Result<()> {
    eprintln!("$ {}", shown(command));
    let status = command.status().with_context(|| format!("cannot start `{}`", shown(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(command));
    }
    Ok(())
}

/// Runs a long command whose output is shown only if it fails; meanwhile prints `what` and the elapsed time.
pub fn run_quietly(what: &str, command: &mut Command) -> Result<()> {
    let log = workspace::root().join("target/setup.log");
    fs::create_dir_all(log.parent().expect("target/"))?;
    let output = File::create(&log).with_context(|| format!("creating {}", log.display()))?;
    let terminal = stderr().is_terminal();
    if !terminal {
        eprintln!("  {what} ...");
    }
    let started = Instant::now();
    let mut child = command
        .stdin(Stdio::null())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .with_context(|| format!("cannot start `{}`", shown(command)))?;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        if terminal {
            eprint!("\r  {what} ... {} s ", started.elapsed().as_secs());
            stderr().flush()?;
        }
        sleep(Duration::from_millis(200));
    };
    let outcome = if status.success() { "done" } else { "failed" };
    let line_start = if terminal { "\r" } else { "" };
    eprintln!("{line_start}  {what} ... {outcome} in {} s", started.elapsed().as_secs());
    if !status.success() {
        bail!(
            "`{}` failed ({status}):\n{}\nall of its output: {}",
            shown(command),
            tail(&log)?,
            log.display()
        );
    }
    Ok(())
}

/// A command that runs as root: directly if the user is root, otherwise through sudo.
pub fn as_root(program: impl AsRef<Path>) -> Result<Command> {
    let program = program.as_ref();
    if is_root() {
        return Ok(Command::new(program));
    }
    let Some(sudo) = find_program("sudo") else {
        bail!(
            "{} has to run as root, and there is no sudo; become root (`su -`) and repeat",
            program.display()
        );
    };
    let mut command = Command::new(sudo);
    command.arg("--preserve-env=RUST_LOG,RUST_BACKTRACE,NO_COLOR").arg(program);
    Ok(command)
}

/// Runs a `cargo test` that builds as the calling user and tests as root, with these variables and arguments
/// for the tests.
pub fn run_tests_as_root(cargo: &mut Command, variables: &[String], arguments: &[&str]) -> Result<()> {
    run_tests_by(as_root("env")?.args(variables), cargo, arguments)
}

/// Runs a `cargo test` whose test binaries are started by `runner`, by cargo's runner setting.
pub fn run_tests_by(runner: &Command, cargo: &mut Command, arguments: &[&str]) -> Result<()> {
    let words = [runner.get_program()].into_iter().chain(runner.get_args());
    let words: Vec<_> = words.map(|word| format!("{word:?}")).collect();
    cargo.arg("--config").arg(format!("target.'cfg(unix)'.runner = [{}]", words.join(", ")));
    run(cargo.arg("--").args(arguments))
}

pub fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

fn shown(command: &Command) -> String {
    let mut words = vec![Path::new(command.get_program()).file_name().unwrap_or_default()];
    words.extend(command.get_args());
    let words = words.iter().map(|word| word.to_string_lossy());
    words
        .map(|word| if word.contains([' ', '\n']) { format!("'{word}'") } else { word.into() })
        .collect::<Vec<_>>()
        .join(" ")
}

fn tail(log: &Path) -> Result<String> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let lines: Vec<_> = text.lines().collect();
    Ok(lines[lines.len().saturating_sub(30)..].join("\n"))
}
