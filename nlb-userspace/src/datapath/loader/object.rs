//! The compiled eBPF object, and its programs by name.

use anyhow::anyhow;
use aya::Ebpf;
use aya::programs::Xdp;

/// The programs, as `build.rs` compiled them.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/nlb.bpf.o"));

pub(super) const JIFFIES: &str = "nlb_jiffies";

pub(super) fn program<'a>(bpf: &'a mut Ebpf, name: &str) -> anyhow::Result<&'a mut Xdp> {
    Ok(bpf.program_mut(name).ok_or_else(|| missing(name))?.try_into()?)
}

pub(super) fn missing(program: &str) -> anyhow::Error {
    anyhow!("the eBPF object has no program {program}")
}
