//! The file with the figures of a run, a section for each part, and changes since another run.

use std::ffi::OsString;
use std::fs;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value};

#[derive(clap::Args)]
pub struct Files {
    /// The file to write the figures to; sections of other parts stay
    #[arg(long, default_value = "bench/results.json")]
    results: PathBuf,
    /// A file of an earlier run, to show changes that are larger than the noise
    #[arg(long)]
    compare: Option<PathBuf>,
}

impl Files {
    /// These files as options of the command.
    pub fn options(&self) -> Vec<OsString> {
        let mut options = vec!["--results".into(), self.results.clone().into()];
        options.extend(self.compare.iter().flat_map(|file| ["--compare".into(), file.clone().into()]));
        options
    }

    /// The figures of a part in the file to compare with, if one is given.
    pub fn before<T: DeserializeOwned>(&self, part: &str) -> Result<Option<Vec<T>>> {
        self.compare.as_deref().map_or(Ok(None), |file| section(file, part))
    }

    pub fn write<T: Serialize>(&self, part: &str, figures: &[T]) -> Result<()> {
        let file = &self.results;
        if let Some(dir) = file.parent() {
            fs::create_dir_all(dir)?;
        }
        let mut parts = if file.exists() { read(file)? } else { Map::new() };
        parts.insert(part.to_owned(), serde_json::to_value(figures)?);
        fs::write(file, serde_json::to_string_pretty(&parts)? + "\n")
            .with_context(|| format!("writing {}", file.display()))
    }
}

/// The figures of a part in a file, if it has that section.
pub fn section<T: DeserializeOwned>(file: &Path, part: &str) -> Result<Option<Vec<T>>> {
    let Some(figures) = read(file)?.remove(part) else { return Ok(None) };
    let figures = serde_json::from_value(figures);
    figures.map(Some).with_context(|| format!("{}: {part}", file.display()))
}

fn read(file: &Path) -> Result<Map<String, Value>> {
    let text = fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    serde_json::from_str(&text).with_context(|| format!("{} is no file of results", file.display()))
}

/// Describes a change, if the two ranges do not overlap.
pub fn change(now: (f64, RangeInclusive<f64>), then: (f64, RangeInclusive<f64>)) -> String {
    if now.1.start() <= then.1.end() && then.1.start() <= now.1.end() {
        return String::new();
    }
    format!("  {:+.0} %", 100.0 * (now.0 / then.0 - 1.0))
}
