//! The server behind either balancer. It does what its clients request, and records their connections.

use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};

use anyhow::Result;
use nix::errno::Errno;
use nlb_testkit::lab::Host;
use tokio::io::{AsyncBufRead, AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};
use tokio::sync::mpsc::UnboundedSender;

/// The bytes of many full segments.
pub const BULK: usize = 1 << 20;

/// A connection that has ended, or a datagram.
pub struct Visit {
    pub backend: &'static str,
    pub peer: SocketAddr,
    pub events: String,
}

/// Serves TCP and UDP until it is dropped.
pub struct Backend {
    _work: Runtime,
}

impl Backend {
    pub fn start(
        host: &Host,
        name: &'static str,
        listen: [SocketAddr; 2],
        visits: &UnboundedSender<Visit>,
    ) -> Result<Backend> {
        let work = Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let _inside = work.enter();
        for address in listen {
            // The address is the source of answers.
            let (tcp, udp) = host.netns.run(|| -> io::Result<_> {
                Ok((TcpListener::bind(address)?, UdpSocket::bind(address)?))
            })??;
            tcp.set_nonblocking(true)?;
            udp.set_nonblocking(true)?;
            work.spawn(connections(tokio::net::TcpListener::from_std(tcp)?, name, visits.clone()));
            work.spawn(datagrams(tokio::net::UdpSocket::from_std(udp)?, name, visits.clone()));
        }
        Ok(Backend { _work: work })
    }
}

async fn connections(listener: tokio::net::TcpListener, name: &'static str, visits: UnboundedSender<Visit>) {
    while let Ok((stream, peer)) = listener.accept().await {
        let visits = visits.clone();
        tokio::spawn(async move {
            let mut events = String::new();
            if let Err(error) = converse(stream, name, &mut events).await {
                events += &format!("; {}", reason(&error));
            }
            // The receiver is gone if a test has ended early.
            let _ = visits.send(Visit { backend: name, peer, events });
        });
    }
}

/// Serves the request of each line until the end of the connection.
async fn converse(stream: TcpStream, name: &str, events: &mut String) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    let mut line = String::new();
    while stream.read_line(&mut line).await? > 0 {
        if !events.is_empty() {
            *events += ", ";
        }
        *events += line.trim_end();
        match line.trim_end() {
            "count" => {
                let sent = count(&mut stream).await?;
                *events += &format!(" ({sent})");
                stream.write_all(format!("{name} got {sent}\n").as_bytes()).await?;
                return Ok(());
            }
            "send" => {
                stream.write_all(&pattern(BULK)).await?;
                stream.shutdown().await?;
                *events += &format!(" (and got {} after it had closed)", count(&mut stream).await?);
            }
            "reset" => return stream.into_inner().set_zero_linger(),
            _ => stream.write_all(format!("{name}\n").as_bytes()).await?,
        }
        line.clear();
    }
    *events += "; end";
    Ok(())
}

async fn datagrams(socket: tokio::net::UdpSocket, name: &'static str, visits: UnboundedSender<Visit>) {
    let mut question = [0; 1 << 16];
    loop {
        // An error is about an earlier answer to a client that has ended.
        let Ok((len, peer)) = socket.recv_from(&mut question).await else { continue };
        let sent = described(&question[..len]);
        if socket.send_to(format!("{name} got {sent}").as_bytes(), peer).await.is_ok() {
            let _ = visits.send(Visit { backend: name, peer, events: sent });
        }
    }
}

/// Reads to the end, and describes the data.
pub async fn count(stream: &mut (impl AsyncBufRead + Unpin)) -> io::Result<String> {
    let mut data = Vec::new();
    stream.read_to_end(&mut data).await?;
    Ok(described(&data))
}

/// The error by its number, since many have no kind.
pub fn reason(error: &io::Error) -> String {
    let number = error.raw_os_error();
    number.map_or_else(|| error.to_string(), |number| Errno::from_raw(number).desc().to_lowercase())
}

fn described(data: &[u8]) -> String {
    let state = if data == pattern(data.len()) { "as sent" } else { "altered" };
    format!("{} bytes {state}", data.len())
}

/// Data that are neither constant nor periodic.
pub fn pattern(len: usize) -> Vec<u8> {
    (0..len as u64).map(|n| (n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8).collect()
}
