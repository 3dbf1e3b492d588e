//! A directory of the test's own, removed with it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

pub struct StateDir(PathBuf);

impl StateDir {
    pub fn new() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        StateDir(std::env::temp_dir().join(format!("nlb-state-{}-{number}", std::process::id())))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for StateDir {
    fn drop(&mut self) {
        // The directory does not exist if nothing was written.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}
