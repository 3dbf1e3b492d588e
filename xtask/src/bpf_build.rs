//! Compiles a crate of programs for BPF and puts the object into the `OUT_DIR` of the calling build script,
//! where `aya::include_bytes_aligned!` finds it.
//!
//! The programs need a compiler invocation of their own: another target, another profile, and a linker that
//! emits BPF. nlb-userspace/build.rs and tests/build.rs include this file, which uses the standard library
//! only, as do the files that it includes.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

#[path = "bpf_toolchain.rs"]
mod bpf_toolchain;

use bpf_toolchain::{Compiler, Core, LINKER_VAR, RUSTC_VAR, TARGET};

const PROFILE: &str = "bpf";
const FLAGS: &[&str] = &[
    "-Clink-arg=--btf",
    // Compare-and-exchange, which the flow table requires; Linux 5.12 and later.
    "-Ctarget-cpu=v3",
    // The kernel's BPF loads words from any address on every architecture that matters; without this, LLVM
    // reads packet headers byte by byte.
    "-Clink-arg=--cpu-features=+allows-misaligned-mem-access",
];

/// Builds the only binary of `package`, which has the package's name, from `directories`, into the file
/// `object`.
pub fn build(package: &str, directories: &[&str], object: &str) -> Result<(), String> {
    let manifest_dir = variable("CARGO_MANIFEST_DIR")?;
    let mut above = manifest_dir.ancestors();
    let workspace = above
        .find(|directory| directory.join("Cargo.lock").exists())
        .ok_or("this crate is not in its workspace")?;
    let missing = |why| format!("{why}\n\n`cargo xtask setup` installs what is missing.");
    let compiler = bpf_toolchain::find_compiler().map_err(missing)?;
    let linker = bpf_toolchain::find_linker(workspace).map_err(missing)?;
    watch(workspace, directories, &compiler, &linker);

    let target_dir = workspace.join("target/ebpf");
    let status = cargo(package, workspace, &target_dir, &compiler, &linker)?
        .status()
        .map_err(|error| format!("cargo does not start: {error}"))?;
    if !status.success() {
        return Err(format!(
            "cargo build of {package} failed, see above (compiler {})",
            compiler.rustc.display()
        ));
    }
    let built = target_dir.join(TARGET).join(PROFILE).join(package);
    fs::copy(&built, variable("OUT_DIR")?.join(object))
        .map(drop)
        .map_err(|error| format!("copying {}: {error}", built.display()))
}

fn cargo(
    package: &str,
    workspace: &Path,
    target_dir: &Path,
    compiler: &Compiler,
    linker: &Path,
) -> Result<Command, String> {
    let linker = linker.to_str().ok_or("the path of bpf-linker is not UTF-8")?;
    let mut rustflags = format!("-Clinker={linker}");
    for flag in FLAGS {
        rustflags += "\x1f";
        rustflags += flag;
    }
    let mut cargo = Command::new(variable("CARGO")?);
    cargo
        .current_dir(workspace)
        .args(["build", "--package", package, "--bin", package, "--profile", PROFILE, "--target", TARGET])
        .arg("--target-dir")
        .arg(target_dir)
        .env("RUSTC", &compiler.rustc)
        // aya-ebpf uses `asm!` for BPF, which is not stable yet.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags);
    // The outer cargo's wrappers (clippy, sccache) are for its own compiler, and its job server is for its
    // own processes.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER", "MAKEFLAGS", "CARGO_MAKEFLAGS"] {
        cargo.env_remove(name);
    }
    if compiler.core == Core::Source {
        cargo.arg("-Zbuild-std=core");
    }
    Ok(cargo)
}

fn watch(workspace: &Path, directories: &[&str], compiler: &Compiler, linker: &Path) {
    const COMMON: [&str; 4] =
        ["Cargo.toml", "Cargo.lock", "xtask/src/bpf_build.rs", "xtask/src/bpf_toolchain.rs"];
    let files = directories.iter().chain(&COMMON).map(|source| workspace.join(source));
    for file in files.chain([compiler.rustc.clone(), linker.to_owned()]) {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    println!("cargo::rerun-if-changed=build.rs");
    for name in [RUSTC_VAR, LINKER_VAR] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

fn variable(name: &str) -> Result<PathBuf, String> {
    env::var_os(name)
        .map(PathBuf::from)
        .ok_or_else(|| format!("{name} is not set; cargo sets it for build scripts"))
}
