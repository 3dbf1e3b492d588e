//! The client: short TCP connections, single datagrams and a few connections that stay open, over IPv4 and
//! IPv6. Every answer is checked, and a missing answer is a failure.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use nlb_testkit::lab::{Lab, VIP4, VIP6};
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufStream};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{interval, timeout};

/// The time between two requests of one kind and family.
const PACE: Duration = Duration::from_millis(20);
/// The time between two lines on a held connection.
const HELD_PACE: Duration = Duration::from_millis(500);
/// The number of lines on a held connection before it closes, so that a draining module loses its last one.
const HELD_LINES: u64 = 30;
const HELD_PER_FAMILY: usize = 4;

pub struct Traffic {
    tally: Arc<Mutex<Tally>>,
    stop: watch::Sender<bool>,
    client: JoinHandle<Result<()>>,
}

#[derive(Clone, Default)]
pub struct Tally {
    pub answered: u64,
    pub failed: u64,
    pub last_failure: String,
    /// The number of failures by the name of the module, where it is known.
    pub failed_at: BTreeMap<String, u64>,
    /// The number of held connections that are open.
    pub held: usize,
}

impl Traffic {
    /// A request without an answer within `limit` has failed.
    pub fn start(lab: &Arc<Lab>, limit: Duration) -> Result<Traffic> {
        let tally = Arc::new(Mutex::new(Tally::default()));
        let (stop, stopped) = watch::channel(false);
        let (lab, counts) = (Arc::clone(lab), Arc::clone(&tally));
        // The runtime has one thread, in the client's network namespace, so all of its sockets are there.
        let client = thread::Builder::new().name("client".into()).spawn(move || {
            lab.clients[0].netns.run(|| {
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
                runtime.block_on(drive(counts, stopped, limit));
                Ok(())
            })?
        })?;
        Ok(Traffic { tally, stop, client })
    }

    pub fn tally(&self) -> Tally {
        lock(&self.tally).clone()
    }

    /// Stops new requests, waits for pending answers, and returns the result.
    pub fn stop(self) -> Result<Tally> {
        self.stop.send_replace(true);
        self.client.join().map_err(|_| anyhow!("the client's thread panicked"))??;
        let tally = lock(&self.tally).clone();
        Ok(tally)
    }
}

async fn drive(tally: Arc<Mutex<Tally>>, stopped: watch::Receiver<bool>, limit: Duration) {
    let mut kinds = JoinSet::new();
    for vip in [IpAddr::from(VIP4), VIP6.into()] {
        let vip = SocketAddr::new(vip, 80);
        kinds.spawn(request_repeatedly(
            move |text| request_tcp(vip, text, limit),
            Arc::clone(&tally),
            stopped.clone(),
        ));
        kinds.spawn(request_repeatedly(
            move |text| request_udp(vip, text, limit),
            Arc::clone(&tally),
            stopped.clone(),
        ));
        for _ in 0..HELD_PER_FAMILY {
            kinds.spawn(hold_repeatedly(vip, Arc::clone(&tally), stopped.clone(), limit));
        }
    }
    kinds.join_all().await;
}

/// Starts requests at a constant rate, however long each takes.
async fn request_repeatedly<Asked>(
    ask: impl Fn(String) -> Asked,
    tally: Arc<Mutex<Tally>>,
    mut stopped: watch::Receiver<bool>,
) where
    Asked: Future<Output = Result<()>> + Send + 'static,
{
    let mut beat = interval(PACE);
    let mut under_way = JoinSet::new();
    for number in 0_u64.. {
        tokio::select! {
            _ = beat.tick() => {
                let asked = ask(format!("request {number}"));
                let tally = Arc::clone(&tally);
                under_way.spawn(async move {
                    let answered = asked.await;
                    lock(&tally).count(answered, None);
                });
            }
            Some(_) = under_way.join_next() => {}
            _ = stopped.wait_for(|stopped| *stopped) => break,
        }
    }
    under_way.join_all().await;
}

async fn request_tcp(vip: SocketAddr, text: String, limit: Duration) -> Result<()> {
    let asked = timeout(limit, async {
        let mut connection = BufStream::new(TcpStream::connect(vip).await.context("connecting")?);
        exchange(&mut connection, &text).await
    });
    let answered = asked.await.map_err(|_| anyhow!("no answer within {limit:?}")).flatten();
    answered.map(drop).with_context(|| format!("TCP {vip}"))
}

async fn request_udp(vip: SocketAddr, text: String, limit: Duration) -> Result<()> {
    let asked = timeout(limit, async {
        let own = if vip.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
        let socket = UdpSocket::bind(own).await?;
        socket.connect(vip).await?;
        socket.send(text.as_bytes()).await?;
        let mut answer = [0; 256];
        let length = socket.recv(&mut answer).await?;
        responder(&String::from_utf8_lossy(&answer[..length]), &text)
    });
    let answered = asked.await.map_err(|_| anyhow!("no answer within {limit:?}")).flatten();
    answered.map(drop).with_context(|| format!("UDP {vip}"))
}

/// Keeps one connection open at a time.
async fn hold_repeatedly(
    vip: SocketAddr,
    tally: Arc<Mutex<Tally>>,
    mut stopped: watch::Receiver<bool>,
    limit: Duration,
) {
    while !*stopped.borrow() {
        let mut module = None;
        lock(&tally).held += 1;
        let ended = hold(vip, &mut module, &tally, &mut stopped, limit).await;
        lock(&tally).held -= 1;
        if ended.is_err() {
            lock(&tally).count(ended.with_context(|| format!("held TCP {vip}")), module.as_deref());
            // The NLB selects a module that has ended until its lease expires, so retries wait.
            let _ = timeout(HELD_PACE, stopped.wait_for(|stopped| *stopped)).await;
        }
    }
}

/// Sends lines until the last one or a stop. The module that answered the first has to answer all.
async fn hold(
    vip: SocketAddr,
    module: &mut Option<String>,
    tally: &Mutex<Tally>,
    stopped: &mut watch::Receiver<bool>,
    limit: Duration,
) -> Result<()> {
    let connected = timeout(limit, TcpStream::connect(vip)).await;
    let mut connection =
        BufStream::new(connected.context("connecting takes too long")?.context("connecting")?);
    let mut beat = interval(HELD_PACE);
    for number in 0..HELD_LINES {
        tokio::select! {
            _ = beat.tick() => {}
            _ = stopped.wait_for(|stopped| *stopped) => return Ok(()),
        }
        let answered = timeout(limit, exchange(&mut connection, &format!("line {number}"))).await;
        let by = answered.with_context(|| format!("no answer within {limit:?}"))??;
        let first = module.get_or_insert(by.clone());
        ensure!(*first == by, "a connection with {first} was answered by {by}");
        lock(tally).count(Ok(()), None);
    }
    Ok(())
}

/// Sends a line and returns the name of the module that answered it.
async fn exchange(connection: &mut BufStream<TcpStream>, text: &str) -> Result<String> {
    connection.write_all(format!("{text}\n").as_bytes()).await?;
    connection.flush().await?;
    let mut answer = String::new();
    if connection.read_line(&mut answer).await? == 0 {
        bail!("closed without an answer");
    }
    responder(answer.trim_end(), text)
}

/// The module's name in an answer, in front of the text, which has to be the one that was sent.
fn responder(answer: &str, text: &str) -> Result<String> {
    match answer.split_once(' ') {
        Some((name, echoed)) if echoed == text => Ok(name.to_owned()),
        _ => bail!("asked {text:?}, answered {answer:?}"),
    }
}

impl Tally {
    fn count(&mut self, result: Result<()>, module: Option<&str>) {
        match result {
            Ok(()) => self.answered += 1,
            Err(why) => {
                self.failed += 1;
                self.last_failure = format!("{why:#}");
                if let Some(module) = module {
                    *self.failed_at.entry(module.to_owned()).or_default() += 1;
                }
            }
        }
    }
}

impl Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} requests answered, {} failed", self.answered, self.failed)
    }
}

fn lock(tally: &Mutex<Tally>) -> MutexGuard<'_, Tally> {
    tally.lock().unwrap_or_else(PoisonError::into_inner)
}
