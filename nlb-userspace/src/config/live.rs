//! Settings that change while the daemon runs, and are kept for its next start.
//!
//! An update is JSON with the keys of the TOML file; what it does not name stays. Most settings about modules take effect at
//! once. The others size the kernel's maps or say where the daemon attaches and listens: those wait for a restart. What was
//! set this way lies in a file of its own, which comes after flags and variables and before the TOML file.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, anyhow};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use tokio::sync::{Mutex, MutexGuard};

use super::atomic_file;
use super::{Config, Options};

const FILE: &str = "config.json";

/// Settings that take effect without a restart.
pub(super) const LIVE: [&str; 17] = [
    "vip",
    "forward_mode",
    "heartbeat_interval",
    "missed_heartbeats",
    "evict_after",
    "drain_timeout",
    "promotion_step",
    "promotion_max_error_percent",
    "max_reset_percent",
    "reset_back_off",
    "fail_open",
    "reject",
    "drop_closed_ports",
    "learn_routes",
    "accept_empty_ids",
    "max_modules",
    "max_routes",
];

/// The settings of a running daemon.
#[derive(Default)]
pub struct Configuration(Mutex<Versions>);

/// Where the settings came from, and what became of them.
#[derive(Clone, Default)]
pub struct Versions {
    /// By flag or variable.
    given: Options,
    saved: SavedSettings,
    /// Everything that is set now: at first by rank, then what was set last.
    running: Options,
    /// What the daemon was started with, of which the settings that are not live still hold.
    started: Map<String, Value>,
    /// Without it nothing is kept.
    state_dir: Option<PathBuf>,
}

/// What was set over gRPC.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SavedSettings {
    /// Grows by one with each update.
    version: u64,
    updated_at: Option<SystemTime>,
    settings: Options,
}

/// An update that would be taken.
pub struct Proposal {
    versions: Versions,
    pub config: Config,
    /// Settings that would wait for a restart.
    pub waiting: Vec<String>,
    /// Settings that a flag or variable gives too, which will win at the next start.
    pub overridden: Vec<String>,
}

/// What is wrong with an update.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected(pub String);

impl Configuration {
    /// Puts together what was given, kept and written in the file.
    pub fn start(given: Options) -> anyhow::Result<(Config, Configuration)> {
        let file = given.file()?;
        let state_dir = given.clone().or(file.clone()).state_dir();
        let saved = SavedSettings::read(&state_dir.join(FILE))?;
        let running = given.clone().or(saved.settings.clone()).or(file);
        let config = running.clone().check()?;
        let started = effective(&config);
        let versions = Versions { given, saved, running, started, state_dir: Some(state_dir) };
        Ok((config, Configuration(Mutex::new(versions))))
    }

    /// One update at a time: whoever holds this is the one.
    pub async fn lock(&self) -> MutexGuard<'_, Versions> {
        self.0.lock().await
    }
}

impl Versions {
    /// What is set now, the defaults included.
    pub fn settings(&self) -> anyhow::Result<Map<String, Value>> {
        Ok(effective(&self.running.clone().check()?))
    }

    pub fn version(&self) -> u64 {
        self.saved.version
    }

    pub fn updated_at(&self) -> Option<SystemTime> {
        self.saved.updated_at
    }

    /// Settings that are set and wait for a restart.
    pub fn waiting(&self) -> anyhow::Result<Vec<String>> {
        let settings = self.settings()?;
        Ok(settings
            .iter()
            .filter(|(key, value)| self.waits(key, value))
            .map(|(key, _)| key.clone())
            .collect())
    }

    fn waits(&self, key: &str, value: &Value) -> bool {
        !LIVE.contains(&key) && self.started.get(key) != Some(value)
    }

    /// What would come of an update.
    pub fn propose(&self, json: &[u8], now: SystemTime) -> Result<Proposal, Rejected> {
        let rejected = |error: &dyn std::fmt::Display| Rejected(error.to_string());
        let update: Map<String, Value> = serde_json::from_slice(json).map_err(|error| rejected(&error))?;
        let keys: BTreeSet<String> = update.keys().cloned().collect();
        let update: Options =
            serde_json::from_value(Value::Object(update)).map_err(|error| rejected(&error))?;
        let mut versions = self.clone();
        versions.saved = SavedSettings {
            version: self.saved.version + 1,
            updated_at: Some(now),
            settings: update.clone().or(self.saved.settings.clone()),
        };
        versions.running = update.or(self.running.clone());
        let config = versions.running.clone().check().map_err(|error| rejected(&format!("{error:#}")))?;
        let settings = effective(&config);
        let waiting =
            keys.iter().filter(|key| settings.get(*key).is_some_and(|value| self.waits(key, value)));
        let given = present(&versions.given);
        let overridden = keys.iter().filter(|key| given.contains_key(*key));
        let (waiting, overridden) = (waiting.cloned().collect(), overridden.cloned().collect());
        Ok(Proposal { waiting, overridden, config, versions })
    }

    /// Keeps an update.
    pub fn adopt(&mut self, proposal: Proposal) -> anyhow::Result<()> {
        if let Some(directory) = &self.state_dir {
            proposal.versions.saved.write(directory)?;
        }
        *self = proposal.versions;
        Ok(())
    }
}

impl SavedSettings {
    /// Nothing, if there is no such file.
    fn read(path: &Path) -> anyhow::Result<SavedSettings> {
        let text = match fs::read(path) {
            Ok(text) => text,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(SavedSettings::default()),
            Err(error) => return Err(anyhow!(error).context(format!("cannot read {}", path.display()))),
        };
        serde_json::from_slice(&text).with_context(|| {
            format!(
                "{} is damaged; repair it, or remove it to discard the settings made over gRPC",
                path.display()
            )
        })
    }

    /// Whole or not at all, also if the machine stops meanwhile.
    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        atomic_file::replace(directory, FILE, |file| file.write_all(&serde_json::to_vec_pretty(self)?))
            .with_context(|| format!("cannot write the settings to {}; see --state-dir", directory.display()))
    }
}

/// All settings, as they would be written.
pub(super) fn effective(config: &Config) -> Map<String, Value> {
    present(&Options::from(config))
}

/// The settings that are there.
fn present(options: &Options) -> Map<String, Value> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(options) else { return Map::new() };
    settings.retain(|_, value| !value.is_null());
    settings
}
