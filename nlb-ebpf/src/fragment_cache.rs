//! The path of first fragments, which the other fragments of a packet follow.

use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use nlb_common::abi::{Backend, FRAGMENT_ENTRIES, FragmentEntry, FragmentKey};
use nlb_common::net::Addr;

use crate::clock;

/// The entries of packets whose fragments may still come. A flood evicts the oldest.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { FRAGMENT_ENTRIES }> = LruHashMap::new();

/// The entry of the current fragment. It is not on the stack, of which steering uses most.
#[btf_map]
static FRAG_SCRATCH: PerCpuArray<Scratch, 1> = PerCpuArray::new();

#[repr(C)]
pub struct Scratch {
    pub key: FragmentKey,
    entry: FragmentEntry,
}

/// Stores where the current first fragment goes, and with which addresses.
#[inline(always)]
pub fn remember(backend_id: u16, backend: &Backend, service: u16, path: u8, to: (Addr, Addr), hash: u64) {
    let Some(scratch) = scratch() else { return };
    scratch.entry = FragmentEntry {
        src: to.0,
        dst: to.1,
        backend: backend_id,
        service,
        at: clock::now(),
        generation: backend.generation,
        path,
        hash,
    };
    store(scratch);
}

/// Stores that the current first fragment is in user space, or in the kernel's stack, where the program will
/// run on it again: the other fragments follow it there. That run stores where it really goes.
#[inline(always)]
pub fn remember_detour(path: u8) {
    let Some(scratch) = scratch() else { return };
    scratch.entry = FragmentEntry { at: clock::now(), path, ..FragmentEntry::NONE };
    store(scratch);
}

/// Removes the entry of the current fragment.
#[inline(always)]
pub fn forget() {
    let Some(scratch) = scratch() else { return };
    // By reference: a copy would be on the stack.
    let key = &scratch.key;
    let _ = FRAGMENTS.remove(key);
}

#[inline(always)]
fn store(scratch: &Scratch) {
    // By reference: a copy would be on the stack.
    let (key, entry) = (&scratch.key, &scratch.entry);
    // If the map is full the other fragments are dropped, and the sender retransmits.
    let _ = FRAGMENTS.insert(key, entry, 0);
}

#[inline(always)]
pub fn scratch() -> Option<&'static mut Scratch> {
    // SAFETY: this CPU's own copy, and an XDP program is not interrupted by another.
    FRAG_SCRATCH.get_ptr_mut(0).map(|scratch| unsafe { &mut *scratch })
}

/// The entry of a packet whose first fragment was seen.
#[inline(always)]
pub fn find(key: &FragmentKey) -> Option<&'static FragmentEntry> {
    // SAFETY: map values stay readable while the program runs. If another packet's entry overwrites this one
    // meanwhile, the fragment follows that entry, and its packet is not reassembled.
    unsafe { FRAGMENTS.get(key) }
}
