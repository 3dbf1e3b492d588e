//! The load: clients on the clients' host, each in a thread of its own. A client waits for an answer before
//! it sends the next request.
//!
//! Every answer is checked, and a wrong or missing one ends the benchmark.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::backend::{NUMBER, request};

/// The number of connections of each kind at a time.
const SHORT: usize = 16;
const KEPT: usize = 32;
const DOWNLOADS: usize = 4;

/// The length of one download in bytes.
const DOWNLOAD: usize = 4 << 20;

const TIMEOUT: Duration = Duration::from_secs(5);

/// Connects, sends a request, reads the answer and closes, repeatedly. Returns the number of rounds.
pub fn connections(targets: &[SocketAddr], length: Duration) -> Result<u64> {
    by_many(
        SHORT,
        |client, until| {
            let mut done = 0;
            while Instant::now() < until {
                Connection::open(targets, client + done)?.ask()?;
                done += 1;
            }
            Ok(done as u64)
        },
        length,
    )
}

/// Sends requests on connections that stay open. Returns their number.
pub fn requests(targets: &[SocketAddr], length: Duration) -> Result<u64> {
    by_many(
        KEPT,
        |client, until| {
            let mut connection = Connection::open(targets, client)?;
            while Instant::now() < until {
                connection.ask()?;
            }
            Ok(connection.asked)
        },
        length,
    )
}

/// Downloads repeatedly. Returns the number of bytes.
pub fn bytes(targets: &[SocketAddr], length: Duration) -> Result<u64> {
    by_many(
        DOWNLOADS,
        |client, until| {
            let mut room = vec![0; 256 << 10];
            let mut connection = Connection::open(targets, client)?;
            while Instant::now() < until {
                connection.fetch(DOWNLOAD, &mut room)?;
            }
            Ok(connection.asked * DOWNLOAD as u64)
        },
        length,
    )
}

/// The latency of each request on one connection.
pub fn latencies(targets: &[SocketAddr], requests: u32) -> Result<Vec<Duration>> {
    let mut connection = Connection::open(targets, 0)?;
    (0..requests)
        .map(|_| {
            let start = Instant::now();
            connection.ask().map(|()| start.elapsed())
        })
        .collect()
}

/// The sum of the work of several clients. Each gets its number and the time at which it ends.
fn by_many(
    clients: usize,
    work: impl Fn(usize, Instant) -> Result<u64> + Sync,
    length: Duration,
) -> Result<u64> {
    let until = Instant::now() + length;
    thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|client| {
                let work = &work;
                scope.spawn(move || work(client, until))
            })
            .collect();
        clients.into_iter().map(|client| client.join().expect("a client does not panic")).sum()
    })
}

struct Connection {
    stream: TcpStream,
    asked: u64,
}

impl Connection {
    /// Connects to the targets in turn.
    fn open(targets: &[SocketAddr], turn: usize) -> Result<Connection> {
        let target = targets[turn % targets.len()];
        let stream = TcpStream::connect(target).with_context(|| format!("connecting to {target}"))?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(TIMEOUT))?;
        Ok(Connection { stream, asked: 0 })
    }

    fn ask(&mut self) -> Result<()> {
        self.fetch(NUMBER, &mut [])
    }

    /// Requests an answer of `len` bytes and reads it piece by piece.
    fn fetch(&mut self, bytes: usize, room: &mut [u8]) -> Result<()> {
        self.asked += 1;
        self.stream.write_all(&request(self.asked, bytes)).context("asking")?;
        let mut number = [0; NUMBER];
        self.stream.read_exact(&mut number).context("waiting for an answer")?;
        ensure!(number == self.asked.to_le_bytes(), "request {} got another answer: {number:?}", self.asked);
        let mut left = bytes - NUMBER;
        while left > 0 {
            let some = left.min(room.len());
            let read = self.stream.read(&mut room[..some]).context("waiting for the rest of an answer")?;
            ensure!(read > 0, "the connection was closed {left} bytes before the end of an answer");
            left -= read;
        }
        Ok(())
    }
}
