//! Which Debian packages each verb of `cargo xtask` needs.
//!
//! A C compiler is not among them: cargo has used it to link this program.

use std::path::{Path, PathBuf};

use crate::bpf_toolchain::find_program;

/// The verbs, as far as they differ in the packages that they need.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Build,
    Run,
    Test,
    FuzzParsers,
    FuzzPackets,
    Bench,
    /// The part of `bench` that measures other balancers, too.
    BenchEndToEnd,
    Verify,
    /// `verify` and `vm` of another kernel.
    Machine,
    Image,
    /// Clients in other languages.
    Python,
    Go,
}

use Verb::{Bench, BenchEndToEnd, FuzzPackets, FuzzParsers, Go, Image, Machine, Python, Run, Test, Verify};

impl Verb {
    /// Whether it builds the BPF programs.
    pub fn builds_bpf(self) -> bool {
        !matches!(self, FuzzParsers | Machine | Python | Go)
    }
}

/// A package of Debian's.
pub struct Package {
    pub name: &'static str,
    /// A program, or the path of another file, that shows that the package is installed.
    pub shown_by: &'static str,
    verbs: &'static [Verb],
}

impl Package {
    const fn new(name: &'static str, shown_by: &'static str, verbs: &'static [Verb]) -> Package {
        Package { name, shown_by, verbs }
    }

    pub fn is_installed(&self) -> bool {
        if self.shown_by.starts_with('/') {
            return Path::new(self.shown_by).exists();
        }
        find_installed(self.shown_by).is_some()
    }
}

/// Verbs that make network namespaces, and start programs in them or in virtual machines.
const LAB: &[Verb] = &[Run, Test, FuzzPackets, Bench, BenchEndToEnd, Verify, Machine];
const PYTHON: &[Verb] = &[Test, Python];
const GO: &[Verb] = &[Test, Go];

const PACKAGES: &[Package] = &[
    Package::new("iproute2", "ip", LAB),
    Package::new("ethtool", "ethtool", LAB),
    Package::new("util-linux", "nsenter", LAB),
    Package::new("util-linux", "setpriv", LAB),
    Package::new("iputils-ping", "ping", &[Test]),
    Package::new("curl", "curl", &[Test]),
    Package::new("iperf3", "iperf3", &[Test]),
    Package::new("nginx-light", "nginx", &[Test, BenchEndToEnd]),
    Package::new("docker.io", "dockerd", &[Test]),
    Package::new("docker.io", "docker", &[Test, Image]),
    // For tidy, which lists the tracked files.
    Package::new("git", "git", &[Test]),
    // libFuzzer is compiled from source.
    Package::new("g++", "g++", &[Test, FuzzParsers]),
    // Clients in other languages: the compiler of the contract, its plugins, and the libraries of generated
    // clients.
    Package::new("protobuf-compiler", "protoc", &[Test, Python, Go]),
    Package::new("protobuf-compiler-grpc", "grpc_python_plugin", PYTHON),
    Package::new("python3-grpcio", "/usr/lib/python3/dist-packages/grpc", PYTHON),
    Package::new("python3-protobuf", "/usr/lib/python3/dist-packages/google/protobuf", PYTHON),
    Package::new("golang-go", "go", GO),
    Package::new("protoc-gen-go", "protoc-gen-go", GO),
    Package::new("protoc-gen-go-grpc", "protoc-gen-go-grpc", GO),
    Package::new("golang-google-grpc-dev", "/usr/share/gocode/src/google.golang.org/grpc", GO),
    // gRPC's other choice, version 1.3, cannot encode what protoc-gen-go generates, and lacks this file.
    Package::new(
        "golang-github-golang-protobuf-1-5-dev",
        "/usr/share/gocode/src/github.com/golang/protobuf/proto/wire.go",
        GO,
    ),
    Package::new("golang-google-protobuf-dev", "/usr/share/gocode/src/google.golang.org/protobuf", GO),
    // Balancers that the NLB is measured beside.
    Package::new("haproxy", "haproxy", &[BenchEndToEnd]),
    Package::new("nftables", "nft", &[BenchEndToEnd]),
    Package::new("libnginx-mod-stream", "/usr/lib/nginx/modules/ngx_stream_module.so", &[BenchEndToEnd]),
    // Virtual machines with other kernels, and the kernel's balancer as a peer in them.
    Package::new("qemu-system-x86", "qemu-system-x86_64", &[Machine]),
    Package::new("ipvsadm", "ipvsadm", &[Machine]),
];

pub fn packages(verb: Verb) -> impl Iterator<Item = &'static Package> {
    PACKAGES.iter().filter(move |package| package.verbs.contains(&verb))
}

/// Programs of administrators are in directories that a user's PATH may lack.
pub fn find_installed(program: &str) -> Option<PathBuf> {
    let sbin = ["/usr/sbin", "/sbin"]
        .map(|dir| Path::new(dir).join(program))
        .into_iter()
        .find(|file| file.is_file());
    find_program(program).or(sbin)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(verb: Verb) -> Vec<&'static str> {
        let mut names: Vec<_> = packages(verb).map(|package| package.name).collect();
        names.dedup();
        names
    }

    #[test]
    fn the_demo_needs_no_other_language_and_no_container_engine() {
        assert_eq!(names(Verb::Build), [""; 0]);
        assert_eq!(names(Verb::Run), ["iproute2", "ethtool", "util-linux"]);
    }

    #[test]
    fn tests_need_what_the_demo_images_fuzzers_and_clients_need() {
        for verb in [Run, FuzzParsers, FuzzPackets, Image, Python, Go] {
            for name in names(verb) {
                assert!(names(Test).contains(&name), "{name}, which {verb:?} needs");
            }
        }
    }

    #[test]
    fn the_manual_lists_every_package() {
        let manual = include_str!("../../docs/testing.md");
        for Package { name, .. } in PACKAGES {
            assert!(manual.contains(name), "docs/testing.md does not name {name}");
        }
    }
}
