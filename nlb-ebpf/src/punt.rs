//! Punting: packets whose next hop is not known go to user space, which resolves it and injects them again.

use aya_ebpf::bindings::xdp_md;
use nlb_common::abi::{PUNTED_BYTES, Punted};
use nlb_common::frame::Frame;
use nlb_common::net::Addr;
use nlb_common::verdict::{DropReason, Verdict};

use crate::maps;
use crate::packet::{Context, Packet};

/// Copies the unchanged packet to user space. User space has the kernel resolve `next_hop`, and then runs
/// this program on the packet again.
#[inline(always)]
pub fn punt(packet: &Packet, next_hop: Addr) -> Verdict {
    match packet.context() {
        Context::Xdp(ctx) if nlb_punt(ctx, next_hop.hi, next_hop.lo) == 0 => Verdict::Punt,
        // The checksum of a socket buffer may be unfinished, so a copy of its bytes would not be complete.
        _ => Verdict::Drop(DropReason::PuntFull),
    }
}

/// Copies the packet into the ring buffer; 0 on success. Out of line, so that the verifier checks the copying
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_punt(ctx: *mut xdp_md, hi: u64, lo: u64) -> u32 {
    let packet = Packet::xdp(ctx);
    let Some(mut room) = maps::punted().reserve(0) else { return 1 };
    let frame = room.as_mut_ptr();
    // SAFETY: the ring buffer reserved room for a whole frame.
    let copied = unsafe {
        (&raw mut (*frame).head).write(Punted {
            next_hop: Addr { hi, lo },
            ifindex: packet.ingress(),
            len: packet.len() as u32,
        });
        packet.copy_to::<PUNTED_BYTES>(&raw mut (*frame).bytes)
    };
    match copied {
        Some(()) => {
            room.submit(0);
            0
        }
        None => {
            room.discard(0);
            1
        }
    }
}
