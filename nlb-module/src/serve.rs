//! The data path of a module, which its author writes.

use std::future::{Future, ready};
use std::io::Result;
use std::net::SocketAddr;

use crate::Connection;

/// Answers clients. A closure `Fn(Connection) -> Future` serves TCP alone.
pub trait Serve: Send + Sync + 'static {
    /// Serves one TCP connection to its end. An error counts as a failed request.
    fn connection(&self, connection: Connection) -> impl Future<Output = Result<()>> + Send;

    /// Answers one datagram; `None` sends no answer.
    fn datagram(
        &self,
        _payload: &[u8],
        _client: SocketAddr,
    ) -> impl Future<Output = Result<Option<Vec<u8>>>> + Send {
        ready(Ok(None))
    }
}

impl<F, Served> Serve for F
where
    F: Fn(Connection) -> Served + Send + Sync + 'static,
    Served: Future<Output = Result<()>> + Send,
{
    fn connection(&self, connection: Connection) -> impl Future<Output = Result<()>> + Send {
        self(connection)
    }
}
