//! Builds the programs that the balancer is measured against.

use std::process::exit;

#[path = "../xtask/src/bpf_build.rs"]
mod bpf_build;

fn main() {
    if let Err(why) = bpf_build::build("nlb-floors", &["tests/floors"], "floors.bpf.o") {
        eprintln!("\ncannot build the floors: {why}");
        exit(1);
    }
}
