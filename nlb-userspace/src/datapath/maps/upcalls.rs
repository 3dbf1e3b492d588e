//! Upcalls on the kernel's side: the ring buffer that they arrive in, and the map of their states.

use std::net::SocketAddr;

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{HashMap, MapData, RingBuf};
use nlb_common::abi::Upcall;
use nlb_common::frame::Frame as _;
use nlb_common::net::L4;
use nlb_common::upcall;
use tokio::io::unix::AsyncFd;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::access::take;
use crate::datapath::errors::error_chain;
use crate::model::destination::L4Destination;
use crate::model::upcall::{NegativeEntry, Question};

pub struct Upcalls {
    pub questions: RingBuf<MapData>,
    pub states: HashMap<MapData, u64, u64>,
}

impl Upcalls {
    pub fn take(bpf: &mut Ebpf) -> anyhow::Result<Self> {
        Ok(Upcalls {
            questions: take(bpf, "UPCALLS")?.try_into()?,
            states: take(bpf, "UPCALL_STATE")?.try_into()?,
        })
    }

    /// Forwards upcalls and writes negative entries, until the sender of those ends.
    pub async fn run(
        self,
        questions: mpsc::Sender<Question>,
        mut answers: mpsc::Receiver<NegativeEntry>,
    ) -> anyhow::Result<()> {
        const WAITING: &str = "waiting for upcalls";
        let mut states = self.states;
        // SAFETY: the ring buffer owns its descriptor and keeps it open while it exists, which is inside the
        // `AsyncFd`.
        let mut ring = unsafe { AsyncFd::register(self.questions) }.context(WAITING)?;
        loop {
            tokio::select! {
                ready = ring.readable_mut() => {
                    let mut ready = ready.context(WAITING)?;
                    while let Some(record) = ready.get_inner_mut().next() {
                        let Some(question) = parse(&record) else { continue };
                        if let Err(refused) = questions.try_send(question) {
                            write(&mut states, refused.into_inner().throttled());
                        }
                    }
                    ready.clear_ready();
                }
                answer = answers.recv() => match answer {
                    Some(answer) => write(&mut states, answer),
                    None => return Ok(()),
                }
            }
        }
    }
}

/// Writes a negative entry. If this fails, the upcall expires in the kernel all the same.
fn write(states: &mut HashMap<MapData, u64, u64>, answer: NegativeEntry) {
    if let Err(error) = states.insert(answer.key, upcall::negative(answer.until), 0) {
        warn!("cannot write a negative entry: {}", error_chain(&error));
    }
}

/// A record of the ring: `abi::Upcall`.
pub fn parse(record: &[u8]) -> Option<Question> {
    let Upcall { key, asked_at, vip, client, port, client_port, protocol, .. } = record.read(0)?;
    let l4 = match protocol {
        protocol if protocol == L4::Tcp as u16 => L4::Tcp,
        protocol if protocol == L4::Udp as u16 => L4::Udp,
        other => {
            debug!("an upcall for protocol {other}, which the program does not make");
            return None;
        }
    };
    let destination = L4Destination { vip: vip.into(), port: port.get(), l4 };
    Some(Question { destination, client: SocketAddr::new(client.into(), client_port.get()), key, asked_at })
}
