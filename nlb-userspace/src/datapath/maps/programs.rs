//! The maps of programs for tail calls.

use aya::Ebpf;
use aya::maps::{MapData, ProgramArray};

use super::access;

/// Indexed by `nlb_common::verdict::Program`. The kernel empties a program array when no process holds it
/// open.
pub(crate) type ProgramArrays = ProgramArray<MapData>;

/// Takes a program array out of the object.
pub(crate) fn take(object: &mut Ebpf, name: &'static str) -> anyhow::Result<ProgramArrays> {
    Ok(access::take(object, name)?.try_into()?)
}
