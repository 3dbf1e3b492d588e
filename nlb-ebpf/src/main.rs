//! The programs. Thin: what a packet means is decided by `nlb-common` and [`steer`]; here verdicts become actions.

#![cfg_attr(target_arch = "bpf", no_std, no_main, feature(asm_experimental_arch))]

mod clock;
mod flow;
mod forward;
mod fragment_cache;
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

// The programs are inlined into the entry points that the macro makes: older kernels count 32 bytes of stack for each function
// on the way, even if it uses none, and allow 512. They do not tell the kernel that they could do with frames of several
// buffers (`frags`), and so meet none: its generic mode would then leave the program at the stack's door without Ethernet
// headers.

/// Runs a program on the frame and does as it says. No function: one that is handed another calls it through a shim of the
/// compiler's, which is not inlined whatever the attributes say.
macro_rules! run {
    ($ctx:expr, $program:path) => {{
        let mut packet = Packet::xdp($ctx.ctx);
        let (Ok(verdict) | Err(verdict)) = $program(&mut packet);
        finish(&packet, verdict)
    }};
}

/// The balancer, on the interfaces that clients and backends are reached by.
#[xdp]
#[inline(always)]
pub fn nlb(ctx: XdpContext) -> u32 {
    maps::count(SEEN_COUNTER);
    run!(ctx, steer::steer)
}

/// Where the balancer goes on with fragments.
#[xdp]
#[inline(always)]
pub fn nlb_fragments(ctx: XdpContext) -> u32 {
    run!(ctx, fragments::forward)
}

/// Where the balancer goes on with ICMP that may be an error about one of its flows.
#[xdp]
#[inline(always)]
pub fn nlb_icmp(ctx: XdpContext) -> u32 {
    run!(ctx, icmp::forward)
}

/// Where the balancer goes on with packets of services that go by QUIC's connection ids.
#[xdp]
#[inline(always)]
pub fn nlb_quic(ctx: XdpContext) -> u32 {
    run!(ctx, quic::forward)
}

/// Where the balancer goes on with a packet that is too long for its way.
#[xdp]
#[inline(always)]
pub fn nlb_too_big(ctx: XdpContext) -> u32 {
    run!(ctx, too_big::answer)
}

/// Where the balancer goes on with a packet that is to be refused.
#[xdp]
#[inline(always)]
pub fn nlb_reject(ctx: XdpContext) -> u32 {
    run!(ctx, reject::answer)
}

/// Where the balancer goes on with packets to GUE backends.
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

/// Answers with the kernel's tick counter, so that user space can find out how many ticks make a second: programs see
/// jiffies, and their rate is a build option of the kernel.
#[xdp]
pub fn nlb_jiffies(_ctx: XdpContext) -> u32 {
    // SAFETY: the helper takes no arguments.
    (unsafe { bpf_jiffies64() }) as u32
}

/// The one place where a verdict becomes an action.
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
        // The copy that user space holds goes on; this one has ended.
        Verdict::Punt | Verdict::Drop(_) | Verdict::TailCall(_) => xdp::DROP,
    }
}

/// For the host the programs are only checked, by the compiler and by clippy.
#[cfg(not(target_arch = "bpf"))]
fn main() {}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo) -> ! {
    // Never linked in: nothing on the packet's way can panic, and the verifier would refuse an endless loop.
    loop {}
}

/// Some helpers (fib_lookup's family among them) are offered only to programs that declare a GPL-compatible licence.
/// The source is Apache-2.0; the object is offered under both.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
