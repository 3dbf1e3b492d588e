//! A client's TCP connection, as a module's author gets it: a stream that is counted, and that shows when the
//! instance drains.

use std::io::{IoSlice, Result};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Instant;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use crate::state::{Open, State};

/// Read and write it like any tokio stream.
#[derive(Debug)]
pub struct Connection {
    stream: TcpStream,
    client: SocketAddr,
    state: Arc<State>,
    turn: Turn,
    _open: Open,
}

/// Whose turn it is, for latencies.
#[derive(Clone, Copy, Debug)]
enum Turn {
    /// Accepted at this time, and nothing was sent yet.
    Accepted(Instant),
    /// The client began to send at this time, and has no answer yet.
    Asked(Instant),
    Answered,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, client: SocketAddr, state: Arc<State>) -> Connection {
        let open = Open::connection(&state);
        Connection { stream, client, state, turn: Turn::Accepted(Instant::now()), _open: open }
    }

    pub fn client(&self) -> SocketAddr {
        self.client
    }

    /// The address that the client connected to: in the direct server return modes, the VIP.
    pub fn local_addr(&self) -> Result<SocketAddr> {
        self.stream.local_addr()
    }

    /// Completes when the instance drains. Connections that can end early (an idle keep-alive) should end
    /// then.
    pub fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        let state = Arc::clone(&self.state);
        async move { state.draining().await }
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<Result<()>> {
        let before = buffer.filled().len();
        let result = ready!(Pin::new(&mut self.stream).poll_read(cx, buffer));
        let received = buffer.filled().len() - before;
        self.state.count_received(received);
        if received > 0 && !matches!(self.turn, Turn::Asked(_)) {
            self.turn = Turn::Asked(Instant::now());
        }
        Poll::Ready(result)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write(cx, bytes));
        self.sent(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<Result<usize>> {
        let result = ready!(Pin::new(&mut self.stream).poll_write_vectored(cx, bytes));
        self.sent(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

impl Connection {
    fn sent(&mut self, result: Result<usize>) -> Poll<Result<usize>> {
        if let Ok(bytes) = result {
            self.state.count_sent(bytes);
            if bytes > 0
                && let Turn::Accepted(since) | Turn::Asked(since) =
                    std::mem::replace(&mut self.turn, Turn::Answered)
            {
                self.state.count_latency(since.elapsed());
            }
        }
        Poll::Ready(result)
    }
}
