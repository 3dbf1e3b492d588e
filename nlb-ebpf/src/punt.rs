//! Punting: packets that user space has to work on first.
//!
//! It resolves next hops that are not known, makes fragments of packets that are too long, and then runs the
//! programs on the packets again. It answers senders at TC ingress, where the programs cannot, and reads ICMP
//! errors about tunnel packets.

use aya_ebpf::bindings::{__sk_buff, xdp_md};
use aya_ebpf::helpers::bpf_skb_load_bytes;
use nlb_common::abi::{PUNTED_BYTES, PUNTED_DATAGRAM_BYTES, PUNTED_FRAME_BYTES, Punted};
use nlb_common::frame::Frame;
use nlb_common::net::Addr;
use nlb_common::protocol::ETH_LEN;
use nlb_common::verdict::{DropReason, PuntReason, Verdict};

use crate::maps::{self, PuntedFrame};
use crate::packet::{Context, Packet};

/// Copies the unchanged packet to user space. User space has the kernel resolve `next_hop`, and then runs
/// this program on the packet again.
#[inline(always)]
pub fn until_resolved(packet: &Packet, next_hop: Addr) -> Verdict {
    match packet.context() {
        Context::Xdp(ctx) if nlb_punt(ctx, next_hop.hi, next_hop.lo, Punted::NEXT_HOP as u32) == 0 => {
            Verdict::Punt(PuntReason::NextHop)
        }
        // The checksum of a socket buffer may be unfinished. The stack resolves its own neighbours.
        _ => Verdict::Drop(DropReason::PuntFull),
    }
}

/// Copies the unchanged packet to user space, which runs this program on its fragments of up to `mtu` bytes.
#[inline(always)]
pub fn to_be_fragmented(packet: &Packet, mtu: u16) -> Verdict {
    let task = task(Punted::FRAGMENT, mtu);
    let refused = match packet.context() {
        Context::Xdp(ctx) if packet.len() <= PUNTED_BYTES => nlb_punt(ctx, 0, 0, task),
        Context::Xdp(ctx) => nlb_punt_long(ctx, task),
        Context::Skb(ctx) if packet.len() <= PUNTED_BYTES => nlb_tc_punt(ctx, task),
        Context::Skb(ctx) => nlb_tc_punt_whole(ctx, task),
    };
    match refused {
        0 => Verdict::Punt(PuntReason::Fragment),
        _ => Verdict::Drop(DropReason::TooBig),
    }
}

/// Copies the beginning of a socket buffer to user space, which answers it with an ICMP error; `false` if
/// there is no room.
#[inline(always)]
pub fn to_be_answered(ctx: *mut __sk_buff, mtu: u16) -> bool {
    nlb_tc_punt(ctx, task(Punted::TOO_BIG, mtu)) == 0
}

/// Copies an ICMP error about a tunnel packet to user space. Without room it is lost; the sender of the next
/// packet gets another.
#[inline(always)]
pub fn to_be_read(packet: &Packet) {
    let task = task(Punted::TUNNEL_ERROR, 0);
    match packet.context() {
        Context::Xdp(ctx) => nlb_punt(ctx, 0, 0, task),
        Context::Skb(ctx) => nlb_tc_punt(ctx, task),
    };
}

/// A task and its MTU as one word.
#[inline(always)]
fn task(task: u16, mtu: u16) -> u32 {
    task as u32 | (mtu as u32) << 16
}

/// Copies the packet into the ring buffer; 0 on success. Out of line, so that the verifier checks the copying
/// once.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_punt(ctx: *mut xdp_md, hi: u64, lo: u64, task: u32) -> u32 {
    punt_frame::<PUNTED_BYTES>(ctx, Addr { hi, lo }, task)
}

/// As [`nlb_punt`], for jumbo frames.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_punt_long(ctx: *mut xdp_md, task: u32) -> u32 {
    punt_frame::<PUNTED_FRAME_BYTES>(ctx, Addr::UNSPECIFIED, task)
}

#[inline(always)]
fn punt_frame<const ROOM: usize>(ctx: *mut xdp_md, next_hop: Addr, task: u32) -> u32 {
    let packet = Packet::xdp(ctx);
    let Some(mut room) = maps::punted().reserve_untyped::<PuntedFrame<ROOM>>(0) else { return 1 };
    let frame = room.as_mut_ptr();
    // SAFETY: the ring buffer reserved room for a whole frame.
    let copied = unsafe {
        (&raw mut (*frame).head).write(head(&packet, next_hop, task));
        packet.copy_to::<ROOM>(&raw mut (*frame).bytes)
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

/// Copies as much of a socket buffer into the ring buffer as user space reads; 0 on success.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_punt(ctx: *mut __sk_buff, task: u32) -> u32 {
    punt_buffer::<PUNTED_BYTES>(ctx, task)
}

/// Copies a whole socket buffer.
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn nlb_tc_punt_whole(ctx: *mut __sk_buff, task: u32) -> u32 {
    if Packet::skb(ctx).len() > PUNTED_DATAGRAM_BYTES {
        return 1;
    }
    punt_buffer::<PUNTED_DATAGRAM_BYTES>(ctx, task)
}

#[inline(always)]
fn punt_buffer<const ROOM: usize>(ctx: *mut __sk_buff, task: u32) -> u32 {
    let packet = Packet::skb(ctx);
    let Some(mut room) = maps::punted().reserve_untyped::<PuntedFrame<ROOM>>(0) else { return 1 };
    let frame = room.as_mut_ptr();
    let len = packet.len();
    let copied = if len < ROOM { len } else { ROOM };
    // The verifier refuses a copy of nothing.
    if copied < ETH_LEN {
        room.discard(0);
        return 1;
    }
    // SAFETY: valid context; the ring buffer reserved room for a whole frame.
    let loaded = unsafe {
        (&raw mut (*frame).head).write(head(&packet, Addr::UNSPECIFIED, task));
        bpf_skb_load_bytes(ctx.cast(), 0, (&raw mut (*frame).bytes).cast(), copied as u32)
    };
    if loaded == 0 {
        room.submit(0);
        0
    } else {
        room.discard(0);
        1
    }
}

#[inline(always)]
fn head(packet: &Packet, next_hop: Addr, task: u32) -> Punted {
    Punted {
        next_hop,
        ifindex: packet.ingress(),
        len: packet.len() as u32,
        task: task as u16,
        mtu: (task >> 16) as u16,
        at_tc: packet.is_skb() as u32,
    }
}
