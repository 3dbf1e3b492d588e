//! The XDP entry points, and the one place where a verdict becomes an XDP action. `nlb-common` and [`steer`]
//! decide what a packet means.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod arguments;
mod capacity;
mod clock;
mod flow;
mod forward;
mod fragment_cache;
mod host;
mod ipv6_ext;
mod maps;
mod next_hop;
mod packet;
mod programs;
mod punt;
mod quic_cid;
mod rate_limit;
mod record;
mod reply;
mod segment;
mod settings;
mod snat_port;
mod steer;
mod tail_call;
mod upcall;

use aya_ebpf::helpers::{bpf_jiffies64, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use nlb_common::protocol::xdp;
use nlb_common::verdict::{SEEN_COUNTER, Verdict};

use crate::packet::Packet;
use crate::programs::{decap, fragments, gue, icmp, quic, reject, too_big};

// The programs are inlined into the entry points that the macro makes: older kernels count 32 bytes of stack
// for each function on the call path, even if it uses none, and allow 512. The programs do not declare
// support for multi-buffer frames (`frags`), so they get none: in generic mode such a program would leave the
// program at TC ingress without Ethernet headers.

/// Runs a program on the frame and carries out its verdict. This is a macro because the compiler calls a
/// function that is passed as an argument through a shim (`FnOnce::call_once`), which it does not inline even
/// if the function is `#[inline(always)]`.
macro_rules! run {
    ($ctx:expr, $program:path) => {{
        let mut packet = Packet::xdp($ctx.ctx);
        let (Ok(verdict) | Err(verdict)) = $program(&mut packet);
        finish(&packet, verdict)
    }};
}

/// The balancer, on the interfaces towards clients and backends.
#[xdp]
#[inline(always)]
pub fn nlb(ctx: XdpContext) -> u32 {
    maps::count(SEEN_COUNTER);
    run!(ctx, steer::steer)
}

/// Tail call: fragments.
#[xdp]
#[inline(always)]
pub fn nlb_fragments(ctx: XdpContext) -> u32 {
    run!(ctx, fragments::forward)
}

/// Tail call: ICMP, which may be an error about a flow of the balancer.
#[xdp]
#[inline(always)]
pub fn nlb_icmp(ctx: XdpContext) -> u32 {
    run!(ctx, icmp::forward)
}

/// Tail call: packets of services that select backends by QUIC's connection ids.
#[xdp]
#[inline(always)]
pub fn nlb_quic(ctx: XdpContext) -> u32 {
    run!(ctx, quic::forward)
}

/// Tail call: a packet that is longer than the MTU.
#[xdp]
#[inline(always)]
pub fn nlb_too_big(ctx: XdpContext) -> u32 {
    run!(ctx, too_big::forward)
}

/// Tail call: a packet that is answered with a refusal.
#[xdp]
#[inline(always)]
pub fn nlb_reject(ctx: XdpContext) -> u32 {
    run!(ctx, reject::answer)
}

/// Tail call: packets to GUE backends.
#[xdp]
#[inline(always)]
pub fn nlb_gue(ctx: XdpContext) -> u32 {
    run!(ctx, gue::forward)
}

/// The receiving end of dsr-ipip and gue, for module hosts without a kernel tunnel.
#[xdp]
#[inline(always)]
pub fn nlb_decap(ctx: XdpContext) -> u32 {
    maps::count(SEEN_COUNTER);
    run!(ctx, decap::decap)
}

/// Returns the kernel's tick counter. User space measures the tick rate by it: the programs' clock counts
/// jiffies, whose rate is a build option of the kernel.
#[xdp]
pub fn nlb_jiffies(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper takes no arguments.
    (unsafe { bpf_jiffies64() }) as u32
}

/// The one place where a verdict becomes an XDP action. `programs/tc.rs` has the one for TC.
#[inline(always)]
fn finish(packet: &Packet, verdict: Verdict) -> u32 {
    if let Verdict::TailCall(program) = verdict {
        tail_call::tail_call(packet, program);
    }
    maps::count(verdict.counter());
    match verdict {
        Verdict::Pass(_) => xdp::PASS,
        Verdict::Send(_, ifindex) if ifindex == packet.ingress() && settings::uses_tx() => xdp::TX,
        // SAFETY: the helper takes plain numbers.
        Verdict::Send(_, ifindex) => (unsafe { bpf_redirect(ifindex, 0) }) as u32,
        // User space holds a copy of a punted packet.
        Verdict::Punt(_) | Verdict::Drop(_) | Verdict::TailCall(_) => xdp::DROP,
    }
}

/// For the host the programs are only checked, by the compiler and by clippy.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked in: no code on the packet path can panic, and the verifier would refuse an endless loop.
    loop {}
}

/// The kernel offers some helpers (those for FIB look-ups among them) only to programs that declare a
/// GPL-compatible licence. The source is Apache-2.0; the object declares MIT and GPL.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
