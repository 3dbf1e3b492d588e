//! `cargo xtask setup`: from a fresh Debian to one that builds and tests this repository.
//!
//! Every step looks first and installs only what is missing, so that running it again costs a moment.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::{env, fs};

use anyhow::{Context, Result, anyhow, bail};

use crate::bpf_toolchain::{self, Compiler, Core, LINKER_VAR, RUSTC_VAR, find_program};
use crate::{apt, command, workspace};

const LINKER_VERSION: &str = "0.13.0";

/// Programs that building, the demo and the tests start, and the Debian packages they come in.
const PROGRAMS: &[(&str, &str)] = &[
    ("curl", "curl"),
    ("dockerd", "docker.io"),
    ("ethtool", "ethtool"),
    // libFuzzer is compiled from source.
    ("g++", "g++"),
    ("go", "golang-go"),
    ("grpc_python_plugin", "protobuf-compiler-grpc"),
    ("ip", "iproute2"),
    ("iperf3", "iperf3"),
    ("nginx", "nginx-light"),
    ("nsenter", "util-linux"),
    ("ping", "iputils-ping"),
    ("protoc", "protobuf-compiler"),
    ("protoc-gen-go", "protoc-gen-go"),
    ("protoc-gen-go-grpc", "protoc-gen-go-grpc"),
    ("setpriv", "util-linux"),
];

/// What generated clients are built on, where Debian puts it, and the packages.
const LIBRARIES: &[(&str, &str)] = &[
    ("/usr/share/gocode/src/google.golang.org/grpc", "golang-google-grpc-dev"),
    ("/usr/share/gocode/src/google.golang.org/protobuf", "golang-google-protobuf-dev"),
    ("/usr/lib/python3/dist-packages/grpc", "python3-grpcio"),
    ("/usr/lib/python3/dist-packages/google/protobuf", "python3-protobuf"),
];

/// Other balancers, which only the benchmark needs that compares them.
const BALANCERS: &[(&str, &str)] = &[("haproxy", "haproxy"), ("nft", "nftables")];
const BALANCERS_MODULES: &[(&str, &str)] =
    &[("/usr/lib/nginx/modules/ngx_stream_module.so", "libnginx-mod-stream")];

pub fn setup() -> Result<()> {
    eprintln!("Setting up");
    programs()?;
    let compiler = compiler()?;
    linker(&compiler)
}

pub fn programs() -> Result<()> {
    install_missing(PROGRAMS, LIBRARIES)
}

pub fn balancers() -> Result<()> {
    install_missing(BALANCERS, BALANCERS_MODULES)
}

fn install_missing(programs: &[(&str, &str)], files: &[(&str, &str)]) -> Result<()> {
    let missing_files = || files.iter().filter(|(path, _)| !Path::new(path).exists());
    let missing_programs = || programs.iter().filter(|(program, _)| find_installed(program).is_none());
    let missing = || missing_programs().chain(missing_files());
    let mut packages: Vec<_> = missing().map(|(_, package)| *package).collect();
    packages.dedup();
    if !packages.is_empty() {
        apt::install(&packages)?;
        if let Some((program, package)) = missing().next() {
            bail!(
                "{program} is still missing although {package} is installed; is its directory on the PATH?"
            );
        }
    }
    eprintln!("  programs: {}", programs.iter().map(|(program, _)| *program).collect::<Vec<_>>().join(", "));
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

/// Debian's compiler brings a prebuilt `core` for BPF. Where Debian has none that is recent enough, rustup may add
/// the sources of `core` to the active toolchain.
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
    if env::var_os(LINKER_VAR).is_none() && !linker_is_current(compiler) {
        install_linker(compiler)?;
    }
    let linker = bpf_toolchain::find_linker(workspace::root()).map_err(|why| anyhow!(why))?;
    eprintln!("  BPF linker: {}", linker.display());
    Ok(())
}

/// Whether the linker that setup installs is there, in this version and for the compiler's LLVM. Cargo keeps a record
/// of both.
fn linker_is_current(compiler: &Compiler) -> bool {
    let tools = bpf_toolchain::tools_dir(workspace::root());
    let record = fs::read_to_string(tools.join(".crates2.json")).unwrap_or_default();
    tools.join("bin/bpf-linker").is_file()
        && record.contains(&format!("\"bpf-linker {LINKER_VERSION} "))
        && record.contains(&format!("\"{}\"", llvm_feature(compiler)))
}

fn install_linker(compiler: &Compiler) -> Result<()> {
    let llvm = llvm_prefix(compiler)?;
    let mut cargo = workspace::cargo("install");
    cargo
        .args(["bpf-linker", "--version", LINKER_VERSION, "--locked", "--no-default-features"])
        .args(["--features", &llvm_feature(compiler), "--force", "--root"])
        .arg(bpf_toolchain::tools_dir(workspace::root()))
        .env("LLVM_PREFIX", llvm)
        // Of no use to anybody else's build.
        .env_remove("CARGO_TARGET_DIR");
    let what = format!("building bpf-linker {LINKER_VERSION} with LLVM {} (a minute or two)", compiler.llvm);
    command::run_quietly(&what, &mut cargo).with_context(|| {
        format!("bpf-linker cannot be built; name one that you have: {LINKER_VAR}=/path/to/bpf-linker")
    })
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

fn llvm_feature(compiler: &Compiler) -> String {
    format!("llvm-{}", compiler.llvm)
}

/// Administrators' programs are installed where a user's PATH may not lead.
pub fn find_installed(program: &str) -> Option<PathBuf> {
    let sbin = ["/usr/sbin", "/sbin"]
        .map(|dir| Path::new(dir).join(program))
        .into_iter()
        .find(|file| file.is_file());
    find_program(program).or(sbin)
}
