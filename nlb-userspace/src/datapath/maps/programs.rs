//! The map of the programs that the balancer goes on in.

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};

use super::access;

/// By `nlb_common::verdict::Program`. The kernel forgets the programs when nobody holds their map open.
pub type ProgramArrays = ProgramArray<MapData>;

/// Takes a map of programs out of the object.
pub fn take(object: &mut Ebpf, name: &'static str) -> anyhow::Result<ProgramArrays> {
    Ok(access::take(object, name)?.try_into()?)
}
