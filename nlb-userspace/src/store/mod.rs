//! What operators have set, on disk: read before the daemon serves, and written after every change of it.
//!
//! One file has it all, and is replaced as a whole, so that it is always one state that there has been. [`keep`] is the task
//! that writes it. Changes that come while it writes go into the next file together; whoever has made one waits for its
//! number in [`PersistStatus`], as for the maps in `Applied`. A file that this build cannot use stops the start: it is never
//! written over.

#[cfg(test)]
mod tests;

use std::convert::Infallible;
use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::registry::{PersistedRevision, PersistedState};

pub use crate::config::atomic_file::replace;

/// The file's name in the state directory.
pub const FILE: &str = "state.json";

/// Locked by the daemon whose directory it is.
const LOCK: &str = "lock";

/// Of the form in which [`PersistedState`] is written. It grows when a build could not use what the one before has written.
const VERSION: u32 = 1;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the disk holds, as the calls that wait for it see it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistStatus {
    /// Of the newest [`PersistedRevision`] that was tried.
    pub number: u64,
    /// Why it could not be written, if so.
    pub error: Option<String>,
}

#[derive(Serialize)]
struct Written<'a> {
    version: u32,
    state: &'a PersistedState,
}

#[derive(Deserialize)]
struct Read {
    state: PersistedState,
}

/// All that is looked at before the version is known.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// The directory is this process's own while the answer lives. Two daemons would write over each other's file.
pub fn claim(directory: &Path) -> anyhow::Result<Option<File>> {
    let path = directory.join(LOCK);
    let open = || {
        fs::create_dir_all(directory)?;
        File::options().create(true).truncate(false).write(true).open(&path)
    };
    let locked = open().map_err(TryLockError::Error).and_then(|file| file.try_lock().map(|()| file));
    match locked {
        Ok(file) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => bail!(
            "another `nlb serve` keeps its state in {}; give this one a directory of its own with --state-dir",
            directory.display()
        ),
        // Nobody writes there then; whoever sets something is told.
        Err(TryLockError::Error(error)) => {
            warn!(
                "operator settings cannot be written to disk: cannot lock {}: {error}; see --state-dir",
                path.display()
            );
            Ok(None)
        }
    }
}

/// What was kept in this directory; nothing, if there is no such file.
pub fn read(directory: &Path) -> anyhow::Result<PersistedState> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PersistedState::default()),
        Err(error) => return Err(unusable(directory, anyhow!(error).context("cannot be read"))),
    };
    parse(&bytes).map_err(|problem| unusable(directory, problem))
}

/// Why the daemon does not start with the file that is there, and what to do about it.
pub fn unusable(directory: &Path, problem: anyhow::Error) -> anyhow::Error {
    let path = directory.join(FILE);
    anyhow!(
        "{}, the persisted operator settings, cannot be used: {problem:#}; correct the file, or start without it: move \
         it away, or start once with --ignore-state, which does that",
        path.display()
    )
}

/// Moves the file out of the way, if there is one. Answers where it is now.
pub fn move_aside(directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let path = directory.join(FILE);
    if !path.try_exists().with_context(|| format!("cannot look at {}", path.display()))? {
        return Ok(None);
    }
    // Nothing that was ignored before is overwritten either.
    let free = (1..).map(|n| directory.join(format!("{FILE}.ignored-{n}"))).find(|path| !path.exists());
    let aside = free.context("there is always a greater number")?;
    fs::rename(&path, &aside).with_context(|| format!("cannot move {} away", path.display()))?;
    Ok(Some(aside))
}

/// Writes every change of what is to be kept, and tries again what failed. Runs until it is dropped.
pub async fn keep(
    directory: PathBuf,
    mut persisted: watch::Receiver<PersistedRevision>,
    stored: watch::Sender<PersistStatus>,
) -> Infallible {
    let mut retry = FIRST_RETRY;
    loop {
        let failed = stored.borrow().error.is_some();
        tokio::select! {
            changed = persisted.changed() => if changed.is_err() { std::future::pending::<()>().await },
            () = tokio::time::sleep(retry), if failed => retry = (retry * 2).min(LAST_RETRY),
        }
        let PersistedRevision { number, state: persisted } = persisted.borrow_and_update().clone();
        let into = directory.clone();
        let written = tokio::task::spawn_blocking(move || write(&into, &persisted)).await;
        let error = match written {
            Ok(written) => written.err().map(|error| format!("{error:#}")),
            Err(panicked) => Some(panicked.to_string()),
        };
        match &error {
            None => {
                if failed {
                    info!("operator settings are written to disk again");
                }
                retry = FIRST_RETRY;
            }
            Some(error) => warn!("operator settings are not on disk: {error}"),
        }
        stored.send_replace(PersistStatus { number, error });
    }
}

fn write(directory: &Path, persisted: &Arc<PersistedState>) -> anyhow::Result<()> {
    let written = Written { version: VERSION, state: persisted };
    replace(directory, FILE, |file| Ok(serde_json::to_writer(file, &written)?))
        .with_context(|| format!("cannot write {}; see --state-dir", directory.join(FILE).display()))
}

fn parse(bytes: &[u8]) -> anyhow::Result<PersistedState> {
    let Head { version } = serde_json::from_slice(bytes).context("it is damaged")?;
    ensure!(
        version <= VERSION,
        "a newer version of the NLB wrote it (format {version}; this one reads {VERSION})"
    );
    if version == 0 {
        bail!("it is damaged: there was no format 0");
    }
    let Read { state } = serde_json::from_slice(bytes).context("it is damaged")?;
    state.check().map_err(|problem| anyhow!("it is damaged: {problem}"))?;
    Ok(state)
}
