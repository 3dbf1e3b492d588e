//! The network card of a virtual machine, made of two taps. Frames go from one to the other with their
//! `vnet_hdr`, the header that virtio puts before each frame.
//!
//! qemu and vhost do the same with the queues of a card: they read from a tap frames with unfinished
//! checksums and segments, if that is enabled, and write them to the other one.

use std::io::{self, ErrorKind};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{JoinHandle, sleep, spawn};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use nlb_testkit::netns::Namespace;
use nlb_testkit::process::MAX_WAIT;
use tun_rs::{DeviceBuilder, InterruptEvent, Layer, SyncDevice};

/// The length of `struct virtio_net_hdr`: flags, the kind of segments, and eight bytes more.
const VNET_HDR: usize = 10;
/// VIRTIO_NET_HDR_F_NEEDS_CSUM.
const NEEDS_CHECKSUM: u8 = 1;
const LONGEST_FRAME: usize = (1 << 16) + 18;

/// The offloads of the machine's card.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offloads {
    /// The host does checksums and segmentation, and the machine accepts frames without: virtio's default.
    All,
    /// None, and frames have no `vnet_hdr`: the taps of OpenVPN and similar programs.
    None,
}

/// The card, which is unplugged when dropped. Its taps are removed, unless they existed before.
pub struct Nic {
    carriers: Vec<JoinHandle<()>>,
    unplug: Arc<InterruptEvent>,
    sent: Arc<Sent>,
}

/// The numbers of frames from the machine, by their offloads.
#[derive(Debug, Default)]
struct Sent {
    frames: AtomicU64,
    unfinished: AtomicU64,
    unsegmented: AtomicU64,
}

impl Nic {
    /// Connects a tap of the host with one that is the machine's card, and sets both up.
    pub fn plug(host: (&Namespace, &str), machine: (&Namespace, &str), offloads: Offloads) -> Result<Nic> {
        let [outside, inside] = [host, machine].map(|(netns, name)| -> Result<_> {
            let tap = netns.run(|| tap(name, offloads))?.with_context(|| format!("making tap {name}"))?;
            netns.ip(&["link", "set", name, "up"])?;
            Ok(Arc::new(tap))
        });
        let (outside, inside) = (outside?, inside?);
        let unplug = Arc::new(InterruptEvent::new()?);
        let (sent, received) = (Arc::new(Sent::default()), Arc::default());
        let vnet_hdr = if offloads == Offloads::All { VNET_HDR } else { 0 };
        let directions =
            [(inside.clone(), outside.clone(), sent.clone()), (outside.clone(), inside.clone(), received)];
        let carriers = directions.map(|(from, to, count)| {
            let unplug = unplug.clone();
            spawn(move || carry(&from, &to, vnet_hdr, &count, &unplug))
        });
        Ok(Nic { carriers: carriers.into(), unplug, sent })
    }

    /// The numbers of frames that the machine sent, of those with an unfinished checksum, and of those with
    /// several segments.
    pub fn sent(&self) -> [u64; 3] {
        let Sent { frames, unfinished, unsegmented } = &*self.sent;
        [frames, unfinished, unsegmented].map(|count| count.load(Ordering::Relaxed))
    }
}

impl Drop for Nic {
    fn drop(&mut self) {
        if let Err(error) = self.unplug.trigger() {
            return eprintln!("a tap is left behind: {error}");
        }
        for carrier in self.carriers.drain(..) {
            // The panic of a carrier has been printed.
            let _ = carrier.join();
        }
    }
}

fn tap(name: &str, offloads: Offloads) -> io::Result<SyncDevice> {
    let started = Instant::now();
    loop {
        let tap = DeviceBuilder::new()
            .name(name)
            .layer(Layer::L2)
            .offload(offloads == Offloads::All)
            .inherit_enable_state()
            .build_sync();
        match tap {
            // A program that another test starts may have the last owner's descriptor until it runs.
            Err(error) if error.kind() == ErrorKind::ResourceBusy && started.elapsed() < MAX_WAIT => {
                sleep(Duration::from_millis(10))
            }
            tap => {
                let tap = tap?;
                tap.set_nonblocking(true)?;
                return Ok(tap);
            }
        }
    }
}

fn carry(from: &SyncDevice, to: &SyncDevice, vnet_hdr: usize, count: &Sent, unplug: &InterruptEvent) {
    let mut frame = vec![0; VNET_HDR + LONGEST_FRAME];
    while let Ok(length) = from.recv_intr(&mut frame, unplug) {
        let field = |at: usize| if vnet_hdr == 0 { 0 } else { frame[at] };
        count.frames.fetch_add(1, Ordering::Relaxed);
        count.unfinished.fetch_add((field(0) & NEEDS_CHECKSUM).into(), Ordering::Relaxed);
        count.unsegmented.fetch_add((field(1) != 0).into(), Ordering::Relaxed);
        // A tap may drop a frame, as a card does.
        let _ = to.send(&frame[..length]);
    }
}
