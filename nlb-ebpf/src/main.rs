//! The XDP programs. Thin: what a packet means is decided by `nlb-common` and [`steer`]; here verdicts become actions.

#![no_std]
#![no_main]

mod ask;
mod decap;
mod extensions;
mod hop;
mod limit;
mod packet;
mod record;
mod reject;
mod steer;
mod tables;

use aya_ebpf::bindings::xdp_action;
use aya_ebpf::helpers::{bpf_jiffies64, bpf_redirect};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use nlb_common::verdict::{SEEN_COUNTER, Verdict};

use crate::packet::Packet;

/// The balancer, on the interfaces that clients and backends are reached by.
#[xdp]
pub fn nlb(ctx: XdpContext) -> u32 {
    tables::count(SEEN_COUNTER);
    let mut packet = Packet::new(&ctx);
    let verdict = match steer::steer(&mut packet) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    finish(&packet, verdict)
}

/// The receiving end of dsr-ipip, for module hosts without a kernel tunnel.
#[xdp]
pub fn nlb_decap(ctx: XdpContext) -> u32 {
    tables::count(SEEN_COUNTER);
    let mut packet = Packet::new(&ctx);
    let verdict = match decap::decap(&mut packet) {
        Ok(verdict) | Err(verdict) => verdict,
    };
    finish(&packet, verdict)
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
    tables::count(verdict.counter());
    match verdict {
        Verdict::Pass(_) => xdp_action::XDP_PASS,
        Verdict::Send(_, ifindex) if ifindex == packet.ingress() && tables::settings().use_tx != 0 => {
            xdp_action::XDP_TX
        }
        // SAFETY: the helper takes plain numbers.
        Verdict::Send(_, ifindex) => (unsafe { bpf_redirect(ifindex, 0) }) as u32,
        // The copy that user space holds goes on; this one has ended.
        Verdict::Park | Verdict::Drop(_) => xdp_action::XDP_DROP,
    }
}

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
