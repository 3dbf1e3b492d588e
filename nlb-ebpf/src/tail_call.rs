//! Tail calls: a program continues in another one.
//!
//! Code that few packets need is in programs of its own. A tail call starts one with an empty stack (the
//! kernel gives 512 bytes) and the verifier's whole budget, and adds nothing to the code that runs for every
//! packet. The program parses the packet again.

use aya_ebpf::btf_maps::{PerCpuArray, ProgramArray};
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::{TcContext, XdpContext};
use nlb_common::verdict::{DropReason, PROGRAMS as COUNT, Program, SendReason, Verdict};

use crate::packet::{Context, Packet};

#[btf_map]
static PROGRAMS: ProgramArray<COUNT> = ProgramArray::new();

/// The programs for socket buffers: a program can continue only in one of its own type.
#[btf_map]
static TC_PROGRAMS: ProgramArray<COUNT> = ProgramArray::new();

/// One word for the program that is called.
#[btf_map]
static TAIL_CALL_CTX: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Continues in another program. Returns only if that program is not loaded.
#[inline(always)]
pub fn tail_call(packet: &Packet, program: Program) {
    // SAFETY: valid context, and nothing here has a destructor.
    unsafe {
        match packet.context() {
            Context::Xdp(ctx) => PROGRAMS.tail_call(&XdpContext::new(ctx), program as u32),
            Context::Skb(ctx) => TC_PROGRAMS.tail_call(&TcContext::new(ctx), program as u32),
        }
    }
}

#[inline(always)]
fn set_context(word: u64) {
    if let Some(room) = TAIL_CALL_CTX.get_ptr_mut(0) {
        // SAFETY: this CPU's own copy, and an XDP program is not interrupted by another.
        unsafe { *room = word };
    }
}

#[inline(always)]
fn context() -> Option<u64> {
    TAIL_CALL_CTX.get(0).copied()
}

/// The verdict on a packet that is longer than `mtu`: the program for long packets answers its sender.
#[inline(always)]
pub fn to_too_big(mtu: u32) -> Verdict {
    set_context(mtu as u64);
    Verdict::TailCall(Program::TooBig)
}

/// The MTU that [`to_too_big`] passes.
#[inline(always)]
pub fn mtu() -> Option<u32> {
    context().map(|word| word as u32)
}

/// Why a packet is refused.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    NoBackend,
    Full,
    TtlExceeded,
}

impl Refusal {
    /// How a packet is counted that is dropped instead.
    #[inline(always)]
    pub fn silent(self) -> DropReason {
        match self {
            Refusal::NoBackend => DropReason::NoBackend,
            Refusal::Full => DropReason::Full,
            Refusal::TtlExceeded => DropReason::TtlExceeded,
        }
    }
}

/// The verdict on a packet that is refused: the program for refusals answers its sender.
#[inline(always)]
pub fn to_reject(refusal: Refusal) -> Verdict {
    set_context(refusal as u64);
    Verdict::TailCall(Program::Reject)
}

/// The refusal that [`to_reject`] passes.
#[inline(always)]
pub fn refusal() -> Refusal {
    match context() {
        Some(word) if word == Refusal::TtlExceeded as u64 => Refusal::TtlExceeded,
        Some(word) if word == Refusal::Full as u64 => Refusal::Full,
        _ => Refusal::NoBackend,
    }
}

/// The word for the program for GUE: from the lowest bit on, half of the flow's hash, the backend's id, and
/// whether the packet is an ICMP error.
const BACKEND: u32 = 32;
const ICMP_ERROR: u32 = 48;

/// The verdict on a packet to a GUE backend: the program for GUE sends it.
#[inline(always)]
pub fn to_gue(backend_id: u16, hash: u64, reason: SendReason) -> Verdict {
    let is_error = matches!(reason, SendReason::IcmpError) as u64;
    set_context(hash as u32 as u64 | (backend_id as u64) << BACKEND | is_error << ICMP_ERROR);
    Verdict::TailCall(Program::Gue)
}

/// The backend's id, half of the flow's hash and the reason that [`to_gue`] passes.
#[inline(always)]
pub fn gue_context() -> Option<(u16, u32, SendReason)> {
    let word = context()?;
    let reason = if word >> ICMP_ERROR != 0 { SendReason::IcmpError } else { SendReason::Forward };
    Some(((word >> BACKEND) as u16, word as u32, reason))
}
