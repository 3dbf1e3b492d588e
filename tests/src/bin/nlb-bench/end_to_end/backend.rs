//! The servers behind every contender, each a process of its own: they answer with as many bytes as they are asked for.
//!
//! A thread blocks for each connection. That leaves out what an event loop would do between two requests, and is the same for
//! all.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::thread;

use anyhow::{Context, Result};

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
