//! Packets for user space, which sends them on when it knows the next hop.

use aya_ebpf::bindings::xdp_md;
use nlb_common::abi::{PUNTED_BYTES, Punted};
use nlb_common::frame::Frame;
use nlb_common::net::Addr;
use nlb_common::verdict::{DropReason, Verdict};

use crate::maps;
use crate::packet::{Context, Packet};

/// Hands the packet, still untouched, to user space, which has the kernel resolve the next hop next_hop `next_hop` and
/// then sends the packet through this program again.
#[inline(always)]
pub fn punt(packet: &Packet, next_hop: Addr) -> Verdict {
    match packet.context() {
        Context::Xdp(ctx) if nlb_punt(ctx, next_hop.hi, next_hop.lo) == 0 => Verdict::Punt,
        // The checksum of a socket buffer may be unfinished, so bytes alone would not do.
        _ => Verdict::Drop(DropReason::PuntFull),
    }
}

/// Copies the packet into the ring; 0 if there is room. Out of line, so that the verifier follows the copying once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_punt(ctx: *mut xdp_md, hi: u64, lo: u64) -> u32 {
    let packet = Packet::xdp(ctx);
    let Some(mut room) = maps::punted().reserve(0) else { return 1 };
    let frame = room.as_mut_ptr();
    // SAFETY: the ring buffer gave us room for a whole frame.
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
