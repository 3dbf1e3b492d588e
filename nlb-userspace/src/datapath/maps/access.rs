//! Takes maps out of a loaded object, and converts the kernel's errors.

use anyhow::Context;
use aya::Ebpf;
use aya::maps::Map;

use crate::datapath::errors::error_chain;
use crate::reconcile::change::MapError;

pub(crate) fn refused<E: std::error::Error>(map: &'static str) -> impl Fn(E) -> MapError {
    move |error| MapError::Kernel { map, reason: error_chain(&error) }
}

pub(crate) fn take(bpf: &mut Ebpf, name: &'static str) -> anyhow::Result<Map> {
    bpf.take_map(name).with_context(|| format!("the eBPF object has no map {name}"))
}
