//! Minimal XDP programs in the balancer's place ([`live`](../../baselines/src/live.rs)). They show how much
//! of the balancer's figures is the cost of veths and their driver.

use anyhow::{Context, Result, ensure};
use aya::maps::Array;
use aya::programs::xdp::XdpMode;
use aya::{Ebpf, EbpfLoader};
use nix::net::if_::if_nametoindex;
use nlb_testkit::lab::Lab;
use nlb_testkit::netns::Namespace;

use crate::baselines::{self, map, program};

/// Sends packets that arrive at the balancer's host back.
pub fn send_back(lab: &Lab) -> Result<Ebpf> {
    let mut bpf = open()?;
    attach(&mut bpf, "mac_swap", &lab.nlb.netns, &["eth0"])?;
    Ok(bpf)
}

/// Redirects packets that arrive at the balancer's host to their destination.
pub fn pass_on(lab: &Lab) -> Result<Ebpf> {
    let mut bpf = open()?;
    let mut hops = Array::<_, [u32; 4]>::try_from(map(&mut bpf, "HOPS")?)?;
    let hosts =
        lab.clients.iter().map(|host| (host, "eth0")).chain(lab.modules.iter().map(|host| (host, "eth1")));
    for (host, interface) in hosts {
        let macs = [mac(&host.netns, "eth0")?, mac(&lab.nlb.netns, interface)?].concat();
        let ifindex = lab.nlb.netns.run(|| if_nametoindex(interface))??;
        let word = |at: usize| u32::from_ne_bytes(macs[at..at + 4].try_into().expect("four bytes"));
        hops.set(u32::from(host.v4.octets()[3]), [word(0), word(4), word(8), ifindex], 0)?;
    }
    attach(&mut bpf, "pass_on", &lab.nlb.netns, &["eth0", "eth1"])?;
    Ok(bpf)
}

/// The object of the programs, none of which is loaded yet.
pub fn open() -> Result<Ebpf> {
    baselines::open(&mut EbpfLoader::new())
}

/// Loads a program. All programs that refer to a map have to be loaded before the map is taken.
pub fn load(bpf: &mut Ebpf, name: &str) -> Result<()> {
    Ok(program(bpf, name)?.load()?)
}

/// Attaches a program until the object is dropped.
pub fn attach(bpf: &mut Ebpf, name: &str, on: &Namespace, interfaces: &[&str]) -> Result<()> {
    load(bpf, name)?;
    let program = program(bpf, name)?;
    on.run(|| {
        for interface in interfaces {
            let attached = program.attach(interface, XdpMode::Driver);
            attached.with_context(|| format!("attaching {name} to {interface} of {}", on.name()))?;
        }
        Ok(())
    })?
}

/// The MAC address in the order of the frame.
pub fn mac(netns: &Namespace, interface: &str) -> Result<Vec<u8>> {
    let text = netns.mac(interface)?;
    let bytes = text.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<Vec<_>, _>>()?;
    ensure!(bytes.len() == 6, "{text} is no MAC address");
    Ok(bytes)
}
