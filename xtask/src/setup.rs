//! What verbs do first: from a fresh Debian to one that has what the verb needs. `cargo xtask setup` installs
//! what `cargo xtask test` needs.
//!
//! Every step looks first and installs only what is missing, so that running it again costs a moment.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail};

use crate::bpf_toolchain::{self, Compiler, Core, LINKER_VAR, RUSTC_VAR, find_program};
use crate::needs::{self, Verb};
use crate::tools::Tool;
use crate::{apt, command, workspace};

const LINKER_VERSION: &str = "0.13.0";

/// Installs what everything needs that `cargo xtask test` does.
pub fn setup() -> Result<()> {
    install_for(Verb::Test)
}

/// Installs what this verb needs and is missing.
pub fn install_for(verb: Verb) -> Result<()> {
    eprintln!("Setting up");
    install_packages(verb)?;
    let mut names: Vec<_> = needs::packages(verb).map(|package| package.name).collect();
    names.dedup();
    if !names.is_empty() {
        eprintln!("  Debian packages: {}", names.join(", "));
    }
    if verb.builds_bpf() {
        let compiler = compiler()?;
        linker(&compiler)?;
    }
    Ok(())
}

/// Prints nothing if all are installed.
pub fn install_packages(verb: Verb) -> Result<()> {
    let missing = || needs::packages(verb).filter(|package| !package.is_installed());
    let mut packages: Vec<_> = missing().map(|package| package.name).collect();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages)?;
        if let Some(package) = missing().next() {
            bail!(
                "{} is still missing although {} is installed; is its directory on the PATH?",
                package.shown_by,
                package.name
            );
        }
    }
    Ok(())
}

fn compiler() -> Result<Compiler> {
    let compiler = match bpf_toolchain::find_compiler() {
        Ok(found) => found,
        Err(why) if env::var_os(RUSTC_VAR).is_some() => return Err(anyhow!(why)),
        Err(_) => install_compiler()?,
    };
    let core = match compiler.core {
        Core::Prebuilt => "prebuilt core",
        Core::Source => "core built from rust-src",
    };
    eprintln!(
        "  BPF compiler: {}, Rust {}, LLVM {}, {core}",
        compiler.rustc.display(),
        compiler.version,
        compiler.llvm
    );
    Ok(compiler)
}

/// Debian's compiler brings a prebuilt `core` for BPF. Where Debian has none that is recent enough, rustup
/// may add the sources of `core` to the active toolchain.
fn install_compiler() -> Result<Compiler> {
    let debian = apt::install(&["rustc-web", "libstd-rust-web-dev-bpf"])
        .and_then(|()| bpf_toolchain::find_compiler().map_err(|why| anyhow!(why)));
    let Err(debian) = debian else { return debian };
    let rustup = find_program("rustup").context("rustup is not installed either").and_then(|rustup| {
        let mut command = Command::new(rustup);
        command.args(["component", "add", "rust-src"]);
        command::run_quietly("rustup component add rust-src", &mut command)?;
        bpf_toolchain::find_compiler().map_err(|why| anyhow!(why))
    });
    rustup.map_err(|rustup| {
        anyhow!(
            "no compiler for BPF could be installed.\n\
             From Debian: {debian:#}\n\
             From rustup: {rustup:#}\n\
             Name one that has rust-src or a core for {}: {RUSTC_VAR}=/path/to/rustc",
            bpf_toolchain::TARGET
        )
    })
}

fn linker(compiler: &Compiler) -> Result<()> {
    let tool = Tool {
        name: "bpf-linker",
        version: LINKER_VERSION,
        // It reads the compiler's bitcode, so it needs the compiler's LLVM.
        feature: Some(format!("llvm-{}", compiler.llvm)),
    };
    if env::var_os(LINKER_VAR).is_none() && !tool.is_current() {
        tool.install(&[("LLVM_PREFIX", llvm_prefix(compiler)?)]).with_context(|| {
            format!("bpf-linker cannot be built; name one that you have: {LINKER_VAR}=/path/to/bpf-linker")
        })?;
    }
    let linker = bpf_toolchain::find_linker(workspace::root()).map_err(|why| anyhow!(why))?;
    eprintln!("  BPF linker: {}", linker.display());
    Ok(())
}

fn llvm_prefix(compiler: &Compiler) -> Result<PathBuf> {
    if let Some(named) = env::var_os("LLVM_PREFIX") {
        return Ok(named.into());
    }
    let prefix = PathBuf::from(format!("/usr/lib/llvm-{}", compiler.llvm));
    if !prefix.join("include/llvm-c").is_dir() {
        apt::install(&[&format!("llvm-{}-dev", compiler.llvm)]).with_context(|| {
            format!(
                "{} uses LLVM {n}, and bpf-linker needs the same; if your Debian has no llvm-{n}-dev, \
                 set LLVM_PREFIX to an LLVM {n} or {RUSTC_VAR} to another compiler",
                compiler.rustc.display(),
                n = compiler.llvm
            )
        })?;
    }
    Ok(prefix)
}
