//! Finds the tools that turn Rust into BPF: a compiler that has a `core` for the BPF target, and bpf-linker.
//!
//! Shared by `cargo xtask setup`, which installs what is missing, and nlb-userspace/build.rs, which uses it,
//! so that both always mean the same tools. Standard library only, since a build script includes it.

use std::env;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

pub const TARGET: &str = "bpfel-unknown-none";

/// Names a compiler to use in place of the one that is found.
pub const RUSTC_VAR: &str = "NLB_BPF_RUSTC";
/// Names a bpf-linker to use in place of the one that is found.
pub const LINKER_VAR: &str = "NLB_BPF_LINKER";

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    pub rustc: PathBuf,
    pub version: String,
    /// Major version of its LLVM. The linker reads its bitcode, so it has to be built on the same one.
    pub llvm: u32,
    pub core: Core,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Core {
    /// Comes with a compiled `core` for the target.
    Prebuilt,
    /// Comes with the sources of `core`, which cargo has to build first (`-Zbuild-std`).
    Source,
}

/// The first compiler that serves: the one named by `NLB_BPF_RUSTC`, the active toolchain, any other
/// toolchain of rustup, the distribution's.
pub fn find_compiler() -> Result<Compiler, String> {
    if let Some(named) = env::var_os(RUSTC_VAR) {
        return probe(Path::new(&named)).map_err(|why| format!("{RUSTC_VAR}={}: {why}", named.display()));
    }
    let mut tried = String::new();
    for rustc in candidates() {
        match probe(&rustc) {
            Ok(compiler) => return Ok(compiler),
            Err(why) => tried += &format!("\n  {}: {why}", rustc.display()),
        }
    }
    Err(format!("no Rust compiler here has a core library for {TARGET}; tried:{tried}"))
}

/// The linker named by `NLB_BPF_LINKER`, else the one that setup installed, else the one on the PATH.
pub fn find_linker(workspace: &Path) -> Result<PathBuf, String> {
    if let Some(named) = env::var_os(LINKER_VAR) {
        let named = PathBuf::from(named);
        return if named.is_file() {
            Ok(named)
        } else {
            Err(format!("{LINKER_VAR}={}: there is no such file", named.display()))
        };
    }
    let installed = tools_dir(workspace).join("bin/bpf-linker");
    if installed.is_file() {
        return Ok(installed);
    }
    find_program("bpf-linker")
        .ok_or_else(|| format!("bpf-linker is neither {} nor on the PATH", installed.display()))
}

/// Where setup installs tools: always in the workspace, also when `CARGO_TARGET_DIR` points elsewhere.
pub fn tools_dir(workspace: &Path) -> PathBuf {
    workspace.join("target/tools")
}

pub fn find_program(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

fn candidates() -> Vec<PathBuf> {
    let mut found = Vec::new();
    if let Ok(sysroot) = ask(env::var_os("RUSTC").unwrap_or("rustc".into()), &["--print", "sysroot"]) {
        found.push(Path::new(sysroot.trim()).join("bin/rustc"));
    }
    let rustup = env::var_os("RUSTUP_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".rustup")));
    if let Some(toolchains) = rustup.and_then(|dir| dir.join("toolchains").read_dir().ok()) {
        let mut others: Vec<_> = toolchains.flatten().map(|entry| entry.path().join("bin/rustc")).collect();
        others.sort();
        found.extend(others);
    }
    found.push("/usr/bin/rustc".into());
    found.retain(|rustc| rustc.is_file());
    let mut seen = Vec::new();
    found.retain(|rustc| {
        !seen.contains(rustc) && {
            seen.push(rustc.clone());
            true
        }
    });
    found
}

/// Whether a compiler can build for BPF. Its own sysroot decides: a `core` of one version does not compile
/// with another.
fn probe(rustc: &Path) -> Result<Compiler, String> {
    let sysroot = ask(rustc, &["--print", "sysroot"])?;
    let rustlib = Path::new(sysroot.trim()).join("lib/rustlib");
    let core = if rustlib.join(TARGET).join("lib").is_dir() {
        Core::Prebuilt
    } else if rustlib.join("src/rust/library/core").is_dir() {
        Core::Source
    } else {
        return Err(format!("has neither {TARGET} nor rust-src"));
    };
    let about = ask(rustc, &["-vV"])?;
    let field = |name: &str| about.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    let version = field("release:").ok_or("does not report its version")?.to_owned();
    let oldest = env!("CARGO_PKG_RUST_VERSION");
    if major_minor(&version) < major_minor(oldest) {
        return Err(format!("is {version}; at least {oldest} is needed"));
    }
    let llvm = field("LLVM version:")
        .and_then(|version| version.split('.').next()?.parse().ok())
        .ok_or("does not report its LLVM version")?;
    Ok(Compiler { rustc: rustc.to_owned(), version, llvm, core })
}

fn major_minor(version: &str) -> Vec<u32> {
    version.split('.').take(2).map_while(|part| part.parse().ok()).collect()
}

fn ask(program: impl AsRef<OsStr>, args: &[&str]) -> Result<String, String> {
    let output = Command::new(program.as_ref()).args(args).output().map_err(|error| error.to_string())?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).trim().to_owned());
    }
    String::from_utf8(output.stdout).map_err(|error| error.to_string())
}
