//! Programs that another one continues in.
//!
//! What few packets need is in programs of its own: a tail call starts them with an empty stack (the kernel gives 512 bytes)
//! and the verifier's whole patience, and leaves the code that runs for every packet as it was. They begin by reading the
//! packet again.

use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};
use nlb_common::verdict::{STAGES as COUNT, Stage};

use crate::packet::{Context, Packet};

#[btf_map]
static STAGES: ProgramArray<COUNT> = ProgramArray::new();

/// The same for socket buffers: a program can only go on in one of its own type.
#[btf_map]
static TC_STAGES: ProgramArray<COUNT> = ProgramArray::new();

/// Goes on in another program. Returns only if that one is not there.
#[inline(always)]
pub fn go_on(packet: &Packet, stage: Stage) {
    // SAFETY: valid context, and nothing here has to be dropped.
    unsafe {
        match packet.context() {
            Context::Xdp(ctx) => STAGES.tail_call(&XdpContext::new(ctx), stage as u32),
            Context::Skb(ctx) => TC_STAGES.tail_call(&TcContext::new(ctx), stage as u32),
        }
    }
}
