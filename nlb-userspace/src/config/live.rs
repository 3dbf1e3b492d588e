//! Settings that change while the daemon runs, and are kept for its next start.
//!
//! An update is JSON with the keys of the TOML file; keys that it leaves out stay. Most settings about
//! modules take effect at once. The others size the kernel's maps or name where the daemon attaches and
//! listens: those wait for a restart. The settings of updates are in a file of their own, which ranks after
//! flags and variables and before the TOML file.

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

/// The settings by source, and those in force.
#[derive(Clone, Default)]
pub struct Versions {
    /// Settings given by flag or variable.
    given: Options,
    saved: SavedSettings,
    /// All settings that are set now: at first by rank, then by the last update.
    running: Options,
    /// The settings at the daemon's start, which still hold for those that are not live.
    started: Map<String, Value>,
    /// Without a state directory no update is kept.
    state_dir: Option<PathBuf>,
}

/// The settings made over gRPC.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct SavedSettings {
    /// The number of updates.
    version: u64,
    updated_at: Option<SystemTime>,
    settings: Options,
}

/// An update that is valid.
pub struct Proposal {
    versions: Versions,
    pub config: Config,
    /// Settings that would wait for a restart.
    pub waiting: Vec<String>,
    /// Settings that a flag or variable gives too, which takes precedence at the next start.
    pub overridden: Vec<String>,
}

/// Why an update is invalid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected(pub String);

impl Configuration {
    /// Combines the given settings, the saved ones and those in the file.
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

    /// Serialises updates: one at a time holds this lock.
    pub async fn lock(&self) -> MutexGuard<'_, Versions> {
        self.0.lock().await
    }
}

impl Versions {
    /// All settings in force, defaults included.
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

    /// The result of an update that is not adopted yet.
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

    /// Saves an update, and puts it in force.
    pub fn adopt(&mut self, proposal: Proposal) -> anyhow::Result<()> {
        if let Some(directory) = &self.state_dir {
            proposal.versions.saved.write(directory)?;
        }
        *self = proposal.versions;
        Ok(())
    }
}

impl SavedSettings {
    /// The saved settings; empty if the file does not exist.
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

    /// Replaces the file atomically, also if the machine crashes meanwhile.
    fn write(&self, directory: &Path) -> anyhow::Result<()> {
        atomic_file::replace(directory, FILE, |file| file.write_all(&serde_json::to_vec_pretty(self)?))
            .with_context(|| format!("cannot write the settings to {}; see --state-dir", directory.display()))
    }
}

/// All settings, with the defaults.
pub(super) fn effective(config: &Config) -> Map<String, Value> {
    present(&Options::from(config))
}

/// The settings that are set.
fn present(options: &Options) -> Map<String, Value> {
    let Ok(Value::Object(mut settings)) = serde_json::to_value(options) else { return Map::new() };
    settings.retain(|_, value| !value.is_null());
    settings
}
