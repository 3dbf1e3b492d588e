//! The pending queue: punted packets wait here until their next hop is known, and then go through the data
//! path again.
//!
//! Without the queue, the first packet to a new neighbour would be lost, and its sender would wait a second
//! for TCP's retransmission, or for ever with UDP.

use std::collections::{BTreeMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use nlb_common::abi::Backend;
use nlb_common::net::Addr;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tracing::{debug, warn};

use super::inject;
use super::loader::Datapath;
use crate::model::next_hop::Hops;
use crate::reconcile::Applied;

/// Packets that wait at most; beyond that the oldest is discarded.
pub(crate) const CAPACITY: usize = 1024;

/// How long a packet waits: as long as Linux probes a silent neighbour before it fails.
const MAX_WAIT: Duration = Duration::from_secs(3);

/// The first pause between two attempts to send the packets for one address; each attempt doubles it. A
/// packet is punted again if the kernel does not know the neighbour after all, and the pause bounds how often
/// that happens.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LONGEST_PAUSE: Duration = Duration::from_millis(100);

/// A packet that waits.
pub(crate) struct Frame {
    pub next_hop: IpAddr,
    /// The interface that it came from.
    pub ifindex: u32,
    pub bytes: Vec<u8>,
}

/// The state of the attempts for one address.
struct Backoff {
    since: Instant,
    next: Instant,
    pause: Duration,
}

/// Takes punted packets, requests their next hops, and sends them on, until the reconciler ends.
pub(crate) async fn run(
    mut punted: mpsc::Receiver<Frame>,
    datapath: Arc<Datapath>,
    ask: mpsc::Sender<IpAddr>,
    mut hops: watch::Receiver<Arc<Hops>>,
    mut applied: watch::Receiver<Arc<Applied>>,
) -> anyhow::Result<()> {
    let mut queue = PendingQueue::default();
    loop {
        let alarm = queue.backoffs.values().map(|backoff| backoff.next).min();
        tokio::select! {
            Some(frame) = punted.recv() => {
                let mut next = Some(frame);
                while let Some(frame) = next {
                    if ask.try_send(frame.next_hop).is_err() {
                        debug!("many packets wait for next hops; the request for {} is delayed", frame.next_hop);
                    }
                    queue.take(frame);
                    next = punted.try_recv().ok();
                }
            }
            changed = hops.changed() => if changed.is_err() { return Ok(()) },
            changed = applied.changed() => if changed.is_err() { return Ok(()) },
            () = tokio::time::sleep_until(alarm.unwrap_or_else(Instant::now)), if alarm.is_some() => {}
        }
        let (hops, applied) = (hops.borrow_and_update().clone(), applied.borrow_and_update().clone());
        for frame in queue.release(|next_hop| is_resolved(next_hop, &hops, &applied)) {
            let egress = hops.get(&frame.next_hop).map(|hop| hop.hop.ifindex);
            if let Err(error) = inject::inject(&datapath, &frame.bytes, frame.ifindex, egress) {
                warn!("cannot send a punted packet to {}: {error}", frame.next_hop);
            }
        }
    }
}

/// The packets that wait, and the backoff of each address.
#[derive(Default)]
struct PendingQueue {
    frames: VecDeque<Frame>,
    backoffs: BTreeMap<IpAddr, Backoff>,
}

impl PendingQueue {
    fn take(&mut self, frame: Frame) {
        let now = Instant::now();
        self.backoffs.entry(frame.next_hop).or_insert(Backoff {
            since: now,
            next: now + FIRST_PAUSE,
            pause: FIRST_PAUSE,
        });
        self.frames.push_back(frame);
        if self.frames.len() > CAPACITY {
            self.frames.pop_front();
        }
    }

    /// Takes the packets that are due and whose next hop is known. Those that have waited too long are
    /// discarded.
    fn release(&mut self, is_resolved: impl Fn(IpAddr) -> bool) -> Vec<Frame> {
        let now = Instant::now();
        let due: BTreeMap<IpAddr, bool> = self
            .backoffs
            .iter()
            .filter(|(_, backoff)| backoff.next <= now)
            .map(|(next_hop, backoff)| (*next_hop, backoff.since + MAX_WAIT > now))
            .collect();
        let mut gone = Vec::new();
        for frame in std::mem::take(&mut self.frames) {
            match due.get(&frame.next_hop) {
                Some(true) if is_resolved(frame.next_hop) => gone.push(frame),
                Some(false) => debug!("a punted packet to {} timed out", frame.next_hop),
                _ => self.frames.push_back(frame),
            }
        }
        for (next_hop, backoff) in &mut self.backoffs {
            if due.contains_key(next_hop) {
                backoff.pause = (backoff.pause * 2).min(LONGEST_PAUSE);
                backoff.next = now + backoff.pause;
            }
        }
        // A packet that is punted again arrives at once. If none does, the next one for this address starts a
        // new backoff.
        let frames = &self.frames;
        self.backoffs.retain(|next_hop, backoff| {
            frames.iter().any(|frame| frame.next_hop == *next_hop) || backoff.since + MAX_WAIT > now
        });
        gone
    }
}

/// Whether the data path knows the next hop: for a backend from its row, for a client from the kernel.
fn is_resolved(next_hop: IpAddr, hops: &Hops, applied: &Applied) -> bool {
    let addr = Addr::from(next_hop);
    let mut rows = applied.image.rows.backends.values().filter(|row| row.addr == addr).peekable();
    if rows.peek().is_some() {
        rows.all(|row| row.has(Backend::RESOLVED))
    } else {
        hops.contains_key(&next_hop)
    }
}
