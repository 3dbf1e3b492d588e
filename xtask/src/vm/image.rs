//! The root file system of a virtual machine, as archives that the kernel unpacks into memory at boot.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::copy;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use crate::needs;

const INIT: &str = include_str!("init.sh");

/// Programs that the tests start. Those of these names in busybox lack functions.
const TOOLS: &[&str] = &["ethtool", "ip", "ipvsadm", "nsenter", "setpriv"];

/// Makes the archive for one run of a program: the kernel's base, and the programs with their libraries.
pub fn pack(kernel: &Kernel, program: &Path, arguments: &[String], others: &[PathBuf]) -> Result<PathBuf> {
    let found = |file: &Path| file.canonicalize().with_context(|| format!("no program {}", file.display()));
    let program = found(program)?;
    let dir = kernel.dir().join("run");
    let root = dir.join("root");
    if dir.exists() {
        fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    fs::create_dir_all(root.join("job/bin"))?;

    let mut files = BTreeSet::from([program.clone()]);
    for other in others {
        files.insert(found(other)?);
    }
    for file in files.clone() {
        files.extend(libraries(&file)?);
    }
    for name in TOOLS {
        let tool = needs::find_installed(name)
            .with_context(|| format!("{name} is missing; `cargo xtask setup` installs it"))?;
        files.extend(libraries(&tool)?);
        fs::copy(&tool, root.join("job/bin").join(name))?;
    }
    for file in &files {
        let place = root.join(file.strip_prefix("/").unwrap_or(file));
        fs::create_dir_all(place.parent().expect("below root"))?;
        fs::copy(file, &place).with_context(|| format!("copying {}", file.display()))?;
    }
    let mut command = quoted(&program.to_string_lossy());
    for argument in arguments {
        command += " ";
        command += &quoted(argument);
    }
    fs::write(root.join("job/run"), command + "\n")?;
    fs::create_dir(root.join("etc"))?;
    fs::write(root.join("init"), INIT)?;
    make_executable(&root.join("init"))?;

    let own = dir.join("own.cpio");
    archive(&kernel.busybox(), &root, &own)?;
    fs::remove_dir_all(&root)?;
    // The kernel unpacks consecutive archives on top of each other.
    let whole = dir.join("initrd");
    let mut output = File::create(&whole).with_context(|| format!("creating {}", whole.display()))?;
    for part in [&kernel.base(), &own] {
        copy(&mut File::open(part).with_context(|| format!("opening {}", part.display()))?, &mut output)?;
    }
    fs::remove_file(own)?;
    Ok(whole)
}

/// Makes an archive of a directory, in the format that the kernel unpacks.
pub fn archive(busybox: &Path, root: &Path, file: &Path) -> Result<()> {
    const MAKE: &str = r#""$0" find . | "$0" cpio -o -H newc"#;
    let output = File::create(file).with_context(|| format!("creating {}", file.display()))?;
    let mut shell = Command::new("/bin/sh");
    shell.current_dir(root).args(["-c", MAKE]).arg(busybox).stdout(output);
    let done = shell.output().context("starting /bin/sh")?;
    ensure!(
        done.status.success(),
        "archiving {} failed: {}",
        root.display(),
        String::from_utf8_lossy(&done.stderr).trim()
    );
    Ok(())
}

/// The shared libraries of a program; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>> {
    let output = Command::new("ldd").arg(program).output().context("ldd does not start")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(!text.contains("not found"), "{} lacks libraries:\n{text}", program.display());
    Ok(text.split_whitespace().filter(|word| word.starts_with('/')).map(PathBuf::from).collect())
}

fn quoted(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn make_executable(file: &Path) -> Result<()> {
    use std::os::unix::fs::PermissionsExt;
    Ok(fs::set_permissions(file, fs::Permissions::from_mode(0o755))?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quoted_words_reach_a_program_as_they_are() {
        for word in ["plain", "", "two words", "it's", "$HOME `id` \"x\" \\ *"] {
            let script = format!("printf %s {}", quoted(word));
            let output = Command::new("/bin/sh").args(["-c", &script]).output().expect("a shell");
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn a_program_comes_with_its_libraries() -> Result<()> {
        let own = std::env::current_exe()?;
        let found = libraries(&own)?;
        assert!(found.iter().any(|file| file.to_string_lossy().contains("libc.so")), "{found:?}");
        Ok(())
    }
}
