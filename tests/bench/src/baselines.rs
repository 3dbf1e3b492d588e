//! Loads the baselines ([`tests/bench/baselines`](../baselines/src/main.rs)) and their driver.

use anyhow::{Context, Result};
use aya::maps::Map;
use aya::programs::Xdp;
use aya::{Ebpf, EbpfLoader};

static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/baselines.bpf.o"));

/// The object of all baselines, none of which is loaded yet.
pub fn open(loader: &mut EbpfLoader) -> Result<Ebpf> {
    Ok(loader.load(OBJECT)?)
}

pub fn program<'a>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(bpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// Takes a map out of the object. Programs that refer to the map have to be loaded before.
pub fn map(bpf: &mut Ebpf, name: &str) -> Result<Map> {
    bpf.take_map(name).with_context(|| format!("no map {name}"))
}

/// The beginning of a frame as the words that programs write.
pub fn words<const N: usize>(frame: &[u8]) -> [u64; N] {
    std::array::from_fn(|i| u64::from_ne_bytes(frame[8 * i..][..8].try_into().expect("eight bytes")))
}
