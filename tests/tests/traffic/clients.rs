//! Clients with real sockets. A flow is one connection or one UDP socket.

use std::collections::BTreeMap;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nlb_testkit::lab::Host;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// How long a client waits for one answer. A connection to a service without backends, which drops packets,
/// takes as long to fail.
const MAX_WAIT: Duration = Duration::from_secs(30);

/// The most flows at a time.
const AT_A_TIME: usize = 50;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum L4 {
    Tcp,
    Udp,
}

/// Runs a future in the host's namespace.
pub fn on<T: Send, F: Future<Output = Result<T>>>(host: &Host, work: impl FnOnce() -> F + Send) -> Result<T> {
    host.netns.run(|| tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(work()))?
}

/// Opens a flow from each of `count` ports from `first` on, and counts the answers of each module. Fixed
/// ports make the result reproducible. Fails if a flow fails or two modules answer it.
pub fn flows(host: &Host, l4: L4, to: SocketAddr, first: u16, count: u16) -> Result<BTreeMap<String, u32>> {
    let from = if to.is_ipv4() { IpAddr::from(host.v4) } else { host.v6.into() };
    on(host, || async move {
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        let mut flows = JoinSet::new();
        for port in first..first + count {
            let room = room.clone();
            flows.spawn(async move {
                let _place = room.acquire_owned().await?;
                let from = SocketAddr::new(from, port);
                flow(l4, from, to).await.with_context(|| format!("{l4:?} from {from} to {to}"))
            });
        }
        let mut answered = BTreeMap::new();
        let mut failed = Vec::new();
        while let Some(name) = flows.join_next().await {
            match name? {
                Ok(name) => *answered.entry(name).or_default() += 1,
                Err(error) => failed.push(error),
            }
        }
        let (number, first) = (failed.len(), failed.into_iter().next());
        match first {
            None => Ok(answered),
            Some(first) => {
                Err(first.context(format!("{number} of {count} flows failed; {answered:?} did not")))
            }
        }
    })
}

/// Opens a flow with three requests, and returns the module that answered them.
async fn flow(l4: L4, from: SocketAddr, to: SocketAddr) -> Result<String> {
    match l4 {
        L4::Tcp => {
            let mut connection = Connection::open_from(Some(from), to).await?;
            let name = connection.request().await?;
            for _ in 0..2 {
                let again = connection.request().await?;
                ensure!(again == name, "answered by {name} and by {again}");
            }
            Ok(name)
        }
        L4::Udp => {
            let socket = UdpSocket::bind(from).await?;
            socket.connect(to).await?;
            let name = request_udp(&socket).await?;
            for _ in 0..2 {
                let again = request_udp(&socket).await?;
                ensure!(again == name, "answered by {name} and by {again}");
            }
            Ok(name)
        }
    }
}

/// Sends one datagram without a retry, and returns the module that answered.
pub async fn request_udp(socket: &UdpSocket) -> Result<String> {
    socket.send(b"who?").await?;
    let mut answer = [0; 256];
    let len = tokio::time::timeout(MAX_WAIT, socket.recv(&mut answer)).await.context("no answer")??;
    signer(std::str::from_utf8(&answer[..len])?, "who?")
}

/// A TCP connection to an echo module.
pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub async fn open(to: SocketAddr) -> Result<Self> {
        Self::open_from(None, to).await
    }

    /// Opens a connection from this address, if there is one.
    pub async fn open_from(from: Option<SocketAddr>, to: SocketAddr) -> Result<Self> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(from) = from {
            socket.bind(from)?;
        }
        let stream = tokio::time::timeout(MAX_WAIT, socket.connect(to)).await.context("no connection")??;
        Ok(Connection { stream: BufReader::new(stream) })
    }

    /// Sends a line, and returns the module that answered.
    pub async fn request(&mut self) -> Result<String> {
        self.echo("who?").await
    }

    /// Sends this line, waits until it comes back, and returns the module that answered.
    pub async fn echo(&mut self, line: &str) -> Result<String> {
        self.send(line).await?;
        self.answer(line).await
    }

    pub async fn send(&mut self, line: &str) -> Result<()> {
        let line = format!("{line}\n");
        let sent = self.stream.write_all(line.as_bytes());
        Ok(tokio::time::timeout(MAX_WAIT, sent).await.context("it cannot be sent")??)
    }

    /// Waits for the answer to a line, and returns the module that sent it.
    pub async fn answer(&mut self, line: &str) -> Result<String> {
        let mut answer = String::new();
        let read = self.stream.read_line(&mut answer);
        if tokio::time::timeout(MAX_WAIT, read).await.context("no answer")?? == 0 {
            bail!("the connection was closed");
        }
        signer(answer.trim_end(), line)
    }

    /// Ends it by a RST.
    pub fn reset(self) -> Result<()> {
        Ok(self.stream.into_inner().set_zero_linger()?)
    }
}

fn signer(answer: &str, question: &str) -> Result<String> {
    let signed = answer.strip_suffix(question).map(str::trim_end);
    signed.map(str::to_owned).with_context(|| format!("not an answer: {answer:?}"))
}

/// Checks that counts agree with weights within three standard deviations of a binomial distribution.
pub fn assert_shares(counts: &BTreeMap<String, u32>, weights: &[(&str, u32)]) {
    let total: u32 = counts.values().sum();
    let sum: u32 = weights.iter().map(|(_, weight)| weight).sum();
    for (name, weight) in weights {
        let share = *weight as f64 / sum as f64;
        let expected = total as f64 * share;
        let deviation = (expected * (1.0 - share)).sqrt();
        let got = *counts.get(*name).unwrap_or(&0) as f64;
        assert!(
            (got - expected).abs() <= 3.0 * deviation,
            "{name} took {got} of {total} flows, expected {expected:.0} +- {:.0}: {counts:?}",
            3.0 * deviation
        );
    }
    let known: u32 = weights.iter().filter_map(|(name, _)| counts.get(*name)).sum();
    assert_eq!(known, total, "another module answered: {counts:?}");
}
