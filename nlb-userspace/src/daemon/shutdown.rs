//! The signals that stop the daemon.

use tokio::signal::unix::{SignalKind, signal};

/// Returns when the process receives SIGTERM or SIGINT.
pub(crate) async fn signal_received() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
