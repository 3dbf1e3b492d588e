//! Persisted state on disk: read before the daemon serves, and written after every change.
//!
//! One file holds it, and is replaced as a whole, so that it always holds one state that existed. [`keep`] is
//! the task that writes it. Changes that come during a write go into the next file together; a caller that
//! made one waits for its number in [`PersistStatus`], as it does for the maps in `Applied`. A file that this
//! build cannot use prevents the start and is never overwritten.

mod format_1;
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

/// Locked by the daemon that uses the directory.
const LOCK: &str = "lock";

/// The version of the format of [`PersistedState`]. It grows when a build cannot read the format of the next.
const VERSION: u32 = 2;

const FIRST_RETRY: Duration = Duration::from_millis(500);
const LAST_RETRY: Duration = Duration::from_secs(30);

/// What the disk holds, for the calls that wait for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PersistStatus {
    /// The number of the newest [`PersistedRevision`] that was tried.
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

/// The only part that is read before the version is known.
#[derive(Deserialize)]
struct Head {
    version: u32,
}

/// Claims the directory for this process while the returned file is open. Two daemons would overwrite each
/// other's file.
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
        // Nothing can be written to such a directory, and every call that sets something reports that.
        Err(TryLockError::Error(error)) => {
            warn!(
                "operator settings cannot be written to disk: cannot lock {}: {error}; see --state-dir",
                path.display()
            );
            Ok(None)
        }
    }
}

/// The persisted state in this directory; an empty one without a file.
pub fn read(directory: &Path) -> anyhow::Result<PersistedState> {
    let path = directory.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(PersistedState::default()),
        Err(error) => return Err(unusable(directory, anyhow!(error).context("cannot be read"))),
    };
    parse(&bytes).map_err(|problem| unusable(directory, problem))
}

/// Why the daemon does not start with this file, and the remedy.
pub fn unusable(directory: &Path, problem: anyhow::Error) -> anyhow::Error {
    let path = directory.join(FILE);
    anyhow!(
        "{}, the persisted operator settings, cannot be used: {problem:#}; correct the file, or start without it: move \
         it away, or start once with --ignore-state, which does that",
        path.display()
    )
}

/// Moves the file aside, if it exists. Returns its new path.
pub fn move_aside(directory: &Path) -> anyhow::Result<Option<PathBuf>> {
    let path = directory.join(FILE);
    if !path.try_exists().with_context(|| format!("cannot access {}", path.display()))? {
        return Ok(None);
    }
    // A file that was ignored before is not overwritten either.
    let free = (1..).map(|n| directory.join(format!("{FILE}.ignored-{n}"))).find(|path| !path.exists());
    let aside = free.context("there is always a free number")?;
    fs::rename(&path, &aside).with_context(|| format!("cannot move {} aside", path.display()))?;
    Ok(Some(aside))
}

/// Writes every change of the persisted state, and retries failed writes. Runs until it is dropped.
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
    let state = match version {
        0 => bail!("it is damaged: there was no format 0"),
        1 => format_1::parse(bytes).context("it is damaged")?,
        _ => serde_json::from_slice::<Read>(bytes).context("it is damaged")?.state,
    };
    state.check().map_err(|problem| anyhow!("it is damaged: {problem}"))?;
    Ok(state)
}
