//! Forwards connections from this host's loopback to the NLB's gRPC server, in the network namespace of the
//! lab's NLB.

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

pub struct GrpcForward(TcpListener);

/// Binds the listener. Called first, so that a port in use is reported before the lab is made.
pub async fn bind(address: SocketAddr) -> Result<GrpcForward> {
    let listener = TcpListener::bind(address).await;
    Ok(GrpcForward(listener.with_context(|| {
        format!("{address} is taken, by another demo or NLB perhaps; choose another with --grpc")
    })?))
}

impl GrpcForward {
    pub fn address(&self) -> Result<SocketAddr> {
        Ok(self.0.local_addr()?)
    }

    /// Starts to forward.
    pub fn start(self, lab: Arc<Lab>) {
        tokio::spawn(async move {
            while let Ok((outside, _)) = self.0.accept().await {
                tokio::spawn(forward(outside, Arc::clone(&lab)));
            }
        });
    }
}

/// Forwards one connection. A failure closes it.
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
