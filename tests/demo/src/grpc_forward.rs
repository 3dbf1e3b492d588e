//! Lets this host's loopback into the lab: a listener out here, connections made from within the NLB's
//! namespace.

use std::net::{SocketAddr, TcpStream as BlockingStream};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nlb_testkit::lab::Lab;
use nlb_testkit::programs;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::spawn_blocking;

const CONNECT: Duration = Duration::from_secs(3);

pub struct Gate(TcpListener);

/// First of all, so that a port in use is known before anything is built.
pub async fn bind(address: SocketAddr) -> Result<Gate> {
    let listener = TcpListener::bind(address).await;
    Ok(Gate(listener.with_context(|| {
        format!("{address} is taken, by another demo or NLB perhaps; choose another with --grpc")
    })?))
}

impl Gate {
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Forwards to the NLB's gRPC server from now on.
    pub fn open_to(self, lab: Arc<Lab>) {
        tokio::spawn(async move {
            while let Ok((outside, _)) = self.0.accept().await {
                tokio::spawn(forward(outside, Arc::clone(&lab)));
            }
        });
    }
}

/// What fails here, the caller sees as a closed connection.
async fn forward(mut outside: TcpStream, lab: Arc<Lab>) -> Result<()> {
    let inside = spawn_blocking(move || {
        let address = programs::grpc(&lab);
        lab.nlb.netns.run(|| BlockingStream::connect_timeout(&address, CONNECT))
    });
    let inside = inside.await???;
    inside.set_nonblocking(true)?;
    copy_bidirectional(&mut outside, &mut TcpStream::from_std(inside)?).await?;
    Ok(())
}
