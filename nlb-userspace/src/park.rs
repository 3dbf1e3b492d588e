//! Packets that met an unknown next hop: they wait here, and go through the data path again once it is known.
//!
//! Without this, the first packet to a new neighbour would be lost, and its sender would wait a second for TCP's
//! retransmission, or for ever with UDP.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use aya::maps::{MapData, RingBuf};
use nlb_common::abi::{Backend, PARKED_BYTES};
use nlb_common::net::Addr;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use crate::compile::Hops;
use crate::loader::Datapath;
use crate::reconcile::Applied;

/// Packets that wait at most; beyond that the oldest is given up.
const CAPACITY: usize = 1024;

/// How long a packet waits: as long as Linux probes a silent neighbour before it fails.
const PATIENCE: Duration = Duration::from_secs(3);

/// A packet that waits.
struct Frame {
    towards: IpAddr,
    ifindex: u32,
    bytes: Vec<u8>,
    since: Instant,
}

/// Takes parked packets from the kernel, asks for their next hops, and sends them on, until the reconciler goes away.
pub async fn run(
    ring: RingBuf<MapData>,
    datapath: Arc<Datapath>,
    ask: mpsc::Sender<IpAddr>,
    mut hops: watch::Receiver<Arc<Hops>>,
    mut applied: watch::Receiver<Arc<Applied>>,
) -> anyhow::Result<()> {
    // SAFETY: the ring buffer owns its descriptor and keeps it open for as long as it lives, which is inside the `AsyncFd`.
    let mut ring = unsafe { AsyncFd::register(ring) }.context("waiting for parked packets")?;
    let mut waiting: VecDeque<Frame> = VecDeque::new();
    loop {
        tokio::select! {
            ready = ring.readable_mut() => {
                let mut ready = ready.context("waiting for parked packets")?;
                while let Some(record) = ready.get_inner_mut().next() {
                    let Some(frame) = parse(&record) else { continue };
                    if ask.try_send(frame.towards).is_err() {
                        debug!("many packets wait for next hops; {} is asked for later", frame.towards);
                    }
                    waiting.push_back(frame);
                    if waiting.len() > CAPACITY {
                        waiting.pop_front();
                    }
                }
                ready.clear_ready();
            }
            changed = hops.changed() => if changed.is_err() { return Ok(()) },
            changed = applied.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep(PATIENCE), if !waiting.is_empty() => {}
        }
        let (hops, applied) = (hops.borrow_and_update().clone(), applied.borrow_and_update().clone());
        waiting.retain(|frame| {
            if can_go(frame.towards, &hops, &applied) {
                if let Err(error) = datapath.inject(&frame.bytes, frame.ifindex) {
                    warn!("a packet that waited for {} could not be sent on: {error}", frame.towards);
                }
                return false;
            }
            frame.since.elapsed() < PATIENCE
        });
    }
}

/// Whether the data path knows the next hop by now: for a backend from its row, for a client from the kernel.
fn can_go(towards: IpAddr, hops: &Hops, applied: &Applied) -> bool {
    let addr = Addr::from(towards);
    let mut rows = applied.image.rows.backends.values().filter(|row| row.addr == addr).peekable();
    if rows.peek().is_some() {
        rows.all(|row| row.has(Backend::RESOLVED))
    } else {
        hops.contains_key(&towards)
    }
}

/// A record of the ring: `abi::Parked` and the frame's bytes.
fn parse(record: &[u8]) -> Option<Frame> {
    let (towards, rest) = record.split_first_chunk::<16>()?;
    let (ifindex, rest) = rest.split_first_chunk::<4>()?;
    let (len, bytes) = rest.split_first_chunk::<4>()?;
    let len = (u32::from_ne_bytes(*len) as usize).min(PARKED_BYTES);
    Some(Frame {
        towards: Addr::v6(*towards).into(),
        ifindex: u32::from_ne_bytes(*ifindex),
        bytes: bytes.get(..len)?.to_vec(),
        since: Instant::now(),
    })
}
