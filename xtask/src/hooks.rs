//! `cargo xtask hooks`: a git hook that runs before each commit what takes a second.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::workspace;

/// The line that distinguishes this hook from others.
const MARK: &str = "# Installed by `cargo xtask hooks`, which replaces it.";

const HOOK: &str = "\
#!/bin/sh
# Installed by `cargo xtask hooks`, which replaces it.
# `git commit --no-verify` commits without it.
set -e
cd \"$(git rev-parse --show-toplevel)\"
cargo xtask tidy
cargo fmt --all --check
";

pub fn hooks() -> Result<()> {
    let hook = hooks_dir(workspace::root())?.join("pre-commit");
    install(&hook)?;
    println!("{} runs `cargo xtask tidy` and `cargo fmt --all --check`", hook.display());
    Ok(())
}

/// Where git looks for hooks: core.hooksPath, else in the repository, which worktrees share.
fn hooks_dir(root: &Path) -> Result<PathBuf> {
    let output = Command::new("git")
        .current_dir(root)
        .args(["rev-parse", "--git-path", "hooks"])
        .output()
        .context("git does not start")?;
    if !output.status.success() {
        bail!("this is no git repository: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    let path = String::from_utf8(output.stdout).context("the hooks' path is not UTF-8")?;
    // Relative to where git ran.
    Ok(root.join(path.trim_end_matches('\n')))
}

fn install(hook: &Path) -> Result<()> {
    // Not `exists`: a dangling link belongs to somebody, too.
    if hook.symlink_metadata().is_ok() {
        let text = fs::read(hook).unwrap_or_default();
        if !String::from_utf8_lossy(&text).contains(MARK) {
            bail!(
                "there is another hook, which stays as it is: {}. Add these two lines to it:\n\
                 \n    cargo xtask tidy\n    cargo fmt --all --check",
                hook.display()
            );
        }
    }
    let dir = hook.parent().context("a hook lies in a directory")?;
    fs::create_dir_all(dir).with_context(|| format!("creating {}", dir.display()))?;
    fs::write(hook, HOOK).with_context(|| format!("writing {}", hook.display()))?;
    fs::set_permissions(hook, fs::Permissions::from_mode(0o755))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A git repository of its own, which is removed at the end.
    struct Repository(PathBuf);

    impl Repository {
        fn new(name: &str) -> Repository {
            let root = std::env::temp_dir().join(format!("xtask-{}-{name}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            let repository = Repository(root);
            repository.git(&["init", "--quiet"]);
            repository
        }

        fn git(&self, args: &[&str]) {
            assert!(Command::new("git").current_dir(&self.0).args(args).status().unwrap().success());
        }

        fn hook(&self) -> PathBuf {
            hooks_dir(&self.0).unwrap().join("pre-commit")
        }
    }

    impl Drop for Repository {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_hook_of_ours_is_installed_and_replaced() {
        let repository = Repository::new("ours");
        let hook = repository.hook();
        assert_eq!(hook, repository.0.join(".git/hooks/pre-commit"));
        install(&hook).unwrap();
        assert_eq!(hook.metadata().unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&hook, format!("#!/bin/sh\n{MARK}\nold\n")).unwrap();
        install(&hook).unwrap();
        assert_eq!(fs::read_to_string(&hook).unwrap(), HOOK);
    }

    #[test]
    fn a_foreign_hook_stays() {
        let repository = Repository::new("foreign");
        let hook = repository.hook();
        fs::create_dir_all(hook.parent().unwrap()).unwrap();
        fs::write(&hook, "#!/bin/sh\ntrue\n").unwrap();
        let refusal = install(&hook).unwrap_err().to_string();
        assert!(refusal.contains("cargo xtask tidy"), "{refusal}");
        assert_eq!(fs::read_to_string(&hook).unwrap(), "#!/bin/sh\ntrue\n");
    }

    #[test]
    fn hooks_go_where_git_looks_for_them() {
        let repository = Repository::new("path");
        repository.git(&["config", "core.hooksPath", ".githooks"]);
        assert_eq!(repository.hook(), repository.0.join(".githooks/pre-commit"));
    }

    #[test]
    fn the_hook_bears_its_mark() {
        assert!(HOOK.contains(MARK));
    }
}
