//! Compiles the XDP programs, which are embedded in the daemon.

use std::process::exit;

#[path = "../xtask/src/bpf_build.rs"]
mod bpf_build;

fn main() {
    if let Err(why) = bpf_build::build("nlb-ebpf", &["nlb-ebpf", "nlb-common"], "nlb.bpf.o") {
        eprintln!("\ncannot build the XDP programs: {why}");
        exit(1);
    }
}
