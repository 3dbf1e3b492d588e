//! The map of the programs that the balancer goes on in.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};

/// By `nlb_common::abi::Stage`. The kernel forgets the programs when nobody holds their map open.
pub type Stages = ProgramArray<MapData>;

/// Takes a map of programs out of the object.
pub fn take(bpf: &mut Ebpf, name: &str) -> anyhow::Result<Stages> {
    let map = bpf.take_map(name).with_context(|| format!("the eBPF object has no map {name}"))?;
    Ok(map.try_into()?)
}
