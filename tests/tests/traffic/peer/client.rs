//! The client: one flow at a time, from ports that the script chooses, and a description of its result.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpSocket, TcpStream, UdpSocket};
use tokio::time::timeout;

use super::backend::{BULK, count, pattern, reason};

/// How long the client waits for an answer. An emulated machine answers sooner.
pub const MAX_WAIT: Duration = Duration::from_secs(20);

pub struct Connection {
    stream: BufReader<TcpStream>,
}

impl Connection {
    pub async fn open(from: SocketAddr, to: SocketAddr) -> io::Result<Connection> {
        let socket = if to.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        socket.bind(from)?;
        Ok(Connection { stream: BufReader::new(with_timeout(socket.connect(to)).await?) })
    }

    /// Sends a line, and returns the answer.
    pub async fn request(&mut self, line: &str) -> io::Result<String> {
        self.stream.write_all(format!("{line}\n").as_bytes()).await?;
        self.read_line().await
    }

    async fn read_line(&mut self) -> io::Result<String> {
        let mut answer = String::new();
        match with_timeout(self.stream.read_line(&mut answer)).await? {
            0 => Ok("the end".to_owned()),
            _ => Ok(answer.trim_end().to_owned()),
        }
    }

    /// Ends it by a RST.
    pub fn reset(self) -> io::Result<()> {
        self.stream.into_inner().set_zero_linger()
    }
}

/// Opens a connection with two requests.
pub async fn two_requests(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let mut connection = Connection::open(from, to).await?;
    Ok(format!("{}, {}", connection.request("who").await?, connection.request("who").await?))
}

/// Sends so many bytes, ends its half of the connection, and returns the answer.
pub async fn uploads(from: SocketAddr, to: SocketAddr, len: usize) -> io::Result<String> {
    let mut connection = Connection::open(from, to).await?;
    let data = [b"count\n", &pattern(len)[..]].concat();
    with_timeout(connection.stream.write_all(&data)).await?;
    connection.stream.shutdown().await?;
    connection.read_line().await
}

/// Reads the backend's half of the connection to its end, and goes on sending.
pub async fn downloads(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let mut connection = Connection::open(from, to).await?;
    connection.stream.write_all(b"send\n").await?;
    let came = with_timeout(count(&mut connection.stream)).await?;
    with_timeout(connection.stream.write_all(&pattern(BULK / 4))).await?;
    Ok(came)
}

pub async fn is_reset(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    Connection::open(from, to).await?.request("reset").await
}

pub async fn resets(from: SocketAddr, to: SocketAddr) -> io::Result<String> {
    let mut connection = Connection::open(from, to).await?;
    let name = connection.request("who").await?;
    connection.reset()?;
    Ok(name)
}

pub async fn socket(from: SocketAddr, to: SocketAddr) -> io::Result<UdpSocket> {
    let socket = UdpSocket::bind(from).await?;
    socket.connect(to).await?;
    Ok(socket)
}

/// Sends a datagram, and returns the answer.
pub async fn exchange(socket: &UdpSocket, len: usize) -> io::Result<String> {
    socket.send(&pattern(len)).await?;
    let mut answer = [0; 256];
    let len = with_timeout(socket.recv(&mut answer)).await?;
    Ok(String::from_utf8_lossy(&answer[..len]).into_owned())
}

pub fn describe(outcome: io::Result<String>) -> String {
    match outcome {
        Err(error) if error.kind() == ErrorKind::TimedOut => "no answer".to_owned(),
        Err(error) => reason(&error),
        Ok(line) => line,
    }
}

async fn with_timeout<T>(work: impl Future<Output = io::Result<T>>) -> io::Result<T> {
    timeout(MAX_WAIT, work).await.unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
}
