//! Packets that the programs hand to user space: each is given to the part of the daemon that has the task.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aya::maps::{MapData, RingBuf};
use nlb_common::abi::{LOOPBACK, PUNTED_DATAGRAM_BYTES, Punted};
use nlb_common::frame::Frame as _;
use nlb_common::parse;
use nlb_common::refusal::{self, Error};
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tracing::debug;

use super::fragmentation;
use super::inject;
use super::loader::{Datapath, MAX_RUN};
use super::maps::bpf::FragmentPaths;
use super::pending::Frame;
use super::tunnel_errors::{self, TunnelError};

/// How long the kernel may take to receive a fragment at TC ingress: it queues the frame.
const RECEIVED: Duration = Duration::from_millis(10);

/// Packets that are read before other tasks of the daemon get a turn.
const BATCH: usize = 64;

/// Reads punted packets, as long as the daemon runs.
pub(crate) async fn run(
    ring: RingBuf<MapData>,
    datapath: Arc<Datapath>,
    mut paths: FragmentPaths,
    waiting: mpsc::Sender<Frame>,
    errors: mpsc::Sender<TunnelError>,
) -> anyhow::Result<()> {
    // SAFETY: the ring buffer owns its descriptor and keeps it open while it exists, which is inside the
    // `AsyncFd`.
    let mut ring = unsafe { AsyncFd::register(ring) }.context("reading punted packets")?;
    let mut detours = VecDeque::new();
    loop {
        // First what is due: under load the ring buffer is always ready.
        while let Some((_, key)) = detours.pop_front_if(|(ends, _)| *ends <= Instant::now()) {
            paths.end_detour(&key);
        }
        let alarm = detours.front().map(|(ends, _)| *ends);
        let mut ready = tokio::select! {
            ready = ring.readable_mut() => ready.context("reading punted packets")?,
            () = tokio::time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => continue,
        };
        let mut read = 0;
        while read < BATCH
            && let Some(record) = ready.get_inner_mut().next()
        {
            read += 1;
            let Some(packet) = Packet::parse(&record) else { continue };
            match packet.head.task {
                Punted::FRAGMENT => {
                    fragment(&datapath, &packet);
                    // Fragments that came behind this one are behind it in the ring buffer, too.
                    match fragmentation::key(&packet.frame) {
                        Some(key) if packet.head.at_tc != 0 => {
                            detours.push_back((Instant::now() + RECEIVED, key));
                        }
                        Some(key) => paths.end_detour(&key),
                        None => {}
                    }
                }
                Punted::TOO_BIG => answer(&datapath, packet),
                Punted::TUNNEL_ERROR => {
                    // The next packet that is too long causes another error.
                    if let Some(error) = tunnel_errors::parse(&packet.frame) {
                        let _ = errors.try_send(error);
                    }
                }
                _ => {
                    if waiting.try_send(packet.waits()).is_err() {
                        debug!("many packets wait for next hops; one is discarded");
                    }
                }
            }
        }
        if read < BATCH {
            ready.clear_ready();
        } else {
            tokio::task::yield_now().await;
        }
    }
}

/// A record of the ring buffer.
pub struct Packet {
    pub head: Punted,
    /// The frame, or its beginning.
    pub frame: Vec<u8>,
}

impl Packet {
    pub fn parse(record: &[u8]) -> Option<Self> {
        let head: Punted = record.read(0)?;
        let bytes = record.get(size_of::<Punted>()..)?;
        let frame = bytes.get(..(head.len as usize).min(bytes.len()))?.to_vec();
        Some(Packet { head, frame })
    }

    fn waits(self) -> Frame {
        let Punted { next_hop, ifindex, .. } = self.head;
        Frame { next_hop: IpAddr::from(next_hop), ifindex, bytes: self.frame }
    }
}

/// Runs the program that punted the packet on each of its fragments.
fn fragment(datapath: &Datapath, packet: &Packet) {
    let Punted { ifindex, mtu, at_tc, .. } = packet.head;
    let mut frame = Cow::Borrowed(&packet.frame[..]);
    if at_tc != 0 {
        fragmentation::complete_checksum(frame.to_mut());
    }
    let fragments = fragmentation::fragments(&frame, usize::from(mtu).min(MAX_RUN - LINK_HEADER));
    for fragment in fragments.unwrap_or_default() {
        let sent = if at_tc != 0 {
            datapath.receive(&fragment, ifindex)
        } else {
            inject::inject(datapath, &fragment, ifindex, None)
        };
        if let Err(error) = sent {
            // Once a packet: a flood must not fill the log.
            debug!("cannot send a fragment of a packet that is longer than the MTU of {mtu}: {error:#}");
            break;
        }
    }
}

/// The longest link header: Ethernet with two VLAN tags.
const LINK_HEADER: usize = 22;

/// Tells the sender of a packet at TC ingress the MTU: a process or container of this host, or a client on a
/// link where the kernel merges segments.
fn answer(datapath: &Datapath, packet: Packet) {
    let Punted { ifindex, len, mtu, .. } = packet.head;
    let mut frame = packet.frame;
    // Only the beginning was copied, and the parser wants a whole packet.
    frame.resize((len as usize).min(PUNTED_DATAGRAM_BYTES), 0);
    let Ok(ip) = parse::ip(&frame[..]) else { return };
    let grown = refusal::ICMP_GROWTH[ip.v6 as usize];
    frame.splice(0..0, std::iter::repeat_n(0, grown));
    let Some(len) = refusal::icmp_error(&mut frame[..], &ip, grown, Error::TooBig(mtu.into())) else {
        return;
    };
    frame.truncate(len);
    let sent =
        if ifindex == LOOPBACK { datapath.receive(&frame, ifindex) } else { datapath.send(&frame, ifindex) };
    if let Err(error) = sent {
        debug!("cannot tell the sender of a packet that it is longer than the MTU of {mtu}: {error:#}");
    }
}
