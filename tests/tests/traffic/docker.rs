//! The usual deployment with a real container engine: the NLB in the host's network, modules on a bridge.
//!
//! The engine runs in the namespace of a lab's host, which has its bridges and filters, and keeps its files
//! beside the tests'. `cargo xtask image` puts the files of its images into target/image.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nlb_testkit::lab::{Host, Lab, VIP4, VIP6};
use nlb_testkit::netns::{Namespace, output};
use nlb_testkit::process::{MAX_WAIT, Process};
use nlb_testkit::programs::{grpc, terminate};

use crate::clients::{Connection, L4, flows, on};
use crate::fleet::{Fleet, vips};

/// The capabilities with Debian's engine. Later engines have CAP_BPF and CAP_PERFMON in place of the second.
const CAPABILITIES: [&str; 2] = ["NET_ADMIN", "SYS_ADMIN"];

#[test]
fn modules_in_containers_serve_all_clients() -> Result<()> {
    let site = Site::start()?;
    // The bridge is created after the NLB has started, which has to detect it.
    let subnets = ["--subnet", "172.30.0.0/24", "--subnet", "fd77:0:0:9::/64"];
    site.engine.docker(&[&["network", "create", "--ipv6"], &subnets[..], &[NETWORK]].concat())?;
    for n in 0..3 {
        site.engine.run_module(&site.fleet.lab, &format!("m{n}"), 20 + n)?;
    }
    site.fleet.wait_for(3)?;
    let container = site.engine.run_client(&site.fleet.lab)?;
    for client in [&site.fleet.lab.clients[0], &site.fleet.lab.nlb, &container] {
        serve(client, 20_000)?;
        echoes_a_megabyte(client)?;
    }
    drop(container);

    site.engine.docker(&["rm", "--force", "m0"])?;
    site.engine.run_module(&site.fleet.lab, "m0", 40)?;
    site.fleet.wait_until("m0 is at its new address", |modules| {
        modules.len() == 3
            && modules["m0"]["health"] == "HEALTHY"
            && modules["m0"]["address"].as_str().is_some_and(|address| address.starts_with("172.30.0.40"))
    })?;
    serve(&site.fleet.lab.clients[0], 24_000)
}

/// The engine ends before its host, by the order of the fields.
struct Site {
    engine: Engine,
    fleet: Fleet,
}

impl Site {
    /// The engine, with the images, and the NLB.
    fn start() -> Result<Site> {
        let lab = Lab::one_arm(1, 0)?;
        let engine = Engine::start(&lab)?;
        for image in ["nlb", "echo"] {
            engine.build(image)?;
        }
        let nlb = engine.run_nlb(&lab)?;
        Ok(Site { engine, fleet: Fleet::from_parts(lab, nlb, Vec::new()) })
    }
}

const NETWORK: &str = "modules";

/// Checks that every flow is answered, and that all modules have some.
fn serve(client: &Host, first: u16) -> Result<()> {
    for vip in vips() {
        for l4 in [L4::Tcp, L4::Udp] {
            let answered = flows(client, l4, vip, first, 150)?;
            ensure!(answered.keys().eq(["m0", "m1", "m2"]), "{vip} {l4:?}: {answered:?}");
        }
    }
    Ok(())
}

fn echoes_a_megabyte(client: &Host) -> Result<()> {
    on(client, || async {
        for vip in vips() {
            Connection::open(vip).await?.echo(&"x".repeat(1 << 20)).await?;
        }
        Ok(())
    })
}

/// A container engine on the lab's NLB host.
struct Engine {
    daemon: Process,
    socket: String,
    files: PathBuf,
}

impl Engine {
    fn start(lab: &Lab) -> Result<Engine> {
        let files = Path::new(env!("CARGO_TARGET_TMPDIR")).join(lab.name());
        let socket = format!("unix://{}", lab.files().join("docker.sock").display());
        // The engine's mounts end with it.
        let mut command = lab.nlb.netns.command("unshare");
        command.args(["--mount", "dockerd"]);
        command.args(["--host", &socket, "--storage-driver", "vfs", "--experimental", "--ip6tables"]);
        for (option, name) in [("--data-root", "data"), ("--exec-root", "exec"), ("--pidfile", "pid")] {
            command.arg(option).arg(files.join(name));
        }
        let daemon = lab.start("dockerd", &mut command)?;
        let mut engine = Engine { daemon, socket, files };
        let socket = engine.socket.clone();
        engine.daemon.wait_until("the engine answers", MAX_WAIT, || {
            output(docker(&socket).arg("info")).is_ok_and(|output| output.contains("Server Version"))
        })?;
        Ok(engine)
    }

    fn docker(&self, args: &[&str]) -> Result<String> {
        output(docker(&self.socket).args(args))
    }

    fn build(&self, image: &str) -> Result<()> {
        let context = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("image");
        let staged = context.join("Dockerfile").is_file();
        ensure!(staged, "{} is not there; `cargo xtask image` makes it", context.display());
        let mut build = docker(&self.socket);
        output(build.args(["build", "--target", image, "--tag", image]).arg(context)).map(drop)
    }

    /// Runs the NLB in the host's network until the process that is returned, which shows its output, is
    /// dropped.
    fn run_nlb(&self, lab: &Lab) -> Result<Process> {
        let mut run = docker(&self.socket);
        run.args(["run", "--rm", "--name", "nlb", "--network", "host", "--cap-drop", "ALL"]);
        for capability in CAPABILITIES {
            run.args(["--cap-add", capability]);
        }
        run.args(["--security-opt", "systempaths=unconfined", "nlb", "serve", "--iface", "eth0"]);
        run.args(["--vip", &format!("{VIP4},{VIP6}"), "--grpc", &grpc(lab).to_string()]);
        let mut nlb = lab.start("nlb", &mut run)?;
        let log = nlb.log().to_owned();
        nlb.wait_until("it serves", MAX_WAIT, || {
            std::fs::read_to_string(&log).is_ok_and(|output| output.contains("serving on eth0"))
        })?;
        Ok(nlb)
    }

    fn run_module(&self, lab: &Lab, name: &str, number: u8) -> Result<()> {
        let (v4, v6) = addresses(number);
        let data = format!("data_address={v4},{v6}");
        let [vip4, vip6] = vips().map(|vip| vip.to_string());
        let arguments = ["--metadata", &data, "--vip", &vip4, "--vip", &vip6];
        self.run_echo(name, number, &format!("http://{}", grpc(lab)), &arguments)
    }

    /// A container beside the modules', as a host of the lab. Its echo module does not register.
    fn run_client(&self, lab: &Lab) -> Result<Host> {
        const NUMBER: u8 = 90;
        self.run_echo("client", NUMBER, "http://127.0.0.1:1", &[])?;
        let pid = self.docker(&["inspect", "--format", "{{.State.Pid}}", "client"])?;
        let (v4, v6) = addresses(NUMBER);
        let netns = Namespace::of_process(format!("{}-container", lab.name()), pid.trim())?;
        Ok(Host { netns, v4, v6 })
    }

    fn run_echo(&self, name: &str, number: u8, nlb: &str, arguments: &[&str]) -> Result<()> {
        let (v4, v6) = addresses(number);
        let (v4, v6) = (v4.to_string(), v6.to_string());
        let mut run = docker(&self.socket);
        run.args([
            "run",
            "--detach",
            "--name",
            name,
            "--network",
            NETWORK,
            "--ip",
            &v4,
            "--ip6",
            &v6,
            "echo",
        ]);
        run.args(["--name", name, "--nlb", nlb]).args(arguments);
        output(&mut run).map(drop)
    }

    fn stop(&mut self) -> Result<()> {
        let containers = self.docker(&["ps", "--all", "--quiet"])?;
        for container in containers.lines() {
            self.docker(&["rm", "--force", container])?;
        }
        terminate(&mut self.daemon, MAX_WAIT)?;
        std::fs::remove_dir_all(&self.files).with_context(|| format!("removing {}", self.files.display()))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("something of the container engine is left behind: {error:#}");
        }
    }
}

/// Debian's client of the engine.
fn docker(socket: &str) -> Command {
    let mut command = Command::new("/usr/bin/docker");
    command.args(["--host", socket]);
    command
}

fn addresses(number: u8) -> (Ipv4Addr, Ipv6Addr) {
    (Ipv4Addr::new(172, 30, 0, number), Ipv6Addr::new(0xfd77, 0, 0, 9, 0, 0, 0, number.into()))
}
