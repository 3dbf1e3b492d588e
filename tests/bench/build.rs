//! Builds the baselines, which are embedded in the benchmark.

use std::process::exit;

#[path = "../../xtask/src/bpf_build.rs"]
mod bpf_build;

fn main() {
    if let Err(why) = bpf_build::build("nlb-baselines", &["tests/bench/baselines"], "baselines.bpf.o") {
        eprintln!("\ncannot build the baselines: {why}");
        exit(1);
    }
}
