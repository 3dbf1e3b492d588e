//! The servers behind every contender, each a process of its own. They answer with the number of bytes that
//! the client requests.
//!
//! Each connection has a thread that blocks. There is no event loop to measure, and all contenders have the
//! same servers.

use std::env;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use nlb_testkit::lab::{Host, Lab};
use nlb_testkit::netns::Namespace;
use nlb_testkit::process::Process;

#[derive(clap::Args)]
pub struct Args {
    /// The address to listen at
    listen: SocketAddr,
}

/// The number of connections that are served at a time; clients open fewer.
const AT_A_TIME: usize = 64;

/// The number of bytes in one write.
const CHUNK: usize = 128 << 10;

/// The length of a request's number, with which its answer begins.
pub const NUMBER: usize = 8;

/// The request's number, and the length of its answer.
pub fn request(number: u64, answer: usize) -> [u8; 16] {
    let mut request = [0; 16];
    request[..NUMBER].copy_from_slice(&number.to_le_bytes());
    request[NUMBER..].copy_from_slice(&(answer as u64).to_le_bytes());
    request
}

/// Starts a server on a host.
pub fn start(lab: &Lab, host: &Host, listen: SocketAddr) -> Result<Process> {
    let mut command = host.netns.command(env::current_exe()?);
    command.args(["backend", &listen.to_string()]);
    let mut backend = lab.start(&format!("backend-{}", host.v4), &mut command)?;
    wait_until_it_listens(&mut backend, &host.netns, listen)?;
    Ok(backend)
}

pub fn wait_until_it_listens(process: &mut Process, on: &Namespace, at: SocketAddr) -> Result<()> {
    const START: Duration = Duration::from_secs(10);
    process.wait_until("it listens", START, || {
        on.run(|| TcpStream::connect_timeout(&at, START)).is_ok_and(|stream| stream.is_ok())
    })
}

pub fn run(args: &Args) -> Result<()> {
    let listener = TcpListener::bind(args.listen).with_context(|| format!("listening at {}", args.listen))?;
    thread::scope(|scope| {
        for _ in 0..AT_A_TIME {
            scope.spawn(|| {
                loop {
                    // A client that misses its answer reports that itself.
                    let _ = listener.accept().and_then(|(client, _)| serve(client));
                }
            });
        }
    });
    Ok(())
}

fn serve(mut client: TcpStream) -> io::Result<()> {
    client.set_nodelay(true)?;
    let rest = [0; CHUNK];
    let mut request = [0; 16];
    loop {
        client.read_exact(&mut request)?;
        let (number, len) = request.split_at(NUMBER);
        client.write_all(number)?;
        let mut left = u64::from_le_bytes(len.try_into().expect("eight bytes")) as usize - NUMBER;
        while left > 0 {
            let now = left.min(CHUNK);
            client.write_all(&rest[..now])?;
            left -= now;
        }
    }
}
