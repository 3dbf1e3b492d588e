//! The maximum rate of small packets: frames of 64 bytes (60, and the checksum that a card adds) that one
//! XDP program sends and another drops behind the balancer.
//!
//! Both run at the switch's ends of the balancer's own cables, because bridges and the stacks of hosts take
//! longer for a packet than the balancers do.

use anyhow::{Context, Result, ensure};
use aya::maps::{Array, PerCpuArray};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions};
use nix::net::if_::if_nametoindex;
use nlb::datapath::loader;
use nlb_testkit::cpu;
use nlb_testkit::packet::{Transport, UdpChecksum};
use nlb_testkit::rig::families;

use super::baselines;
use super::contenders::{Contender, Kind};
use crate::baselines::{map, program, words};

/// The number of bytes that are rewritten for each frame, and the length of a frame.
const HEAD: usize = 48;
const FRAME: usize = 60;

/// The length of the Ethernet, IPv4 and UDP headers.
const BEFORE_PAYLOAD: usize = 42;

/// The number of frames that are made before they are sent: what a card's driver polls at a time (NAPI's
/// weight).
const BATCH: u32 = 64;

/// The switch's ends of the balancer's cables.
const FRONT: &str = "front-nlb";
const BACK: &str = "back-nlb";

/// The rate at which one CPU makes frames, takes them through the balancer, and drops them. It does
/// all of that with each batch before the next one, so no frame waits and few can be lost.
pub fn per_second(contender: &Contender, frames: u32) -> Result<f64> {
    let Contender { kind, lab, .. } = contender;
    let mut bpf = baselines::open()?;
    let (netns, interface) = match kind {
        Kind::XdpDrop => (&lab.nlb.netns, "eth0"),
        Kind::XdpTx => (lab.switch(), FRONT),
        _ => (lab.switch(), BACK),
    };
    baselines::attach(&mut bpf, "sink", netns, &[interface])?;
    baselines::load(&mut bpf, "generate")?;
    let frame = frame(contender)?;
    Array::<_, [u64; HEAD / 8]>::try_from(map(&mut bpf, "HEADERS")?)?.set(0, words(&frame), 0)?;
    let arrived = PerCpuArray::<_, u64>::try_from(map(&mut bpf, "ARRIVED")?)?;

    let generator = program(&mut bpf, "generate")?;
    let cpu = *cpu::available()?.first().context("no CPU to run on")?;
    let took = lab.switch().run(|| {
        cpu::stay_on(cpu)?;
        let context = loader::arrival(&frame, if_nametoindex(FRONT)?);
        let options = TestRunOptions {
            data_in: Some(&frame),
            ctx_in: Some(&context),
            repeat: frames,
            attrs: TestRunAttrs::new().xdp_live_frames(BATCH),
            ..TestRunOptions::new()
        };
        anyhow::Ok(generator.test_run(options).context("BPF_PROG_TEST_RUN")?.duration * frames)
    })??;

    let mut total = 0;
    for (address, count) in (0..=255).zip(arrived.iter()) {
        let count: u64 = count?.iter().sum();
        let wanted = contender.receivers().iter().any(|host| host.octets()[3] == address);
        ensure!(wanted == (count > 0), "{count} frames arrived for the address that ends with {address}");
        total += count;
    }
    ensure!(total > u64::from(frames) / 10 * 9, "of {frames} frames, only {total} arrived");
    Ok(total as f64 / took.as_secs_f64())
}

/// A frame from the client to the contender's service. The program that makes frames writes the source port.
fn frame(contender: &Contender) -> Result<Vec<u8>> {
    let Contender { lab, targets, .. } = contender;
    let address = |mac: Vec<u8>| mac.try_into().expect("six bytes");
    let (client, nlb) = (&lab.clients[0], &lab.nlb);
    let (src_mac, dst_mac) = (baselines::mac(&client.netns, "eth0")?, baselines::mac(&nlb.netns, "eth0")?);
    let [v4, _] = families();
    let packet = v4.udp().with(|packet| {
        (packet.src_mac, packet.dst_mac) = (address(src_mac), address(dst_mac));
        (packet.src, packet.dst) = (client.v4.into(), targets[0].ip());
        (packet.sport, packet.dport) = (0, targets[0].port());
        packet.l4 = Transport::Udp { checksum: UdpChecksum::Computed };
        packet.payload.clear();
        // These bytes compensate for the source port in the checksum: its complement, here for a port of 0.
        packet.payload.extend([0xff, 0xff]);
        packet.payload.resize(FRAME - BEFORE_PAYLOAD, 0);
    });
    let frame = packet.bytes();
    ensure!(frame.len() == FRAME, "a frame of {} bytes", frame.len());
    Ok(frame)
}
