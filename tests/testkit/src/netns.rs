//! A network namespace as a host with its own interfaces, addresses and routes. It is removed when dropped.
//!
//! The kernel is configured with an administrator's commands, so that a failing lab can be rebuilt in a
//! shell. Programs enter with nsenter rather than `ip netns exec`, which would hide the mounted bpffs from
//! them.

use std::fmt::Display;
use std::fs::{self, File};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, id};
use std::thread;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// The directory of iproute2's named namespaces.
const NAMED: &str = "/run/netns";

#[derive(Debug)]
pub struct Namespace {
    name: String,
}

impl Namespace {
    /// Creates an empty host with its loopback up. Duplicate address detection, which takes a second for each
    /// IPv6 address, is off: no other host can have them.
    pub fn create(name: String) -> Result<Namespace> {
        ip(&["netns", "add", &name])?;
        let namespace = Namespace { name };
        for scope in ["all", "default"] {
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_dad"), 0)?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/accept_ra"), 0)?;
            namespace.sysctl(&format!("net/ipv6/conf/{scope}/router_solicitations"), 0)?;
            // With direct server return, replies take another route than requests.
            namespace.sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), 0)?;
        }
        namespace.ip(&["link", "set", "lo", "up"])?;
        Ok(namespace)
    }

    /// The namespace of a running process, such as a container's. Dropping it ends all processes in it.
    pub fn of_process(name: String, pid: &str) -> Result<Namespace> {
        ip(&["netns", "attach", &name, pid])?;
        Ok(Namespace { name })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Runs a closure on a thread inside the namespace. Sockets that it opens stay in the namespace.
    pub fn run<T: Send>(&self, inside: impl FnOnce() -> T + Send) -> Result<T> {
        thread::scope(|scope| {
            scope
                .spawn(|| self.enter().map(|()| inside()))
                .join()
                .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Moves the calling thread into the namespace for good.
    pub fn enter(&self) -> Result<()> {
        let namespace =
            File::open(self.path()).with_context(|| format!("opening namespace {}", self.name))?;
        setns(&namespace, CloneFlags::CLONE_NEWNET)
            .with_context(|| format!("entering namespace {} (this needs root)", self.name))
    }

    /// A command to run inside. It is killed when the thread that starts it ends.
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        let mut command = Command::new("nsenter");
        command
            .arg(format!("--net={}", self.path().display()))
            .args(["setpriv", "--pdeathsig", "KILL", "--"])
            .arg(program.as_ref());
        command
    }

    /// Runs `ip` for this namespace.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        ip(&[&["-n", &self.name], args].concat())
    }

    pub fn add_address(&self, interface: &str, address: IpAddr, prefix: u8) -> Result<()> {
        let address = format!("{address}/{prefix}");
        let nodad: &[&str] = if address.contains(':') { &["nodad"] } else { &[] };
        self.ip(&[&["address", "add", &address, "dev", interface], nodad].concat()).map(drop)
    }

    pub fn add_default_route(&self, via: IpAddr) -> Result<()> {
        self.ip(&["route", "add", "default", "via", &via.to_string()]).map(drop)
    }

    /// The MAC address of an interface.
    pub fn mac(&self, interface: &str) -> Result<String> {
        let shown = self.ip(&["-o", "link", "show", interface])?;
        let mac = shown.split_once("link/ether ").and_then(|(_, rest)| rest.split(' ').next());
        Ok(mac.with_context(|| format!("no MAC address: {shown}"))?.to_owned())
    }

    /// Sets a kernel parameter, named by its path below /proc/sys.
    pub fn sysctl(&self, parameter: &str, value: impl Display) -> Result<()> {
        let file = Path::new("/proc/sys").join(parameter);
        let value = value.to_string();
        self.run(|| fs::write(&file, &value))?
            .with_context(|| format!("setting {parameter} to {value} in {}", self.name))
    }

    /// Connects this host with another by a virtual cable whose ends get these names. Both ends are brought
    /// up.
    pub fn cable(&self, interface: &str, other: &Namespace, other_interface: &str) -> Result<()> {
        let peer = ["peer", "name", other_interface, "netns", &other.name];
        self.ip(&[&["link", "add", "name", interface, "type", "veth"], &peer[..]].concat())?;
        let ends = [(self, interface), (other, other_interface)];
        for (host, interface) in ends {
            host.disable_offloads(interface)?;
        }
        // An end that comes up checks whether the other end accepts redirected packets.
        for (host, interface) in ends {
            host.ip(&["link", "set", interface, "up"])?;
        }
        Ok(())
    }

    /// Makes frames look as on a physical link. Local stacks leave checksums and segmentation to the device.
    /// A veth does neither before XDP sees the frame, so the stack does both in software, and inserts VLAN
    /// tags. GRO enables the receiver for packets that XDP redirects to a veth; without it they are lost.
    fn disable_offloads(&self, interface: &str) -> Result<()> {
        let mut ethtool = self.command("ethtool");
        ethtool
            .args(["-K", interface, "tx", "off", "tso", "off", "gso", "off", "txvlan", "off", "gro", "on"]);
        output(&mut ethtool).map(drop)
    }

    fn path(&self) -> PathBuf {
        Path::new(NAMED).join(&self.name)
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.name) {
            eprintln!("namespace {} is left behind: {error:#}", self.name);
        }
    }
}

/// Removes the namespaces named `<family>-<pid>-...` of processes that have ended. One process may do so at a
/// time.
pub fn remove_leftovers(family: &str) -> Result<()> {
    // Before the first namespace there is no such directory.
    for entry in Path::new(NAMED).read_dir().into_iter().flatten() {
        let name = entry.context("listing namespaces")?.file_name();
        let Some(name) = name.to_str() else { continue };
        let orphaned = owner(name, family).is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists());
        if orphaned {
            remove(name)?;
        }
    }
    Ok(())
}

/// The process id in a name like `<family>-<pid>-...`.
pub fn owner(name: &str, family: &str) -> Option<u32> {
    name.strip_prefix(family)?.strip_prefix('-')?.split('-').next()?.parse().ok()
}

/// Ends all processes in the namespace, then deletes it. Only tests know its name, so all processes are
/// theirs.
fn remove(name: &str) -> Result<()> {
    for pid in ip(&["netns", "pids", name])?.split_whitespace() {
        let pid: i32 = pid.parse().with_context(|| format!("`ip netns pids` printed {pid}"))?;
        if pid != id() as i32 {
            // The process may have ended meanwhile.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
    ip(&["netns", "delete", name]).map(drop)
}

fn ip(args: &[&str]) -> Result<String> {
    output(Command::new("ip").args(args))
}

/// Runs a command to its end and returns its output. If it fails, the error contains its error output.
pub fn output(command: &mut Command) -> Result<String> {
    let words = [command.get_program()].into_iter().chain(command.get_args());
    let line = words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ");
    let output = command
        .output()
        .with_context(|| format!("`{line}` does not start; `cargo xtask setup` installs it"))?;
    if !output.status.success() {
        bail!("`{line}` failed: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    String::from_utf8(output.stdout).with_context(|| format!("the output of `{line}`"))
}
