//! Packages of Debian and related distributions, which apt fetches and verifies, and which are unpacked
//! without being installed.
//!
//! apt gets sources and state of its own in one directory; this machine's configuration stays unchanged.

use std::fmt::Display;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::command;

pub struct Archive {
    dir: PathBuf,
}

impl Archive {
    /// Opens an archive's suites, verified by the keys in `keyring`. The directory is created.
    pub fn open(dir: &Path, keyring: &Path, suites: &[String]) -> Result<Archive> {
        ensure!(
            keyring.is_file(),
            "{} is missing, with which apt verifies packages; install debian-archive-keyring",
            keyring.display()
        );
        let archive = Archive { dir: dir.to_owned() };
        for part in ["apt/lists/partial", "apt/archives/partial"] {
            fs::create_dir_all(dir.join(part))
                .with_context(|| format!("creating {part} in {}", dir.display()))?;
        }
        let sources: Vec<_> = suites
            .iter()
            .map(|suite| format!("deb [signed-by={}] {suite} main\n", keyring.display()))
            .collect();
        fs::write(dir.join("apt/sources.list"), sources.concat())?;
        fs::write(dir.join("apt/status"), "")?;
        command::run_quietly("apt-get update", archive.apt("apt-get").arg("update"))?;
        Ok(archive)
    }

    /// The first dependency of a package's newest version.
    pub fn first_dependency(&self, package: &str) -> Result<String> {
        let shown = output(self.apt("apt-cache").args(["show", "--no-all-versions", package]))?;
        let depends = shown.lines().find_map(|line| line.strip_prefix("Depends: "));
        let first = depends.and_then(|depends| depends.split([' ', ',']).next());
        first.map(str::to_owned).with_context(|| format!("{package} depends on nothing:\n{shown}"))
    }

    pub fn download(&self, packages: &[&str]) -> Result<()> {
        let what = format!("apt-get download {}", packages.join(" "));
        command::run_quietly(&what, self.apt("apt-get").arg("download").args(packages))
    }

    /// Unpacks all downloaded packages.
    pub fn unpack(&self, into: &Path) -> Result<()> {
        fs::create_dir_all(into).with_context(|| format!("creating {}", into.display()))?;
        for file in entries(&self.dir)? {
            if file.extension().is_some_and(|extension| extension == "deb") {
                output(Command::new("dpkg-deb").arg("--extract").args([&file, into]))?;
            }
        }
        Ok(())
    }

    fn apt(&self, program: &str) -> Command {
        let own = self.dir.join("apt");
        let mut apt = Command::new(program);
        apt.current_dir(&self.dir);
        let mut set = |option: &str, value: &dyn Display| {
            apt.arg("-o").arg(format!("{option}={value}"));
        };
        set("Dir::Etc::SourceList", &own.join("sources.list").display());
        set("Dir::State", &own.display());
        set("Dir::State::status", &own.join("status").display());
        set("Dir::Cache", &own.display());
        for parts in ["SourceParts", "Preferences", "PreferencesParts"] {
            set(&format!("Dir::Etc::{parts}"), &"/dev/null");
        }
        set("Acquire::Languages", &"none");
        // As root, apt would otherwise download as a user without write access to this directory.
        set("APT::Sandbox::User", &"");
        apt
    }
}

pub fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot start {command:?}"))?;
    ensure!(
        output.status.success(),
        "{command:?} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(dir).with_context(|| format!("listing {}", dir.display()))?;
    entries.map(|entry| Ok(entry?.path())).collect()
}
