//! The real programs of labs: `nlb serve` and the SDK's echo module, as cargo built them.

use std::env;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;

use crate::lab::{Host, Lab, VIP4, VIP6};
use crate::netns::output;
use crate::process::Process;

/// The port of the daemon's gRPC server, on the address of its host's `eth0`.
pub const GRPC_PORT: u16 = 50051;
/// The port of echo modules.
pub const ECHO_PORT: u16 = 8080;

/// An emulated machine takes long to verify the programs.
const START: Duration = Duration::from_secs(120);

/// Starts the daemon on these interfaces, with the persisted state of this lab, and waits until it answers.
pub fn serve(lab: &Lab, interfaces: &str, args: &[&str]) -> Result<Process> {
    let mut command = lab.nlb.netns.command(built("nlb")?);
    command
        .args(["serve", "--iface", interfaces])
        .args(["--vip", &format!("{VIP4},{VIP6}")])
        .args(["--grpc", &grpc(lab).to_string()])
        .arg("--state-dir")
        .arg(lab.files().join("state"))
        .args(args);
    let mut nlb = lab.start("nlb", &mut command)?;
    let address = grpc(lab);
    nlb.wait_until("its gRPC port opens", START, || {
        lab.nlb.netns.run(|| TcpStream::connect_timeout(&address, START)).is_ok_and(|stream| stream.is_ok())
    })?;
    Ok(nlb)
}

pub fn grpc(lab: &Lab) -> SocketAddr {
    SocketAddr::new(lab.nlb.v4.into(), GRPC_PORT)
}

/// Runs the command `nlb` against the daemon, and returns its output.
pub fn cli(lab: &Lab, args: &[&str]) -> Result<String> {
    let mut command = lab.nlb.netns.command(built("nlb")?);
    output(command.args(["--server", &grpc(lab).to_string()]).args(args))
}

/// Starts an echo module on a host. It listens at `ECHO_PORT` and serves the VIPs' port 80, unless the
/// arguments name others.
pub fn echo(lab: &Lab, host: &Host, name: &str, args: &[&str]) -> Result<Process> {
    let mut command = host.netns.command(built("examples/echo")?);
    command
        .args(["--name", name])
        .args(["--nlb", &format!("http://{}", grpc(lab))])
        .args(["--metadata", &format!("data_address={},{}", host.v4, host.v6)]);
    if !args.contains(&"--listen") {
        command.args(["--listen", &format!("[::]:{ECHO_PORT}")]);
    }
    if !args.contains(&"--vip") {
        for vip in [IpAddr::from(VIP4), VIP6.into()] {
            command.args(["--vip", &SocketAddr::new(vip, 80).to_string()]);
        }
    }
    command.args(args);
    lab.start(name, &mut command)
}

/// Ends a program by SIGTERM, and waits for its end.
pub fn terminate(process: &mut Process, at_most: Duration) -> Result<()> {
    process.signal(Signal::SIGTERM)?;
    let status = process.wait(at_most)?;
    if !status.success() {
        bail!("ended with {status} after SIGTERM; its output:\n{}", process.output());
    }
    Ok(())
}

/// The path of a program of the workspace: beside the running one or, for tests, one directory up.
pub fn built(name: &str) -> Result<PathBuf> {
    let own = env::current_exe().context("finding the path of this program")?;
    let found = own.ancestors().skip(1).take(2).map(|dir| dir.join(name)).find(|file| file.is_file());
    found.with_context(|| {
        format!("{name} is not built in the directory of {}; `cargo xtask build` builds it", own.display())
    })
}
