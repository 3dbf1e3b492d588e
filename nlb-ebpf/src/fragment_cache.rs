//! Where first fragments went, for the fragments that follow them.

use aya_ebpf::btf_maps::{LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use nlb_common::abi::{Backend, FRAGMENTED, FragmentEntry, FragmentKey};
use nlb_common::net::Addr;

use crate::clock;

/// Packets of which fragments are on their way. Floods push out what is oldest.
#[btf_map]
static FRAGMENTS: LruHashMap<FragmentKey, FragmentEntry, { FRAGMENTED }> = LruHashMap::new();

/// The fragment at hand. Here and not on the stack, of which steering takes most.
#[btf_map]
static FRAGMENT: PerCpuArray<Remembered, 1> = PerCpuArray::new();

#[repr(C)]
pub struct Remembered {
    pub key: FragmentKey,
    way: FragmentEntry,
}

/// Remembers where the first fragment at hand goes, and with which addresses.
#[inline(always)]
pub fn remember(backend_id: u16, backend: &Backend, service: u16, reply: bool, to: (Addr, Addr), hash: u64) {
    let Some(at_hand) = at_hand() else { return };
    at_hand.way = FragmentEntry {
        src: to.0,
        dst: to.1,
        backend: backend_id,
        service,
        at: clock::now(),
        generation: backend.generation,
        reply: reply as u8,
        hash,
    };
    // By reference: a copy would be on the stack.
    let (key, way) = (&at_hand.key, &at_hand.way);
    // Without room the others are dropped, and the sender begins anew.
    let _ = FRAGMENTS.insert(key, way, 0);
}

#[inline(always)]
pub fn at_hand() -> Option<&'static mut Remembered> {
    // SAFETY: this CPU's own copy, and an XDP program is not interrupted by another.
    FRAGMENT.get_ptr_mut(0).map(|at_hand| unsafe { &mut *at_hand })
}

/// The entry of a packet whose first fragment was seen.
#[inline(always)]
pub fn find(key: &FragmentKey) -> Option<&'static FragmentEntry> {
    // SAFETY: map values stay readable while the program runs. Should another fragment's way be written there meanwhile,
    // that one is followed, and the packet will not be put together.
    unsafe { FRAGMENTS.get(key) }
}
