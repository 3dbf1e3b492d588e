//! The servers behind every contender, each a process of its own: they answer with as many bytes as they are
//! asked for.
//!
//! A thread blocks for each connection. That leaves out what an event loop would do between two requests, and
//! is the same for all.

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
    /// Where to listen
    listen: SocketAddr,
}

/// Connections that are served at a time, well over what clients open.
const AT_A_TIME: usize = 64;

/// What is written at a time.
const CHUNK: usize = 128 << 10;

/// An answer begins with the number of its request.
pub const NUMBER: usize = 8;

/// The request's number, and the length of its answer.
pub fn request(number: u64, answer: usize) -> [u8; 16] {
    let mut request = [0; 16];
    request[..NUMBER].copy_from_slice(&number.to_le_bytes());
    request[NUMBER..].copy_from_slice(&(answer as u64).to_le_bytes());
    request
}

/// Starts one on a host.
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
                    // A client that does not get its answer says so itself.
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
