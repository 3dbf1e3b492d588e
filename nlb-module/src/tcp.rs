//! Accepts TCP connections and passes each to the module.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::sleep;
use tracing::{debug, warn};

use crate::state::State;
use crate::{Connection, Serve};

/// Serves until the instance is closed; connections that are open then are dropped with this future.
pub(crate) async fn listen(listener: TcpListener, serve: Arc<impl Serve>, state: Arc<State>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, client)) => {
                    let connection = Connection::new(stream, client, Arc::clone(&state));
                    connections.spawn(one(connection, Arc::clone(&serve), Arc::clone(&state)));
                }
                Err(error) => {
                    warn!(%error, "cannot accept a connection");
                    // Mostly the process is out of file descriptors: until one is free, an immediate retry
                    // would fail too.
                    if error.kind() != io::ErrorKind::ConnectionAborted {
                        sleep(Duration::from_millis(100)).await;
                    }
                }
            },
            Some(_) = connections.join_next() => {}
            () = state.closed() => break,
        }
    }
    drop(listener);
    while connections.join_next().await.is_some() {}
}

async fn one(connection: Connection, serve: Arc<impl Serve>, state: Arc<State>) {
    let client = connection.client();
    let result = serve.connection(connection).await;
    state.count_request(result.is_ok());
    if let Err(error) = result {
        debug!(%client, %error, "connection failed");
    }
}
